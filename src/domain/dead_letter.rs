//! Dead letters: messages in the dead queue, which a person must inspect.

/// The reason why a message is in the dead queue: the value of `x-pointsd-reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The message contains no valid credit.
    Malformed,
    /// The ledger contains the payment ID with another user or other points.
    Conflict,
    /// The ledger permanently refuses this message.
    Rejected,
    /// The message failed repeatedly for a reason that may pass, and its retries are used up.
    Exhausted,
    /// The payment is closed, and a person decides (`compensation.on_unpaid = "dead"`).
    Unpaid,
    /// The payment was not paid in time, and a person decides.
    Expired,
    /// The payment has a status that is in none of the configured lists, and its checks are used up.
    Unrecognised,
    /// The AMQP client cannot decode the properties of the message.
    Unreadable,
}

impl Reason {
    /// All reasons.
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

    /// Returns the value of the header and of the metric's label.
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
