//! How a message leaves the queue that it was consumed from, and why it is parked.

use super::{check_schedule::CheckDelay, dead_letter::Reason, retry::Step};

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
