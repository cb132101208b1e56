//! Events of checks and notifications, and of the credits that they concern.

use super::{
    Event,
    messages::{Age, count_messages, record_ages},
    seconds, tally,
};
use crate::{
    domain::{
        check::{Check, CheckStep, Checked},
        check_outcome::CheckOutcome,
        component::Component,
        ids::PaymentId,
    },
    observe::metrics::{self, Work},
};
use std::time::Duration;
use tracing::{debug, info, warn};

/// A transaction of checks was committed.
pub struct ChecksCommitted<'a> {
    /// The checks of the transaction.
    pub checks: &'a [Check],
    /// The result of each check.
    pub checked: &'a [Checked],
    /// The duration of the transaction.
    pub took: Duration,
}

impl Event for ChecksCommitted<'_> {
    /// Logs one line for each payment whose points have changed.
    fn emit(self) {
        let (mut credited, mut reversed) = (0, 0);
        for (check, Checked { step, user_id, points, .. }) in self.checks.iter().zip(self.checked) {
            let (payment_id, step_label) = (check.payment_id.as_str(), step.label());
            match step {
                CheckStep::LateCredit | CheckStep::Reinstate => credited += points.unsigned_abs(),
                CheckStep::Expire | CheckStep::Reverse => reversed += points.unsigned_abs(),
                // Credited and reversed in one transaction: the balance has not changed.
                CheckStep::Void => {}
                CheckStep::Verify | CheckStep::Recheck | CheckStep::None | CheckStep::Dead(_) => continue,
            }
            let reason = &*check.reason(*step);
            info!(step = step_label, payment_id, user_id, points, reason, "ledger corrected");
        }
        metrics::POINTS_CREDITED.add([], credited);
        metrics::POINTS_REVERSED.add([], reversed);
        metrics::COMMIT_DURATION.record([Work::Checks.label()], [self.took.as_secs_f64()]);
        debug!(size = self.checks.len(), took_seconds = seconds(self.took), "checks committed");
    }
}

/// The outcomes of a batch of checks or notifications are durable, and its messages are settled next.
pub struct ChecksSettled<O, A> {
    /// The component that consumed the batch.
    pub component: Component,
    /// The outcome of each message.
    pub outcomes: O,
    /// The age of each message that has a timestamp. The ages of checks are not recorded: a check is late by design.
    pub ages: A,
}

impl<'a, O: Iterator<Item = &'a CheckOutcome> + Clone, A: Iterator<Item = Age>> Event for ChecksSettled<O, A> {
    fn emit(self) {
        let decisions = self.outcomes.clone().filter_map(CheckOutcome::decision);
        for ([status, step], count) in tally(decisions.map(|(status, step)| [status.label(), step.label()])) {
            metrics::CHECKS.add([status, step], count);
        }
        let queue = self.component.label();
        if self.component == Component::Checks {
            return count_messages(queue, self.outcomes.map(CheckOutcome::label));
        }
        count_messages(queue, self.outcomes.map(CheckOutcome::label_on_arrival));
        record_ages(self.ages);
    }
}

/// A message of a producer, or of an earlier version, came through a check delay queue. Logged once for each queue.
pub struct CheckQueueBound<'a> {
    /// The check delay queue.
    pub queue: &'a str,
}

impl Event for CheckQueueBound<'_> {
    fn emit(self) {
        warn!(
            queue = self.queue,
            "a message that an earlier version published, or that a leftover binding routed, came through this check delay queue \
             and is checked; `pointsd topology declare` removes the binding of an earlier version"
        );
    }
}

/// A malformed message in the check queue that no daemon has sent is acknowledged: its own queue parks it.
pub struct CheckIgnored<'a> {
    /// The identification of the message.
    pub message_id: &'a str,
    /// The payment, if it can be read.
    pub payment_id: Option<&'a PaymentId>,
    /// The reason why the message is malformed.
    pub error: &'a str,
}

impl Event for CheckIgnored<'_> {
    fn emit(self) {
        info!(
            message_id = self.message_id,
            payment_id = self.payment_id.map(PaymentId::as_str),
            error = self.error,
            "malformed message in the check queue acknowledged"
        );
    }
}

/// The ledger could not record which credits a person must decide about.
pub struct ParkedNotNoted<'a> {
    /// The number of payments.
    pub payments: usize,
    /// The reason.
    pub error: &'a str,
}

