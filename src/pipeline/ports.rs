//! The traits that the pipelines require. `ledger/`, `pay_status/` and `broker/` implement them; `replay` implements
//! its own [`Message`].

use crate::{
    domain::{
        check::{Check, Checked, OnUnpaid},
        check_schedule::CheckDelay,
        credit::{Credit, RecordedCredit, Verdict},
        failure::{BatchError, Outage},
        ids::{PaymentId, UserId},
        settlement::Destination,
        status::PaymentStatus,
        valuation::PaymentValue,
    },
    observe::heartbeat::Heartbeat,
};
use async_trait::async_trait;
use std::{
    borrow::Cow,
    collections::HashMap,
    fmt,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

/// A ledger in which credits are committed.
#[async_trait]
pub trait CreditLedger: Send + Sync {
    /// Commits `batch` (at most [`crate::domain::credit::MAX_BATCH`] credits) in one transaction and returns the
    /// verdict of each credit, in order, as if the credit had arrived alone. Returns within a deadline of its own.
    async fn credit(&self, batch: Arc<[Credit]>, patience: Patience) -> Result<Vec<Verdict>, BatchError>;

    /// Tests whether the ledger accepts credits. Over a fresh connection, it runs the statements of a credit on a
    /// reserved ID, which it rolls back, and commits a write that concerns no message.
    async fn probe(&self) -> Result<(), Outage>;

    /// Returns which of these rows are locked. A ledger without row locks has none.
    async fn row_locks(&self, rows: Vec<LedgerRow>) -> Result<RowLocks, Outage> {
        let _ = rows;
        Ok(RowLocks::default())
    }
}

/// Time for which a transaction waits for a row that another transaction holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// A fifth of the ledger's timeout.
    Usual,
    /// A tenth of a second, because the row is known to be locked and other messages wait.
    Brief,
}

/// A row that the daemon's transactions lock.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LedgerRow {
    /// The credit of a payment, with the rows that its checks change.
    Payment(PaymentId),
    /// The balance of a user.
    User(UserId),
}

impl fmt::Display for LedgerRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Payment(payment_id) => write!(f, "payment {payment_id}"),
            Self::User(user_id) => write!(f, "user {user_id}"),
        }
    }
}

/// The rows that are locked at a moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RowLocks {
    /// Rows that sessions of other programs hold, with a description of the session for people.
    pub by_others: HashMap<LedgerRow, String>,
    /// Whether a writer of pointsd holds one of the rows.
    pub by_own_writers: bool,
}

/// A ledger in which checks are applied to the credits.
#[async_trait]
pub trait CheckLedger: Send + Sync {
    /// Applies the checks of `batch` in one transaction. For each payment it reads the current row, decides by
    /// [`crate::domain::check::Resolution::decide`], and makes the change. `batch` is sorted by payment ID, has each ID
    /// once and at most [`crate::domain::credit::MAX_BATCH`] checks. Returns the results in that order, within a
    /// deadline of its own.
    async fn check(
        &self,
        batch: Arc<[Check]>,
        on_unpaid: OnUnpaid,
        patience: Patience,
    ) -> Result<Vec<Checked>, BatchError>;

    /// Tests whether the ledger accepts checks: like [`CreditLedger::probe`], with the statements of a check.
    async fn probe(&self) -> Result<(), Outage>;

    /// Returns which of these rows are locked, like [`CreditLedger::row_locks`].
    async fn row_locks(&self, rows: Vec<LedgerRow>) -> Result<RowLocks, Outage> {
        let _ = rows;
        Ok(RowLocks::default())
    }
}

/// The answer of a payment source for one payment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup {
    /// The payment as the source knows it.
    Known(Payment),
    /// A transient error that concerns only this payment.
    Failed(String),
}

/// Receives the answers of a look-up as they arrive: the index of the payment, and its answer.
pub type Answers<'a> = &'a mut (dyn FnMut(usize, Lookup) + Send);

/// A payment as its source knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payment {
    /// The ID as the payment's own record writes it (its canonical spelling). `None` if the source has no record of its
    /// own (HTTP), or if the payment is unknown.
    pub id: Option<String>,
    /// The status of the payment.
    pub status: PaymentStatus,
    /// The status value of the source, if it is in none of the configured lists; at most one line.
    pub said: Option<String>,
    /// The user of the payment, if the source is configured to return it and has the payment.
    pub user: Option<String>,
    /// The value of the payment, if the source is configured to return it and has the payment.
    pub value: Option<PaymentValue>,
}

impl Payment {
    /// Returns a payment of which only the status is known.
    pub fn new(status: PaymentStatus) -> Self {
        Self { id: None, status, said: None, user: None, value: None }
    }
}

/// The status to which the row of a payment may be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowStatus {
    /// The first of the configured values that mean paid.
    Paid,
    /// The first of the configured values that mean closed.
    Closed,
}

/// Maximum age of an answer of a payment source when it is handed over.
pub const MOST_HELD_BACK: Duration = Duration::from_millis(200);

