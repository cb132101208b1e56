//! Events of messages and of the queues that hold them.

use super::{Event, seconds, tally};
use crate::{
    domain::{component::Component, dead_letter::Reason, ids::PaymentId, outcome::Outcome},
    observe::{limit::Limit, metrics},
};
use std::time::{Duration, SystemTimeError};
use tracing::{debug, warn};

/// A batch failed for a transient reason and is retried.
pub struct BatchRetried<'a> {
    /// The number of messages in the batch.
    pub size: usize,
    /// The reason of the failure.
    pub reason: &'a str,
    /// The pause before the next attempt.
    pub pause: Duration,
}

impl Event for BatchRetried<'_> {
    fn emit(self) {
        let pause_seconds = seconds(self.pause);
        debug!(size = self.size, reason = self.reason, pause_seconds, "batch failed; retrying");
    }
}

/// Counts messages by outcome, with one update of the metric for each outcome in the batch.
pub(super) fn count_messages(queue: &'static str, outcomes: impl Iterator<Item = &'static str>) {
    for (outcome, count) in tally(outcomes) {
        metrics::MESSAGES.add([queue, outcome], count);
    }
}

/// The time since the timestamp of a message; an error if the timestamp is in the future.
pub type Age = Result<Duration, SystemTimeError>;

/// Records the ages of messages, and counts the messages whose timestamp is in the future.
pub(super) fn record_ages(ages: impl Iterator<Item = Age>) {
    let mut ahead = 0;
    let known = ages.filter_map(|age| age.inspect_err(|_| ahead += 1).ok());
    metrics::END_TO_END.record([], known.map(|age| age.as_secs_f64()));
    metrics::CLOCK_SKEW_MESSAGES.add([], ahead);
}

/// The outcomes of a batch of credits are durable, and its messages are settled next.
pub struct CreditsSettled<O, A> {
    /// The component that consumed the batch.
    pub component: Component,
    /// The outcome of each message.
    pub outcomes: O,
    /// The age of each message that has a timestamp.
    pub ages: A,
}

impl<'a, O: Iterator<Item = &'a Outcome>, A: Iterator<Item = Age>> Event for CreditsSettled<O, A> {
    fn emit(self) {
        count_messages(self.component.label(), self.outcomes.map(Outcome::label));
        record_ages(self.ages);
    }
}

/// A copy of a message was confirmed in the dead queue.
pub struct MessageParked<'a> {
    /// The reason.
    pub reason: Reason,
    /// The payment, if it can be read.
    pub payment_id: Option<&'a PaymentId>,
    /// The identification of the message.
    pub message: &'a str,
    /// The error.
    pub error: &'a str,
}

/// The limit for parked messages: a defective producer parks thousands of them.
static PARKED: Limit = Limit::new(10);

impl Event for MessageParked<'_> {
    /// Counts the message and logs it, at most ten times a second.
    fn emit(self) {
        metrics::DEAD_LETTERED.add([self.reason.label()], 1);
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

/// A copy of a message was confirmed in a retry delay queue.
pub struct MessageDelayed<'a> {
    /// The number of the delayed retry, counted from 1.
    pub attempt: u32,
    /// The delay, as configured.
    pub delay: &'a str,
    /// The payment, if it can be read.
    pub payment_id: Option<&'a PaymentId>,
    /// The identification of the message.
    pub message: &'a str,
    /// The error.
    pub error: &'a str,
}

/// The limit for delayed messages: a locked row delays thousands of them.
static DELAYED: Limit = Limit::new(10);

impl Event for MessageDelayed<'_> {
    /// Logs the message, at most ten times a second.
    fn emit(self) {
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

/// Logs the numbers of messages that were parked or delayed without a line, when the second in which that happened is over.
pub(super) fn report_suppressed() {
    if let Some(suppressed) = PARKED.overdue() {
        warn!(messages = suppressed, "further messages parked");
    }
    if let Some(suppressed) = DELAYED.overdue() {
        warn!(messages = suppressed, "further messages delayed");
    }
}

/// The number of unsettled deliveries of a queue has changed.
pub struct InFlight {
    /// The component that consumes the queue.
    pub component: Component,
    /// The number of unsettled deliveries.
    pub deliveries: usize,
}

impl Event for InFlight {
    fn emit(self) {
        #[allow(clippy::cast_precision_loss, reason = "at most the prefetch")]
        metrics::IN_FLIGHT.set([self.component.label()], self.deliveries as f64);
    }
}

/// Unsettled deliveries were given back to their queue.
pub struct GaveBack {
    /// The number of deliveries; `None` if the broker did not answer in time and requeues them when the connection ends.
    pub deliveries: Option<usize>,
}

impl Event for GaveBack {
    fn emit(self) {
        match self.deliveries {
            Some(0) => {}
            Some(deliveries) => debug!(deliveries, "unsettled deliveries given back"),
            None => debug!("unsettled deliveries given back by ending the connection"),
        }
    }
}

/// Checks were held for almost as long as the broker permits.
pub struct HeldTooLong<'a> {
    /// The queue of the checks.
    pub queue: &'a str,
}

impl Event for HeldTooLong<'_> {
    fn emit(self) {
        warn!(
            queue = self.queue,
            "checks are slow: deliveries given back; one message at a time is taken until checks are faster"
        );
    }
}

/// A session received nothing for a long time; a new one takes its place.
pub struct SessionRenewed<'a> {
    /// The consumed queue.
    pub queue: &'a str,
}

impl Event for SessionRenewed<'_> {
    fn emit(self) {
        debug!(queue = self.queue, "session renewed: nothing was delivered for five minutes");
    }
}

/// A required queue or exchange was missing and has been declared.
pub struct QueueGone<'a> {
    /// The queue or exchange.
    pub subject: &'a str,
    /// The consequence of the loss, and the action to take.
    pub lost: &'static str,
}

impl Event for QueueGone<'_> {
    fn emit(self) {
        warn!(subject = self.subject, "gone from the broker, and declared again, empty: {}", self.lost);
    }
}

/// A check queue exists, but this daemon has no payment source and schedules no checks.
pub struct ChecksNotScheduled<'a> {
    /// The check queue.
    pub queue: &'a str,
}

impl Event for ChecksNotScheduled<'_> {
    fn emit(self) {
        warn!(
            queue = self.queue,
            "the check queue exists, but pay_status.source is \"none\": credits of this daemon are not checked; all daemons of a \
             credit queue must have the same payment source"
        );
    }
}

/// The broker accepts `x-death` headers from clients.
pub struct TrustsXDeath<'a> {
    /// The version of the broker.
    pub version: &'a str,
}

impl Event for TrustsXDeath<'_> {
    fn emit(self) {
        warn!(
            version = self.version,
            "RabbitMQ before 4.0 trusts the x-death header of a client: a message with a forged header can stop dead-lettering on \
             its node when it reaches the delivery limit of its queue (docs/reference/headers.md)"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::metrics::rendered_after;

    #[test]
    fn every_message_is_counted_under_its_outcome() {
        let outcomes = Outcome::LABELS.into_iter().chain(["credited", "credited"]);
        let text = rendered_after(|| count_messages("credit", outcomes));
        for (outcome, count) in Outcome::LABELS.map(|label| (label, if label == "credited" { 3 } else { 1 })) {
            let line = format!("pointsd_messages_total{{queue=\"credit\",outcome=\"{outcome}\"}} {count}");
            assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
        }
    }
}
