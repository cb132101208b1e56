//! How a message leaves the queue from which it was consumed, and why it is parked.

use super::{check_schedule::CheckDelay, dead_letter::Reason, retry::Step};

/// The way in which a message leaves the queue from which it was consumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settlement {
    /// Acknowledge: the effect of the message is committed, now or earlier.
    Ack,
    /// Publish a confirmed copy to another queue, then acknowledge.
    Forward(Destination),
}

/// The destination of a message that is not finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Destination {
    /// The delay queue of this retry step. The message returns automatically.
    Retry(Step),
    /// The delay queue of the next check. The message returns automatically.
    Check(CheckDelay),
    /// The end of the check queue, for checks that exceeded the available time.
    CheckQueue,
    /// The dead queue: the message is parked for a person.
    Dead(Reason),
}

impl Destination {
    /// Returns the destination's name in counts: the label of the reason, `retry` or `check`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Retry(_) => "retry",
            Self::Check(_) | Self::CheckQueue => "check",
            Self::Dead(reason) => reason.label(),
        }
    }
}
