//! Dead letters: messages that are parked in the dead queue for a person to decide.

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
