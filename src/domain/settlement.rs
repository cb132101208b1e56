//! How a message leaves the queue that it was consumed from, and why it is parked.

use super::{check::CheckDelay, retry::Step};

/// How a message leaves the queue it was consumed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settlement {
    /// Its effect is committed (now or earlier): acknowledge.
    Ack,
    /// A confirmed copy goes to another queue first, then acknowledge.
    Forward(Destination),
}

/// Where a message goes that is not done with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Destination {
    /// The delay queue of this step: it comes back by itself.
    Retry(Step),
    /// The delay queue of the next check: the same.
    Check(CheckDelay),
    /// The end of the check queue: what there was no time for.
    CheckQueue,
    /// The dead queue: parked for a person.
    Dead(Reason),
}

impl Destination {
    /// Its name in counts: that of the reason, `retry` or `check`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Retry(_) => "retry",
            Self::Check(_) | Self::CheckQueue => "check",
            Self::Dead(reason) => reason.label(),
        }
    }
}

/// Why a message lies in the dead queue: the value of `x-pointsd-reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// No credit can be read from it.
    Malformed,
    /// The payment id is in the ledger with another user or other points.
    Conflict,
    /// The ledger refuses this one message for good.
    Rejected,
    /// It failed again and again for a reason that might have passed, and no retry is left.
    Exhausted,
    /// Its payment is closed, and a person decides (`compensation.on_unpaid = "dead"`).
    Unpaid,
    /// Its payment was not paid in time, and a person decides.
    Expired,
    /// Its payment has a status that is in none of the configured lists, and no check is left.
    Unrecognised,
    /// The AMQP client cannot decode its properties.
    Unreadable,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Malformed,
        Self::Conflict,
        Self::Rejected,
        Self::Exhausted,
        Self::Unpaid,
        Self::Expired,
        Self::Unrecognised,
        Self::Unreadable,
    ];

    /// The header's and the metric's value.
    pub fn label(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Conflict => "conflict",
            Self::Rejected => "rejected",
            Self::Exhausted => "exhausted",
            Self::Unpaid => "unpaid",
            Self::Expired => "expired",
            Self::Unrecognised => "unrecognised",
            Self::Unreadable => "unreadable",
        }
    }
}
