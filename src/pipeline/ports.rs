//! What the pipeline needs of the world. `ledger/` and `broker/` provide it; `replay` provides its own deliveries.

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

/// Where credits are committed.
#[async_trait]
pub trait CreditLedger: Send + Sync {
    /// Commits `batch` (at most [`crate::domain::credit::MAX_BATCH`] credits) in one transaction and answers for each
    /// credit, in order, the same as if it had come alone. Answers within a deadline of its own.
    async fn credit(&self, batch: Arc<[Credit]>, patience: Patience) -> Result<Vec<Verdict>, BatchError>;

    /// Does what a credit does, on a reserved id and without keeping it, and commits a write that concerns no message, over
    /// a fresh connection: whether the ledger takes credits at all.
    async fn probe(&self) -> Result<(), Outage>;

    /// Which of these rows are locked. A ledger without row locks has none.
    async fn row_locks(&self, rows: Vec<LedgerRow>) -> Result<RowLocks, Outage> {
        let _ = rows;
        Ok(RowLocks::default())
    }
}

/// How long a transaction waits for a row that another one holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// A fifth of the ledger's timeout.
    Usual,
    /// A tenth of a second: the row is known to be held, and other messages wait.
    Brief,
}

/// A row that the daemon's transactions lock.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LedgerRow {
    /// A payment's credit, and what its checks change with it.
    Payment(PaymentId),
    /// A user's balance.
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

/// Which rows are locked at a moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RowLocks {
    /// By sessions that are not pointsd's, with a description of the session for a person.
    pub by_others: HashMap<LedgerRow, String>,
    /// Whether pointsd's own writers hold one of them.
    pub by_own_writers: bool,
}

/// Where credits are brought to agree with their payments.
#[async_trait]
pub trait CheckLedger: Send + Sync {
    /// Brings each payment of `batch` to agree with what was found of it, in one transaction: finds its row as it is at that
    /// moment, decides by [`crate::domain::check::Resolution::decide`], and does it. `batch`: in the order of the payment
    /// ids, each once; at most [`crate::domain::credit::MAX_BATCH`]. Answers in that order, within a deadline of its own.
    async fn check(
        &self,
        batch: Arc<[Check]>,
        on_unpaid: OnUnpaid,
        patience: Patience,
    ) -> Result<Vec<Checked>, BatchError>;

    /// As [`CreditLedger::probe`], with the statements of a check.
    async fn probe(&self) -> Result<(), Outage>;

    /// As [`CreditLedger::row_locks`].
    async fn row_locks(&self, rows: Vec<LedgerRow>) -> Result<RowLocks, Outage> {
        let _ = rows;
        Ok(RowLocks::default())
    }
}

/// What a payment source says of one payment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup {
    /// This.
    Known(Payment),
    /// Nothing that can be used, for a reason of this payment's own that may pass.
    Failed(String),
}

/// Takes the answers of a look-up as they arrive: the payment's index, and what the source says about it.
pub type Answers<'a> = &'a mut (dyn FnMut(usize, Lookup) + Send);

/// A payment as its source knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payment {
    /// How the payment's own record writes the id (its canonical spelling). `None` where the source has no record of its
    /// own (HTTP), or the payment is unknown.
    pub id: Option<String>,
    /// How it stands.
    pub status: PaymentStatus,
    /// The source's own word, where it is in none of the configured lists; at most a line.
    pub said: Option<String>,
    /// Whose payment it is, where the source is asked for that and has the payment.
    pub user: Option<String>,
    /// What it is worth, the same.
    pub value: Option<PaymentValue>,
}

impl Payment {
    /// One of which nothing but the status matters.
    pub fn new(status: PaymentStatus) -> Self {
        Self { id: None, status, said: None, user: None, value: None }
    }
}

/// What a payment's row may be set to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowStatus {
    /// The first of the values that mean paid.
    Paid,
    /// The first of those that mean closed.
    Closed,
}

/// How old an answer of a payment source may be when it is handed over.
pub const MOST_HELD_BACK: Duration = Duration::from_millis(200);

