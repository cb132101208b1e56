//! The table of outcomes of a points message (`docs/concepts/delivery.md`).

use super::{
    credit::{RecordedCredit, Verdict},
    malformed::Malformed,
    retry::{RetryPolicy, Step},
    settlement::{Destination, Settlement},
};
use crate::domain::dead_letter::Reason;

/// What became of one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// New payment id: credited.
    Credited,
    /// Same payment id, user and points as in the ledger.
    Duplicate {
        /// As in [`RecordedCredit::checked`].
        checked: bool,
    },
    /// Same payment id, another user or other points: both versions are kept.
    Conflict(RecordedCredit),
    /// No credit can be read from the body.
    Malformed(Malformed),
    /// The ledger refuses this one message, now and later; why.
    Rejected(String),
    /// It failed alone for a reason that may pass, while something else was committed.
    Retry {
        /// The delayed retry that it takes next.
        step: Step,
        /// Why it failed.
        error: String,
    },
    /// The same, and no delayed retry is left.
    Exhausted {
        /// Why it failed the last time.
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
    /// Every label, in the order in which people want to read them.
    pub const LABELS: [&'static str; 7] =
        ["credited", "duplicate", "conflict", "malformed", "rejected", "retry", "exhausted"];

    /// Of a message that failed alone for a reason that may pass, after `taken` delayed retries.
    pub fn after_failure(error: String, taken: u32, policy: &RetryPolicy) -> Self {
        match policy.next(taken) {
            Some(step) => Self::Retry { step, error },
            None => Self::Exhausted { error },
        }
    }

    /// The outcome's name in metrics, logs and counts: one of [`Outcome::LABELS`].
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

    /// Whether a check of the payment is scheduled. Not of a message that comes again by itself, nor of one whose payment
    /// another message has credited.
    pub fn schedules_check(&self) -> bool {
        match self {
            Self::Credited | Self::Rejected(_) | Self::Exhausted { .. } => true,
            Self::Duplicate { checked } => !checked,
            Self::Conflict(_) | Self::Malformed(_) | Self::Retry { .. } => false,
        }
    }

    /// How the message is settled: the whole table.
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
