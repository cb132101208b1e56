//! Dead letters: messages in the dead queue, which a person must inspect.

use jiff::Timestamp;
use serde::Serialize;

/// The reason of a message that the broker moved at its delivery limit. The daemon never gives this reason.
pub const DELIVERY_LIMIT: &str = "delivery_limit";

/// The reason of a message that does not give one: another program published it to the dead queue.
pub const UNKNOWN: &str = "unknown";

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

/// What a message in the dead queue says about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DeadLetter {
    /// Why it was parked: `x-pointsd-reason`, [`DELIVERY_LIMIT`] or [`UNKNOWN`].
    pub reason: String,
    /// The payment in its body, if it can be read; for a check message with one check the payment of that check.
    pub payment_id: Option<String>,
    /// The payments of a check message with several checks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub payment_ids: Vec<String>,
    /// The message ID.
    pub message_id: Option<String>,
    /// The time of the first failure, or of the move by the broker.
    pub first_failed_at: Option<Timestamp>,
    /// The number of delayed retries before it was parked.
    pub attempts: u32,
    /// The queue from which it was consumed, and to which `dead requeue` sends it.
    pub source_queue: Option<String>,
    /// The error that it was parked with.
    pub error: Option<String>,
    /// For a conflict: the credit that the ledger had when the message was parked.
    pub ledger: Option<LedgerVersion>,
    /// The run of `dead requeue` that sent it last.
    pub requeue_id: Option<String>,
}

/// The credit of a conflicting payment in the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LedgerVersion {
    /// The user.
    pub user_id: String,
    /// The points.
    pub points: i64,
}

impl DeadLetter {
    /// Whether the message is about this payment.
    pub fn concerns(&self, payment_id: &str) -> bool {
        self.payment_id.as_deref() == Some(payment_id) || self.payment_ids.iter().any(|id| id == payment_id)
    }

    /// Its payment; for several payments the first one and the number of the others.
    pub fn payments(&self) -> Option<String> {
        match self.payment_ids.as_slice() {
            [] => self.payment_id.clone(),
            [first, ..] => Some(format!("{first} and {} more", self.payment_ids.len() - 1)),
        }
    }
}