/// What knows whether payments are paid.
#[async_trait]
pub trait PaymentSource: Send + Sync {
    /// Looks payments up, each id once. Each answer is handed over as soon as it is there, at most one for each payment.
    /// No request begins after `until`: payments without an answer were not asked. An outage is an error that no message is
    /// charged for; answers handed over before it count.
    async fn look_up(&self, payments: Arc<[PaymentId]>, until: Instant, answers: Answers<'_>)
    -> Result<(), BatchError>;

    /// Sets the rows of these payments, as far as they are pending at that moment: a change that somebody else has made wins.
    /// Where there is no row nothing is set.
    async fn set(&self, payments: Arc<[PaymentId]>, to: RowStatus) -> Result<(), BatchError>;

    /// Whether rows can be set at all, whatever becomes of any one payment.
    async fn probe_set(&self) -> Result<(), Outage>;

    /// Whether it works at all, whatever becomes of any one payment.
    async fn probe(&self) -> Result<(), Outage>;

    /// How long a call may go on after `until`.
    fn max_duration(&self) -> Duration;
}

/// Looks payments up and waits for all answers, in order; `None` for a payment that was not asked.
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

/// A message on its way through a pipeline.
pub trait Message: Send + Sync {
    /// The body as it was received.
    fn body(&self) -> &[u8];

    /// When its producer says it was sent.
    fn sent_at(&self) -> Option<SystemTime>;

    /// Delayed retries that it has taken (`x-pointsd-attempt`).
    fn retries_taken(&self) -> u32 {
        0
    }

    /// Checks that are done of each payment in it (`x-pointsd-check`).
    fn checks_done(&self) -> u32 {
        0
    }

    /// The source whose format the body has: that of the queue, or in the check queue `x-pointsd-source`. `None`: the credit
    /// format.
    fn source(&self) -> Option<&str> {
        None
    }

    /// What a message in the check queue is.
    fn origin(&self) -> Origin {
        Origin::Foreign
    }

    /// What a person can find it by when no payment id can be read from it: a message id or a line number.
    fn label(&self) -> String;
}

/// What a message in the check queue is, by its properties.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A check message of a daemon.
    Checks,
    /// A single message that a daemon or a requeue sent here: checked at once.
    Ours,
    /// A producer's message that came through this check delay queue, which an earlier build bound to the exchange.
    FormerBinding(String),
    /// A producer's message: the check queue is bound to an exchange.
    Foreign,
}

/// A copy that is to stand in another queue before its original is settled.
#[derive(Debug)]
pub struct Forward<'a, M> {
    /// The message.
    pub message: &'a M,
    /// Its payment, where it could be read.
    pub payment_id: Option<&'a PaymentId>,
    /// Where it goes.
    pub to: Destination,
    /// What happened, for a person; `None` where nothing has gone wrong.
    pub error: Option<Cow<'a, str>>,
    /// The version in the ledger, on a conflict.
    pub recorded: Option<&'a RecordedCredit>,
    /// The copy's body.
    pub body: CopyBody<'a>,
}

/// The body of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyBody<'a> {
    /// The original's, byte by byte.
    Original,
    /// A check message.
    Checks(&'a [u8]),
    /// A points message.
    Points(&'a [u8]),
}

/// A check message that begins the checks of payments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirstChecks {
    /// How long it waits.
    pub wait: CheckDelay,
    /// The check message.
    pub body: Vec<u8>,
}

/// How long confirms are waited for, and what is not confirmed is tried again, once others were confirmed: to send again what
/// is only late would double it. Twice this is the five minutes of `docs/concepts/checks.md`.
pub const CONFIRMING_TIME: Duration = Duration::from_secs(150);

/// For each message that was published, in order: it stands confirmed in its queue, or why it does not.
pub type Confirmed = Vec<Result<(), String>>;

/// Where messages come from, and where they go when all is done.
#[async_trait]
pub trait Deliveries: Send + Sync {
    /// What is delivered.
    type Message: Message;

    /// Publishes copies to the queues that they go to, and waits for the confirms. An error leaves it open which of them
    /// stand there. `heartbeat` beats while confirms are late.
    async fn forward(&self, copies: &[Forward<'_, Self::Message>], heartbeat: &Heartbeat) -> Result<Confirmed, Outage>;

    /// The same for check messages that are not copies.
    async fn schedule(&self, checks: &[FirstChecks], heartbeat: &Heartbeat) -> Result<Confirmed, Outage>;

    /// Settles messages whose effect is durable. It cannot fail: a message whose settlement is lost comes again and
    /// is a duplicate then.
    async fn settle(&self, done: Vec<Self::Message>);
}
