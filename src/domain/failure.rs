//! Failures of dependencies and of batches, and the error classes on which every decision about retries depends.

use std::fmt;

/// A dependency of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dependency {
    /// The database that contains the ledger.
    Ledger,
    /// RabbitMQ: the connections, and the queues that are required.
    Broker,
    /// The payment source.
    PayStatus,
}

impl Dependency {
    /// All dependencies.
    pub const ALL: [Self; 3] = [Self::Ledger, Self::Broker, Self::PayStatus];

    /// Returns the dependency's label in metrics.
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

/// An outage: a dependency does not work for any message. No attempt is charged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{dependency}: {reason}")]
pub struct Outage {
    /// The dependency that does not work.
    pub dependency: Dependency,
    /// The observed failure, for people.
    pub reason: String,
}

/// The class of an error. Every error type determines its class in an exhaustive match beside the type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The dependency does not work. No message caused the error.
    Outage,
    /// A message causes the error, and always will.
    Permanent,
    /// Another transaction holds a row that a message needs.
    Locked,
    /// The error may pass, or its cause is not known. The batch is retried, then split until the failing message is
    /// alone.
    Transient,
}

/// Why a batch failed as a whole. It may have been committed nevertheless (its response was lost, or a step after the
/// commit failed): then its messages are duplicates at the next delivery.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// A dependency is down, read-only or full, or does not respond in time.
    #[error(transparent)]
    Outage(#[from] Outage),
    /// The ledger refuses something in the batch, and will refuse it again.
    #[error("{0}")]
    Refused(String),
    /// Another transaction holds a row that the batch needs, and did not release it in time.
    #[error("{0}")]
    Locked(String),
    /// The batch failed for a reason that may pass, or that cannot be distinguished from one.
    #[error("{0}")]
    Transient(String),
}
