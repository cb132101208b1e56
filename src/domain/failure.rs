//! What can fail, and what a failure means for messages: the error classes that every decision about retries stands on.

use std::fmt;

/// Something the daemon cannot work without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dependency {
    /// The database with the balances.
    Ledger,
    /// RabbitMQ: its connections, and the queues that are needed.
    Broker,
    /// What knows whether payments are paid.
    PayStatus,
}

impl Dependency {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ledger, Self::Broker, Self::PayStatus];

    /// The metric's label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Ledger => "ledger",
            Self::Broker => "broker",
            Self::PayStatus => "pay_status",
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
    /// A row that a message needs is held by another transaction.
    Locked,
    /// It may pass, or cannot be told: tried again, then split until the message that fails is alone.
    Transient,
}

/// Why a batch failed as a whole. It may be committed all the same (its answer was lost, or what came after the commit
/// failed): then its messages are duplicates the next time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// What it needs is down, read-only, full, or does not answer in time.
    #[error(transparent)]
    Outage(#[from] Outage),
    /// Something in it is refused, and will be again.
    #[error("{0}")]
    Refused(String),
    /// A row that it needs is held by another transaction, and was not released in time.
    #[error("{0}")]
    Locked(String),
    /// It failed for a reason that may pass, or that cannot be told apart from one.
    #[error("{0}")]
    Transient(String),
}