/// A payment source: it knows whether payments are paid.
#[async_trait]
pub trait PaymentSource: Send + Sync {
    /// Looks up payments; each ID is given once. Each answer is handed over as soon as it arrives, at most one for each
    /// payment. No request begins after `until`: payments without an answer were not looked up. An outage is an error
    /// for which no message is charged; answers that were handed over before it count.
    async fn look_up(&self, payments: Arc<[PaymentId]>, until: Instant, answers: Answers<'_>)
    -> Result<(), BatchError>;

    /// Sets the rows of those payments that are pending at that moment; a change by another program wins. A payment
    /// without a row is ignored.
    async fn set(&self, payments: Arc<[PaymentId]>, to: RowStatus) -> Result<(), BatchError>;

    /// Tests whether rows can be set at all, independently of any payment.
    async fn probe_set(&self) -> Result<(), Outage>;

    /// Tests whether the source works at all, independently of any payment.
    async fn probe(&self) -> Result<(), Outage>;

    /// Returns the maximum time for which a call may continue after `until`.
    fn max_duration(&self) -> Duration;
}

/// Looks up payments and returns all answers, in order; `None` for a payment that was not looked up.
pub async fn look_up_all(
    source: &dyn PaymentSource,
    payments: Arc<[PaymentId]>,
    until: Instant,
) -> Result<Vec<Option<Lookup>>, BatchError> {
    let mut all: Vec<Option<Lookup>> = vec![None; payments.len()];
    source
        .look_up(payments, until, &mut |index, lookup| {
            if let Some(answer) = all.get_mut(index) {
                *answer = Some(lookup);
            }
        })
        .await?;
    Ok(all)
}

/// A message that a pipeline processes.
pub trait Message: Send + Sync {
    /// Returns the body as it was received.
    fn body(&self) -> &[u8];

    /// Returns the time of sending that the producer has set.
    fn sent_at(&self) -> Option<SystemTime>;

    /// Returns the number of delayed retries that the message has taken (`x-pointsd-attempt`).
    fn retries_taken(&self) -> u32 {
        0
    }

    /// Returns the number of checks that are done for each payment of the message (`x-pointsd-check`).
    fn checks_done(&self) -> u32 {
        0
    }

    /// Returns the notification source whose format the body has: that of the queue, or in the check queue that of
    /// `x-pointsd-source`. `None` means the credit format.
    fn source(&self) -> Option<&str> {
        None
    }

    /// Returns the origin of a message in the check queue.
    fn origin(&self) -> Origin {
        Origin::Foreign
    }

    /// Returns a label that identifies the message for people if its payment ID cannot be read: a message ID or a line
    /// number.
    fn label(&self) -> String;
}

/// The origin of a message in the check queue, as its properties show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A check message that a daemon has published.
    Checks,
    /// A single message that a daemon or a requeue has sent here; it is checked at once.
    Ours,
    /// A message of a producer that came through this check delay queue, which an earlier build bound to the exchange.
    FormerBinding(String),
    /// A message of a producer, because the check queue is bound to an exchange.
    Foreign,
}

/// A copy that must be confirmed in another queue before its original is settled.
#[derive(Debug)]
pub struct Forward<'a, M> {
    /// The original message.
    pub message: &'a M,
    /// The payment ID, if it could be read.
    pub payment_id: Option<&'a PaymentId>,
    /// The destination of the copy.
    pub to: Destination,
    /// The error text for people; `None` if there was no error.
    pub error: Option<Cow<'a, str>>,
    /// The credit in the ledger, for a conflict.
    pub recorded: Option<&'a RecordedCredit>,
    /// The body of the copy.
    pub body: CopyBody<'a>,
}

/// The body of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyBody<'a> {
    /// The body of the original, unchanged.
    Original,
    /// The body of a check message.
    Checks(&'a [u8]),
    /// The body of a points message.
    Points(&'a [u8]),
}

/// A check message that starts the checks of payments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirstChecks {
    /// The delay before the checks.
    pub wait: CheckDelay,
    /// The body of the check message.
    pub body: Vec<u8>,
}

/// Time limit for confirms, and for publishing the unconfirmed messages again after others were confirmed. It is long
/// because a message whose confirm is only late would be published twice. Twice this limit is the five minutes of
/// `docs/concepts/checks.md`.
pub const CONFIRMING_TIME: Duration = Duration::from_secs(150);

/// The result of each published message, in order: confirmed in its queue, or the reason why it is not.
pub type Confirmed = Vec<Result<(), String>>;

/// The broker's side of a pipeline: publishes copies and settles deliveries.
#[async_trait]
pub trait Deliveries: Send + Sync {
    /// The type of a delivered message.
    type Message: Message;

    /// Publishes copies to their queues, and waits for the confirms. After an error it is unknown which of them have
    /// reached their queues. `heartbeat` beats while confirms are late.
    async fn forward(&self, copies: &[Forward<'_, Self::Message>], heartbeat: &Heartbeat) -> Result<Confirmed, Outage>;

    /// Publishes check messages that are not copies, and waits for the confirms like [`Deliveries::forward`].
    async fn schedule(&self, checks: &[FirstChecks], heartbeat: &Heartbeat) -> Result<Confirmed, Outage>;

    /// Settles messages whose effect is durable. It cannot fail: a message whose settlement is lost is delivered again
    /// and is then a duplicate.
    async fn settle(&self, done: Vec<Self::Message>);
}
