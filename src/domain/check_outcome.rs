//! What becomes of a check, or of a notification, and how it is settled.

use super::{
    check::CheckStep,
    retry::{RetryPolicy, Step},
    settlement::{Destination, Settlement},
};
use crate::domain::{check_schedule::CheckDelay, dead_letter::Reason, status::PaymentStatus};

/// What became of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckOutcome {
    /// The step is done.
    Checked {
        /// What the source said.
        status: PaymentStatus,
        /// What was done.
        step: CheckStep,
        /// When it is checked again, if it is.
        next: Option<CheckDelay>,
    },
    /// The message wrote the payment's id in another spelling than its record does, and the credit does not count (any
    /// more).
    Misspelt {
        /// What the source said.
        status: PaymentStatus,
        /// What was done.
        step: CheckStep,
    },
    /// Nothing was looked up yet: its checks begin with this wait.
    Begins(CheckDelay),
    /// A person decides.
    Parked {
        /// What the source said.
        status: PaymentStatus,
        /// Why.
        reason: Reason,
        /// In words.
        error: String,
    },
    /// It cannot be read, and its own queue has parked it already.
    Malformed(String),
    /// It cannot be read, and nothing else has parked it.
    Unreadable(String),
    /// A notification that asks for nothing: it is of another kind, or its payment gives no points.
    Ignored,
    /// The payment's own record contradicts the message.
    Conflict {
        /// How.
        error: String,
        /// What the source said and what was done, where the ledger was brought to agree with it all the same.
        decision: Option<(PaymentStatus, CheckStep)>,
    },
    /// It is refused now and later; why.
    Rejected(String),
    /// It failed alone for a reason that may pass, while something else worked.
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

impl CheckOutcome {
    /// Every label, in the order in which people want to read them.
    pub const LABELS: [&'static str; 10] = [
        "checked",
        "ignored",
        "retry",
        "malformed",
        "conflict",
        "rejected",
        "exhausted",
        "unpaid",
        "expired",
        "unrecognised",
    ];

    /// The same for notifications, which may credit at once: one of [`CheckOutcome::label_on_arrival`].
    pub const LABELS_ON_ARRIVAL: [&'static str; 12] = [
        "credited",
        "duplicate",
        "checked",
        "ignored",
        "retry",
        "malformed",
        "conflict",
        "rejected",
        "exhausted",
        "unpaid",
        "expired",
        "unrecognised",
    ];

    /// Of a check that failed alone for a reason that may pass, after `taken` delayed retries.
    pub fn after_failure(error: String, taken: u32, policy: &RetryPolicy) -> Self {
        match policy.next(taken) {
            Some(step) => Self::Retry { step, error },
            None => Self::Exhausted { error },
        }
    }

    /// Its name in metrics: one of [`CheckOutcome::LABELS`].
    pub fn label(&self) -> &'static str {
        match self {
            Self::Checked { .. } | Self::Begins(_) => "checked",
            Self::Parked { reason, .. } => reason.label(),
            Self::Malformed(_) | Self::Unreadable(_) => "malformed",
            Self::Ignored => "ignored",
            Self::Misspelt { .. } | Self::Conflict { .. } => "conflict",
            Self::Rejected(_) => "rejected",
            Self::Retry { .. } => "retry",
            Self::Exhausted { .. } => "exhausted",
        }
    }

    /// Its name in metrics where it is that of a notification.
    pub fn label_on_arrival(&self) -> &'static str {
        match self {
            Self::Checked { step: CheckStep::LateCredit, .. } => "credited",
            Self::Checked { step: CheckStep::Verify, .. } => "duplicate",
            other => other.label(),
        }
    }

    /// The status and the step that were counted, where the payment was looked up and something was decided.
    pub fn decision(&self) -> Option<(PaymentStatus, CheckStep)> {
        match self {
            Self::Checked { status, step, .. } | Self::Misspelt { status, step } => Some((*status, *step)),
            Self::Parked { status, reason, .. } => Some((*status, CheckStep::Dead(*reason))),
            Self::Conflict { decision, .. } => *decision,
            _ => None,
        }
    }

    /// What is said to a person about it, where something has gone wrong.
    pub fn error(&self) -> Option<&str> {
        match self {
            Self::Checked { .. } | Self::Misspelt { .. } | Self::Begins(_) | Self::Ignored => None,
            Self::Malformed(error)
            | Self::Unreadable(error)
            | Self::Parked { error, .. }
            | Self::Conflict { error, .. }
            | Self::Rejected(error)
            | Self::Retry { error, .. }
            | Self::Exhausted { error } => Some(error),
        }
    }

    /// How it is settled.
    pub fn settlement(&self) -> Settlement {
        let dead = |reason| Settlement::Forward(Destination::Dead(reason));
        match self {
            Self::Checked { next: None, .. } | Self::Misspelt { .. } | Self::Malformed(_) | Self::Ignored => {
                Settlement::Ack
            }
            Self::Checked { next: Some(wait), .. } | Self::Begins(wait) => {
                Settlement::Forward(Destination::Check(*wait))
            }
            Self::Parked { reason, .. } => dead(*reason),
            Self::Unreadable(_) => dead(Reason::Malformed),
            Self::Conflict { .. } => dead(Reason::Conflict),
            Self::Rejected(_) => dead(Reason::Rejected),
            Self::Retry { step, .. } => Settlement::Forward(Destination::Retry(*step)),
            Self::Exhausted { .. } => dead(Reason::Exhausted),
        }
    }
}
