//! The outcomes of a points message, and how each is settled (`docs/concepts/delivery.md`).

use super::{
    credit::{RecordedCredit, Verdict},
    malformed::Malformed,
    retry::{RetryPolicy, Step},
    settlement::{Destination, Settlement},
};
use crate::domain::dead_letter::Reason;

/// The outcome of one points message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The payment ID was new, and is credited.
    Credited,
    /// The ledger contains the payment ID with the same user and points.
    Duplicate {
        /// See [`RecordedCredit::checked`].
        checked: bool,
    },
    /// The ledger contains the payment ID with another user or other points: both versions are kept.
    Conflict(RecordedCredit),
    /// The body contains no valid credit.
    Malformed(Malformed),
    /// The ledger refuses this message permanently, with the reason.
    Rejected(String),
    /// The message failed alone for a reason that may pass, while other messages were committed.
    Retry {
        /// The delayed retry that the message takes next.
        step: Step,
        /// The reason of the failure.
        error: String,
    },
    /// The message failed alone for a reason that may pass, and its retries are used up.
    Exhausted {
        /// The reason of the last failure.
        error: String,
    },
}

impl From<Verdict> for Outcome {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Credited => Self::Credited,
            Verdict::Duplicate { checked } => Self::Duplicate { checked },
            Verdict::Conflict(standing) => Self::Conflict(standing),
        }
    }
}

impl Outcome {
    /// All labels, in the order in which reports show them.
    pub const LABELS: [&'static str; 7] =
        ["credited", "duplicate", "conflict", "malformed", "rejected", "retry", "exhausted"];

    /// Returns the outcome of a message that failed alone for a reason that may pass, after `taken` delayed retries.
    pub fn after_failure(error: String, taken: u32, policy: &RetryPolicy) -> Self {
        match policy.next(taken) {
            Some(step) => Self::Retry { step, error },
            None => Self::Exhausted { error },
        }
    }

    /// Returns the outcome's name in metrics, logs and counts: one of [`Outcome::LABELS`].
    pub fn label(&self) -> &'static str {
        match self {
            Self::Credited => "credited",
            Self::Duplicate { .. } => "duplicate",
            Self::Conflict(_) => "conflict",
            Self::Malformed(_) => "malformed",
            Self::Rejected(_) => "rejected",
            Self::Retry { .. } => "retry",
            Self::Exhausted { .. } => "exhausted",
        }
    }

    /// Returns whether a check of the payment is scheduled. A message that is retried schedules none yet; neither does
    /// one whose payment another message has credited.
    pub fn schedules_check(&self) -> bool {
        match self {
            Self::Credited | Self::Rejected(_) | Self::Exhausted { .. } => true,
            Self::Duplicate { checked } => !checked,
            Self::Conflict(_) | Self::Malformed(_) | Self::Retry { .. } => false,
        }
    }

    /// Decides how the message is settled.
    pub fn settlement(&self) -> Settlement {
        let dead = |reason| Settlement::Forward(Destination::Dead(reason));
        match self {
            Self::Credited | Self::Duplicate { .. } => Settlement::Ack,
            Self::Conflict(_) => dead(Reason::Conflict),
            Self::Malformed(_) => dead(Reason::Malformed),
            Self::Rejected(_) => dead(Reason::Rejected),
            Self::Retry { step, .. } => Settlement::Forward(Destination::Retry(*step)),
            Self::Exhausted { .. } => dead(Reason::Exhausted),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        malformed::{Field, Problem},
        retry::Delay,
    };

    #[test]
    fn each_outcome_has_its_label_and_its_settlement() {
        let standing = RecordedCredit { user_id: "u".into(), points: 5, checked: false };
        let malformed = Malformed { field: Field::Body, problem: Problem::NotAnObject };
        let policy = RetryPolicy::new(vec![Delay::parse("5s").unwrap()]);
        let step = policy.next(0).unwrap();
        let dead = |reason| Settlement::Forward(Destination::Dead(reason));
        let table = [
            (Outcome::Credited, "credited", Settlement::Ack),
            (Outcome::Duplicate { checked: false }, "duplicate", Settlement::Ack),
            (Outcome::Conflict(standing), "conflict", dead(Reason::Conflict)),
            (Outcome::Malformed(malformed), "malformed", dead(Reason::Malformed)),
            (Outcome::Rejected("no".into()), "rejected", dead(Reason::Rejected)),
            (
                Outcome::after_failure("perhaps".into(), 0, &policy),
                "retry",
                Settlement::Forward(Destination::Retry(step)),
            ),
            (Outcome::after_failure("perhaps".into(), 1, &policy), "exhausted", dead(Reason::Exhausted)),
        ];
        assert_eq!(table.len(), Outcome::LABELS.len());
        for ((outcome, label, settlement), listed) in table.iter().zip(Outcome::LABELS) {
            assert_eq!(outcome.label(), *label);
            assert_eq!(outcome.label(), listed);
            assert_eq!(outcome.settlement(), *settlement);
        }
    }
}
