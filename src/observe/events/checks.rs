//! What becomes of checks, and of the credits that they concern.

#![allow(clippy::disallowed_macros, reason = "this is the place for them")]

use super::messages::{Age, count_messages, record_ages};
use crate::{
    domain::{
        check::{Check, CheckStep, Checked},
        check_outcome::CheckOutcome,
        component::Component,
        ids::PaymentId,
        status::PaymentStatus,
    },
    observe::metrics as names,
};
use ::metrics::{counter, gauge};
use std::time::Duration;
use tracing::{debug, info, warn};

/// A transaction of checks was committed.
pub struct ChecksCommitted<'a> {
    /// What was in it.
    pub checks: &'a [Check],
    /// What was done about each.
    pub checked: &'a [Checked],
    /// How long the ledger took.
    pub took: Duration,
}

impl ChecksCommitted<'_> {
    /// Tells of it: a line for each payment whose points have moved.
    pub fn emit(self) {
        let (mut credited, mut reversed) = (0, 0);
        for (check, Checked { step, user_id, points, .. }) in self.checks.iter().zip(self.checked) {
            let (payment_id, step_label) = (check.payment_id.as_str(), step.label());
            match step {
                CheckStep::LateCredit | CheckStep::Reinstate => credited += points.unsigned_abs(),
                CheckStep::Expire | CheckStep::Reverse => reversed += points.unsigned_abs(),
                // Credited and reversed at once: nobody's balance has moved.
                CheckStep::Void => {}
                CheckStep::Verify | CheckStep::Recheck | CheckStep::None | CheckStep::Dead(_) => continue,
            }
            let reason = &*check.reason(*step);
            info!(step = step_label, payment_id, user_id, points, reason, "ledger corrected");
        }
        counter!(names::POINTS_CREDITED).increment(credited);
        counter!(names::POINTS_REVERSED).increment(reversed);
        debug!(size = self.checks.len(), took = ?self.took, "checks committed");
    }
}

/// The outcomes of a batch of checks, or of notifications, are durable, and its messages are about to be settled.
pub struct ChecksSettled<O, A> {
    /// Of which queue.
    pub component: Component,
    /// Of each message.
    pub outcomes: O,
    /// The age of each message that has a timestamp. A check has none that counts: it comes late by design.
    pub ages: A,
}

impl<'a, O: Iterator<Item = &'a CheckOutcome> + Clone, A: Iterator<Item = Age>> ChecksSettled<O, A> {
    /// Tells of it.
    pub fn emit(self) {
        let mut steps: Vec<(PaymentStatus, &'static str, u64)> = Vec::new();
        for (status, step) in self.outcomes.clone().filter_map(CheckOutcome::decision) {
            let step = step.label();
            match steps.iter_mut().find(|(of, label, _)| (*of, *label) == (status, step)) {
                Some((_, _, count)) => *count += 1,
                None => steps.push((status, step, 1)),
            }
        }
        for (status, step, count) in steps {
            counter!(names::CHECKS, "status" => status.label(), "step" => step).increment(count);
        }
        let queue = self.component.label();
        if self.component == Component::Checks {
            return count_messages(queue, &CheckOutcome::LABELS, self.outcomes.map(CheckOutcome::label));
        }
        count_messages(queue, &CheckOutcome::LABELS_ON_ARRIVAL, self.outcomes.map(CheckOutcome::label_on_arrival));
        record_ages(self.ages);
    }
}

/// Producers' messages come through a check delay queue that an earlier build bound to an exchange. Logged once for each
/// queue.
pub struct CheckQueueBound<'a> {
    /// Which queue.
    pub queue: &'a str,
}

impl CheckQueueBound<'_> {
    /// Writes the log line.
    pub fn emit(self) {
        warn!(
            queue = self.queue,
            "a message of an earlier version, or of a binding that it has left behind, came through this check delay queue, and is checked; \
             `pointsd topology declare` removes the binding of an earlier version"
        );
    }
}

/// A message in the check queue that no daemon has sent, and that cannot be read: it is acknowledged, because its own
/// queue parks it.
pub struct CheckIgnored<'a> {
    /// What it can be found by.
    pub message_id: &'a str,
    /// Its payment, where it could be read.
    pub payment_id: Option<&'a PaymentId>,
    /// What is wrong with it.
    pub error: &'a str,
}

impl CheckIgnored<'_> {
    /// Writes the log line.
    pub fn emit(self) {
        info!(
            message_id = self.message_id,
            payment_id = self.payment_id.map(PaymentId::as_str),
            error = self.error,
            "malformed message in the check queue acknowledged"
        );
    }
}

/// The ledger could not be told which credits a person must decide about.
pub struct ParkedNotNoted<'a> {
    /// How many payments.
    pub payments: usize,
    /// Why.
    pub error: &'a str,
}

impl ParkedNotNoted<'_> {
    /// Writes the log line.
    pub fn emit(self) {
        debug!(payments = self.payments, error = self.error, "parked payments not noted in the ledger");
    }
}

/// A notification was settled.
pub struct NotificationWithoutEffect<'a> {
    /// Of which source.
    pub component: Component,
    /// Its payment.
    pub payment_id: &'a PaymentId,
    /// What became of it.
    pub outcome: &'a CheckOutcome,
}

impl NotificationWithoutEffect<'_> {
    /// Writes a log line if nothing has come of it and nothing more will: otherwise no one could tell why.
    pub fn emit(self) {
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

/// Credits that no check has found paid.
pub struct Unverified {
    /// Their number.
    pub unverified: i64,
    /// How many of them should have been verified or reversed by now.
    pub overdue: i64,
}

impl Unverified {
    /// Sets the metrics.
    #[allow(clippy::cast_precision_loss, reason = "at most a million")]
    pub fn emit(self) {
        gauge!(names::UNVERIFIED_CREDITS).set(self.unverified as f64);
        gauge!(names::OVERDUE_CREDITS).set(self.overdue as f64);
    }
}

/// Somebody has released the brake, or tried to.
pub struct BrakeReleased {
    /// Whether it was engaged.
    pub engaged: bool,
}

impl BrakeReleased {
    /// Tells of it.
    pub fn emit(self) {
        if self.engaged {
            info!("SIGHUP: the brake is released, checks go on");
        } else {
            info!("SIGHUP: no brake is engaged, nothing changes (the configuration is read at the start only)");
        }
    }
}
