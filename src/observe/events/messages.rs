//! What becomes of messages.

#![allow(clippy::disallowed_macros, reason = "this is the place for them")]

use crate::{
    domain::{component::Component, dead_letter::Reason, ids::PaymentId, outcome::Outcome},
    observe::{limit::Limit, metrics as names},
};
use ::metrics::{counter, gauge, histogram};
use std::time::{Duration, SystemTimeError};
use tracing::{debug, warn};

/// A batch failed for a reason that may pass, and is tried again.
pub struct BatchRetried<'a> {
    /// How many messages are in it.
    pub size: usize,
    /// What was said.
    pub reason: &'a str,
    /// How long it waits.
    pub pause: Duration,
}

impl BatchRetried<'_> {
    /// Tells of it.
    pub fn emit(self) {
        debug!(size = self.size, reason = self.reason, pause = ?self.pause, "batch failed, trying again");
    }
}

/// Counts messages by their outcome, once for the whole batch.
pub(super) fn count_messages(
    queue: &'static str,
    labels: &[&'static str],
    outcomes: impl Iterator<Item = &'static str>,
) {
    let mut counts = vec![0_u64; labels.len()];
    for outcome in outcomes {
        // The usual ones come first.
        if let Some(index) = labels.iter().position(|label| *label == outcome) {
            counts[index] += 1;
        }
    }
    for (outcome, count) in labels.iter().zip(counts).filter(|(_, count)| *count > 0) {
        counter!(names::MESSAGES, "queue" => queue, "outcome" => *outcome).increment(count);
    }
}

/// The time since a message's timestamp; an error where that is in the future.
pub type Age = Result<Duration, SystemTimeError>;

/// Records ages, and counts the messages whose clock is ahead of ours: they have none.
pub(super) fn record_ages(ages: impl Iterator<Item = Age>) {
    let (seconds, ahead) = (histogram!(names::END_TO_END_SECONDS), counter!(names::CLOCK_SKEW_MESSAGES));
    for age in ages {
        match age {
            Ok(age) => seconds.record(age),
            Err(_) => ahead.increment(1),
        }
    }
}

/// The outcomes of a batch of credits are durable, and its messages are about to be settled.
pub struct CreditsSettled<O, A> {
    /// Of which queue.
    pub component: Component,
    /// Of each message.
    pub outcomes: O,
    /// The age of each message that has a timestamp.
    pub ages: A,
}

impl<'a, O: Iterator<Item = &'a Outcome>, A: Iterator<Item = Age>> CreditsSettled<O, A> {
    /// Tells of it.
    pub fn emit(self) {
        count_messages(self.component.label(), &Outcome::LABELS, self.outcomes.map(Outcome::label));
        record_ages(self.ages);
    }
}

/// A confirmed copy of a message stands in the dead queue.
pub struct MessageParked<'a> {
    /// Why.
    pub reason: Reason,
    /// Its payment, where it could be read.
    pub payment_id: Option<&'a PaymentId>,
    /// What it can be found by.
    pub message: &'a str,
    /// What happened.
    pub error: &'a str,
}

impl MessageParked<'_> {
    /// Tells of it.
    pub fn emit(self) {
        counter!(names::DEAD_LETTERED, "reason" => self.reason.label()).increment(1);
        let Some(suppressed) = PARKED.admit() else { return };
        if suppressed > 0 {
            warn!(messages = suppressed, "further messages parked");
        }
        warn!(
            reason = self.reason.label(),
            payment_id = self.payment_id.map(PaymentId::as_str),
            message_id = self.message,
            error = self.error,
            "message parked"
        );
    }
}

/// A producer with a defect parks thousands of messages.
static PARKED: Limit = Limit::new(10);

/// So does a locked row delay them.
static DELAYED: Limit = Limit::new(10);

