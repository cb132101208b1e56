//! What the pipeline needs of the world. `ledger/` and `broker/` provide it; `replay` provides its own deliveries.

use crate::domain::{
    credit::{Credit, Outcome, Standing, Verdict},
    ids::PaymentId,
    settlement::Destination,
};
use async_trait::async_trait;
use std::{borrow::Cow, fmt, sync::Arc, time::SystemTime};

/// Something the daemon cannot work without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dependency {
    /// The database with the balances.
    Ledger,
    /// RabbitMQ: its connections, and the queues that are needed.
    Broker,
}

impl Dependency {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Ledger, Self::Broker];

    /// The metric's label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Ledger => "ledger",
            Self::Broker => "broker",
        }
    }
}

impl fmt::Display for Dependency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// A dependency does not work for anybody. No message is to blame, and none is charged for it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{dependency}: {reason}")]
pub struct Outage {
    /// Which.
    pub dependency: Dependency,
    /// What was seen, for a person.
    pub reason: String,
}

/// Whose fault an error is. Every kind of error says it of itself, in an exhaustive match beside its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Nobody's message: the dependency does not work.
    Outage,
    /// A message's, for good.
    Permanent,
    /// It may pass, or cannot be told: tried again, then split until the message that fails is alone.
    Transient,
}

/// Why a batch of credits was not committed. Nothing of it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// The ledger is down, read-only, full, or does not answer in time.
    #[error(transparent)]
    Outage(#[from] Outage),
    /// The ledger refuses something in it, and will do so again.
    #[error("{0}")]
    Refused(String),
    /// It failed for a reason that may pass, or that cannot be told apart from one.
    #[error("{0}")]
    Transient(String),
}

/// Where credits are committed.
#[async_trait]
pub trait CreditLedger: Send + Sync {
    /// Commits `batch` (at most [`crate::domain::credit::MAX_BATCH`] credits) in one transaction and answers for each
    /// credit, in order, the same as if it had come alone. Answers within a deadline of its own.
    async fn credit(&self, batch: Arc<[Credit]>) -> Result<Vec<Verdict>, CommitError>;

    /// Commits a write that concerns no message, over a fresh connection: whether the ledger works at all.
    async fn probe(&self) -> Result<(), Outage>;
}

/// A message on its way through the pipeline.
pub trait Message: Send + Sync {
    /// The body as it was received.
    fn body(&self) -> &[u8];

    /// When its producer says it was sent.
    fn sent_at(&self) -> Option<SystemTime>;

    /// Delayed retries that it has taken (`x-pointsd-attempt`).
    fn retries_taken(&self) -> u32;

    /// What a person can find it by when no payment id can be read from it: a message id or a line number.
    fn label(&self) -> String;
}

/// A message and what became of it.
#[derive(Debug)]
pub struct Decided<M> {
    /// The message.
    pub message: M,
    /// Its payment, where it is told to a person (whatever is not acknowledged at once) and could be read.
    pub payment_id: Option<PaymentId>,
    /// What became of it.
    pub outcome: Outcome,
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
    /// What happened, for a person.
    pub error: Cow<'a, str>,
    /// The version in the ledger, on a conflict.
    pub standing: Option<&'a Standing>,
}

/// Where messages come from, and where they go when all is done.
#[async_trait]
pub trait Deliveries: Send + Sync {
    /// What is delivered.
    type Message: Message;

    /// Puts confirmed copies into the queues that they go to. When this returns `Ok`, each of them stands there
    /// durably; an error leaves it open which ones do.
    async fn forward(&self, copies: &[Forward<'_, Self::Message>]) -> Result<(), Outage>;

    /// Settles messages whose effect is durable. It cannot fail: a message whose settlement is lost comes again and
    /// is a duplicate then.
    async fn settle(&self, done: Vec<Decided<Self::Message>>);
}
