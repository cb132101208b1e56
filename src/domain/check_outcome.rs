//! The outcomes of checks and notifications, and how each is settled.

use super::{
    check::CheckStep,
    retry::{RetryPolicy, Step},
    settlement::{Destination, Settlement},
};
use crate::domain::{check_schedule::CheckDelay, dead_letter::Reason, status::PaymentStatus};

/// The outcome of a check or a notification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckOutcome {
    /// The step is applied.
    Checked {
        /// The status of the payment.
        status: PaymentStatus,
        /// The step that was applied.
        step: CheckStep,
        /// The delay before the next check, if there is one.
        next: Option<CheckDelay>,
    },
    /// The message has the payment ID in another spelling than the payment's record, and the credit does not count or
    /// no longer counts.
    Misspelt {
        /// The status of the payment.
        status: PaymentStatus,
        /// The step that was applied.
        step: CheckStep,
    },
    /// The payment was not looked up yet: its checks begin after this delay.
    Begins(CheckDelay),
    /// The message is parked for a person to decide.
    Parked {
        /// The status of the payment.
        status: PaymentStatus,
        /// The reason.
        reason: Reason,
        /// The reason as a text for people.
        error: String,
    },
    /// The message cannot be parsed, and its own queue has parked it already.
    Malformed(String),
    /// The message cannot be parsed, and no other consumer has parked it.
    Unreadable(String),
    /// A notification that requires no action: it has another type, or its payment gives no points.
    Ignored,
    /// The payment's own record contradicts the message.
    Conflict {
        /// The contradiction.
        error: String,
        /// The status of the payment and the step, where the ledger was changed to match the record nevertheless.
        decision: Option<(PaymentStatus, CheckStep)>,
    },
    /// The message is refused permanently, with the reason.
    Rejected(String),
    /// The message failed alone for a reason that may pass, while other messages succeeded.
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

impl CheckOutcome {
    /// All labels of checks, in the order in which reports show them.
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

    /// All labels of notifications, which may credit at once: the values of [`CheckOutcome::label_on_arrival`].
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

    /// Returns the outcome of a check that failed alone for a reason that may pass, after `taken` delayed retries.
    pub fn after_failure(error: String, taken: u32, policy: &RetryPolicy) -> Self {
        match policy.next(taken) {
            Some(step) => Self::Retry { step, error },
            None => Self::Exhausted { error },
        }
    }

    /// Returns the outcome's name in metrics: one of [`CheckOutcome::LABELS`].
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

    /// Returns the outcome's name in metrics for a notification: one of [`CheckOutcome::LABELS_ON_ARRIVAL`].
    pub fn label_on_arrival(&self) -> &'static str {
        match self {
            Self::Checked { step: CheckStep::LateCredit, .. } => "credited",
            Self::Checked { step: CheckStep::Verify, .. } => "duplicate",
            other => other.label(),
        }
    }

    /// Returns the status and the step to count, where the payment was looked up and a step was decided.
    pub fn decision(&self) -> Option<(PaymentStatus, CheckStep)> {
        match self {
            Self::Checked { status, step, .. } | Self::Misspelt { status, step } => Some((*status, *step)),
            Self::Parked { status, reason, .. } => Some((*status, CheckStep::Dead(*reason))),
            Self::Conflict { decision, .. } => *decision,
            _ => None,
        }
    }

    /// Returns the error text for people, where the outcome is an error.
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

    /// Decides how the message is settled.
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