impl Event for ParkedNotNoted<'_> {
    fn emit(self) {
        debug!(payments = self.payments, error = self.error, "parked payments not recorded in the ledger");
    }
}

/// A notification was settled and may have had no effect.
pub struct NotificationWithoutEffect<'a> {
    /// The notification source.
    pub component: Component,
    /// The payment of the notification.
    pub payment_id: &'a PaymentId,
    /// The outcome of the notification.
    pub outcome: &'a CheckOutcome,
}

impl Event for NotificationWithoutEffect<'_> {
    /// Logs a line if the notification had no effect and no check follows: no other line gives the reason.
    fn emit(self) {
        let why = match self.outcome {
            CheckOutcome::Checked { status, step: CheckStep::None, next: None } => status.label(),
            CheckOutcome::Ignored => "gives no points",
            _ => return,
        };
        info!(
            source = self.component.label(),
            payment_id = self.payment_id.as_str(),
            why,
            "notification without effect"
        );
    }
}

/// The credits that no check has found paid were counted.
pub struct Unverified {
    /// The number of unverified credits.
    pub unverified: i64,
    /// The number of unverified credits that are overdue.
    pub overdue: i64,
}

impl Event for Unverified {
    #[allow(clippy::cast_precision_loss, reason = "at most a million")]
    fn emit(self) {
        metrics::UNVERIFIED_CREDITS.set([], self.unverified as f64);
        metrics::OVERDUE_CREDITS.set([], self.overdue as f64);
    }
}

/// A SIGHUP asked for the release of the brake.
pub struct BrakeReleased {
    /// Whether the brake was engaged.
    pub engaged: bool,
}

impl Event for BrakeReleased {
    fn emit(self) {
        if self.engaged {
            info!("SIGHUP received: brake released, checks resume");
        } else {
            info!(
                "SIGHUP received: no brake is engaged; nothing changes (the configuration is read only at the start)"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::{
            check_schedule::CheckPolicy,
            dead_letter::Reason,
            retry::{Delay, RetryPolicy},
            status::PaymentStatus,
        },
        observe::metrics::rendered_after,
    };

    fn every_outcome() -> Vec<CheckOutcome> {
        let retries = RetryPolicy::new(vec![Delay::parse("5s").unwrap()]);
        let error = || "why".to_owned();
        let checked = |step| CheckOutcome::Checked { status: PaymentStatus::Paid, step, next: None };
        let parked = |status, reason| CheckOutcome::Parked { status, reason, error: error() };
        vec![
            checked(CheckStep::LateCredit),
            checked(CheckStep::Verify),
            checked(CheckStep::Reinstate),
            CheckOutcome::Misspelt { status: PaymentStatus::Paid, step: CheckStep::Reverse },
            CheckOutcome::Begins(CheckPolicy::default().beginning()),
            parked(PaymentStatus::Closed, Reason::Unpaid),
            parked(PaymentStatus::Pending, Reason::Expired),
            parked(PaymentStatus::Unrecognised, Reason::Unrecognised),
            CheckOutcome::Malformed(error()),
            CheckOutcome::Unreadable(error()),
            CheckOutcome::Ignored,
            CheckOutcome::Conflict { error: error(), decision: None },
            CheckOutcome::Rejected(error()),
            CheckOutcome::after_failure(error(), 0, &retries),
            CheckOutcome::after_failure(error(), 1, &retries),
        ]
    }

    #[test]
    fn every_outcome_of_a_check_or_a_notification_is_counted() {
        let outcomes = every_outcome();
        for component in [Component::Checks, Component::Source("trade")] {
            let text = rendered_after(|| {
                ChecksSettled { component, outcomes: outcomes.iter(), ages: std::iter::empty() }.emit();
            });
            let queue = format!("pointsd_messages_total{{queue=\"{}\"", component.label());
            let counts = text.lines().filter(|line| line.starts_with(&queue));
            let counted: usize = counts.map(|line| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap()).sum();
            assert_eq!(counted, outcomes.len(), "{text}");
            let steps = "pointsd_checks_total{status=\"closed\",step=\"dead\"} 1";
            assert!(text.lines().any(|line| line == steps), "{text}");
        }
    }
}