/// Logs how many messages were parked or delayed without a line, once the second in which that happened is over.
pub(super) fn report_suppressed() {
    if let Some(suppressed) = PARKED.overdue() {
        warn!(messages = suppressed, "further messages parked");
    }
    if let Some(suppressed) = DELAYED.overdue() {
        warn!(messages = suppressed, "further messages delayed");
    }
}

/// A confirmed copy of a message stands in a delay queue.
pub struct MessageDelayed<'a> {
    /// Which delayed retry it is, counted from 1.
    pub attempt: u32,
    /// How long it waits, as configured.
    pub delay: &'a str,
    /// Its payment.
    pub payment_id: Option<&'a PaymentId>,
    /// What it can be found by.
    pub message: &'a str,
    /// What happened.
    pub error: &'a str,
}

impl MessageDelayed<'_> {
    /// Tells of it.
    pub fn emit(self) {
        let Some(suppressed) = DELAYED.admit() else { return };
        if suppressed > 0 {
            warn!(messages = suppressed, "further messages delayed");
        }
        warn!(
            attempt = self.attempt,
            delay = self.delay,
            payment_id = self.payment_id.map(PaymentId::as_str),
            message_id = self.message,
            error = self.error,
            "message delayed"
        );
    }
}

/// How many deliveries are taken and not settled.
pub struct InFlight {
    /// Of which queue.
    pub component: Component,
    /// Their number.
    pub deliveries: usize,
}

impl InFlight {
    /// Tells of it.
    pub fn emit(self) {
        #[allow(clippy::cast_precision_loss, reason = "at most the prefetch")]
        gauge!(names::IN_FLIGHT, "queue" => self.component.label()).set(self.deliveries as f64);
    }
}

/// Unsettled deliveries went back to their queue.
pub struct GaveBack {
    /// How many; `None` when the broker did not answer in time, and takes them back as the connection ends.
    pub deliveries: Option<usize>,
}

impl GaveBack {
    /// Tells of it.
    pub fn emit(self) {
        match self.deliveries {
            Some(0) => {}
            Some(deliveries) => debug!(deliveries, "unsettled deliveries given back"),
            None => debug!("unsettled deliveries given back by ending the connection"),
        }
    }
}

/// Checks were held for so long that the broker might take them back.
pub struct HeldTooLong<'a> {
    /// Of which queue.
    pub queue: &'a str,
}

impl HeldTooLong<'_> {
    /// Writes the log line.
    pub fn emit(self) {
        warn!(
            queue = self.queue,
            "checks take long: deliveries given back, one message is held at a time until they are faster"
        );
    }
}

/// A queue that is needed was gone.
pub struct QueueGone<'a> {
    /// Which queue, or exchange.
    pub subject: &'a str,
    /// What its disappearance means, and what to do.
    pub lost: &'static str,
}

impl QueueGone<'_> {
    /// Writes the log line.
    pub fn emit(self) {
        warn!(subject = self.subject, "gone from the broker, and declared again, empty: {}", self.lost);
    }
}

/// A check queue exists, and this daemon schedules no checks.
pub struct ChecksNotScheduled<'a> {
    /// Which queue.
    pub queue: &'a str,
}

impl ChecksNotScheduled<'_> {
    /// Writes the log line.
    pub fn emit(self) {
        warn!(
            queue = self.queue,
            "the check queue exists, but pay_status.source is \"none\": what this daemon credits is not checked; all daemons \
             of a credit queue must have the same payment source"
        );
    }
}

/// A broker that takes `x-death` headers from clients.
pub struct TrustsXDeath<'a> {
    /// Its version.
    pub version: &'a str,
}

impl TrustsXDeath<'_> {
    /// Writes the log line.
    pub fn emit(self) {
        warn!(
            version = self.version,
            "RabbitMQ before 4.0 trusts the x-death header of a client: a message with a forged one that reaches the delivery \
             limit of its queue can stop dead-lettering on the node (docs/reference/headers.md)"
        );
    }
}
