//! What happens: one struct an occurrence, which emits its log line and its metric together. Identifiers are logged,
//! bodies and secrets never.

#![allow(clippy::disallowed_macros, reason = "this is the place for them")]

use super::metrics as names;
use crate::{
    domain::{
        credit::{Credit, Outcome, Verdict},
        ids::PaymentId,
        settlement::Reason,
    },
    pipeline::ports::Dependency,
};
use ::metrics::{counter, gauge, histogram};
use std::time::Duration;
use tracing::{debug, info, warn};

/// A transaction of the ledger was committed.
pub struct BatchCommitted<'a> {
    /// What was in it.
    pub credits: &'a [Credit],
    /// What the ledger said of each.
    pub verdicts: &'a [Verdict],
    /// How long the ledger took.
    pub took: Duration,
}

impl BatchCommitted<'_> {
    /// Tells of it.
    pub fn emit(self) {
        let new = self.credits.iter().zip(self.verdicts).filter(|(_, verdict)| **verdict == Verdict::Credited);
        let (credited, points) = new.fold((0_u64, 0_u64), |(credited, points), (credit, _)| {
            (credited + 1, points + credit.points.get().unsigned_abs())
        });
        counter!(names::POINTS_CREDITED).increment(points);
        histogram!(names::COMMIT_SECONDS).record(self.took);
        #[allow(clippy::cast_precision_loss, reason = "a batch has at most 10 000 messages")]
        histogram!(names::BATCH_SIZE).record(self.credits.len() as f64);
        debug!(size = self.credits.len(), credited, points, took = ?self.took, "batch committed");
    }
}

/// A transaction failed for a reason that may pass, and is tried again.
pub struct CommitRetried<'a> {
    /// How many credits are in it.
    pub size: usize,
    /// What the ledger said.
    pub reason: &'a str,
    /// How long it waits.
    pub pause: Duration,
}

impl CommitRetried<'_> {
    /// Tells of it.
    pub fn emit(self) {
        debug!(size = self.size, reason = self.reason, pause = ?self.pause, "commit failed, trying again");
    }
}

/// The outcomes of a batch are durable, and its messages are about to be settled.
pub struct BatchSettled<O, A> {
    /// Of each message.
    pub outcomes: O,
    /// Since its producer sent it, of each message that says when.
    pub ages: A,
}

impl<'a, O: Iterator<Item = &'a Outcome>, A: Iterator<Item = Duration>> BatchSettled<O, A> {
    /// Tells of it.
    pub fn emit(self) {
        let mut counts = [0_u64; Outcome::LABELS.len()];
        for outcome in self.outcomes {
            for (label, count) in Outcome::LABELS.iter().zip(&mut counts) {
                *count += u64::from(*label == outcome.label());
            }
        }
        for (outcome, count) in Outcome::LABELS.into_iter().zip(counts).filter(|(_, count)| *count > 0) {
            counter!(names::MESSAGES, "queue" => names::CREDIT_QUEUE, "outcome" => outcome).increment(count);
        }
        let seconds = histogram!(names::END_TO_END_SECONDS);
        self.ages.for_each(|age| seconds.record(age));
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
        warn!(
            reason = self.reason.label(),
            payment_id = self.payment_id.map(PaymentId::as_str),
            message_id = self.message,
            error = self.error,
            "message parked"
        );
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
pub struct InFlight(
    /// Their number.
    pub usize,
);

impl InFlight {
    /// Tells of it.
    pub fn emit(self) {
        #[allow(clippy::cast_precision_loss, reason = "at most the prefetch")]
        gauge!(names::IN_FLIGHT, "queue" => names::CREDIT_QUEUE).set(self.0 as f64);
    }
}

/// A call to a database did not answer; its thread, connection and pool were left behind.
pub struct DatabaseAbandoned {
    /// How long it was waited for.
    pub timeout: Duration,
}

impl DatabaseAbandoned {
    /// Tells of it.
    pub fn emit(self) {
        debug!(timeout = ?self.timeout, "a database does not answer: its connections are abandoned");
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

/// The connections to the broker stand, or not.
pub struct BrokerConnected(
    /// Whether they do.
    pub bool,
);

impl BrokerConnected {
    /// Tells of it.
    pub fn emit(self) {
        gauge!(names::BROKER_CONNECTED).set(f64::from(u8::from(self.0)));
    }
}

/// The daemon begins to wait for a dependency.
pub struct Paused<'a> {
    /// For which.
    pub dependency: Dependency,
    /// What was seen.
    pub reason: &'a str,
}

impl Paused<'_> {
    /// Tells of it.
    pub fn emit(self) {
        gauge!(names::PAUSED, "dependency" => self.dependency.label()).set(1.0);
        warn!(dependency = self.dependency.label(), reason = self.reason, "paused");
    }
}

/// It still waits, and what it sees has changed. `/readyz` and systemd's status tell it, the log only when asked to: an
/// outage is one line at its start and one at its end.
pub struct StillPaused<'a> {
    /// For which.
    pub dependency: Dependency,
    /// What is seen now.
    pub reason: &'a str,
}

impl StillPaused<'_> {
    /// Tells of it.
    pub fn emit(self) {
        debug!(dependency = self.dependency.label(), reason = self.reason, "still paused");
    }
}

/// A dependency works again.
pub struct Resumed {
    /// Which.
    pub dependency: Dependency,
    /// How long it was waited for.
    pub after: Duration,
}

impl Resumed {
    /// Tells of it.
    pub fn emit(self) {
        gauge!(names::PAUSED, "dependency" => self.dependency.label()).set(0.0);
        info!(dependency = self.dependency.label(), after = ?self.after, "resumed");
    }
}

/// The daemon consumes, for the first time or from another node than before.
pub struct Consuming<'a> {
    /// From which queue.
    pub queue: &'a str,
    /// Which node answered.
    pub broker: &'a str,
}

impl Consuming<'_> {
    /// Tells of it.
    pub fn emit(self) {
        info!(queue = self.queue, broker = self.broker, "consuming");
    }
}

/// The daemon starts.
pub struct Started<'a> {
    /// Which ledger it uses, without secrets.
    pub ledger: &'a str,
    /// Where its endpoints are.
    pub http: &'a str,
}

impl Started<'_> {
    /// Tells of it.
    pub fn emit(self) {
        info!(version = env!("CARGO_PKG_VERSION"), ledger = self.ledger, http = self.http, "pointsd started");
    }
}

/// The schema was brought up to date.
pub struct Migrated<'a> {
    /// What was run.
    pub versions: &'a [String],
}

impl Migrated<'_> {
    /// Tells of it.
    pub fn emit(self) {
        if !self.versions.is_empty() {
            info!(versions = ?self.versions, "ledger schema migrated");
        }
    }
}

/// Something asked the daemon to stop.
pub struct Stopping<'a> {
    /// What.
    pub signal: &'a str,
}

impl Stopping<'_> {
    /// Tells of it.
    pub fn emit(self) {
        info!(signal = self.signal, "stopping: settling what is in flight");
    }
}

/// The daemon leaves.
pub struct Stopped {
    /// Whether everything in flight was settled or given back in time.
    pub in_time: bool,
}

impl Stopped {
    /// Tells of it.
    pub fn emit(self) {
        if self.in_time {
            info!("stopped");
        } else {
            warn!("stopped at shutdown_timeout: what was in flight will be delivered again");
        }
    }
}

/// A loop of the daemon does not turn any more; systemd is not told that it lives.
pub struct LoopStuck<'a> {
    /// Which.
    pub name: &'a str,
    /// By how much it is late.
    pub late: Duration,
}

impl LoopStuck<'_> {
    /// Tells of it.
    pub fn emit(self) {
        warn!(name = self.name, late = ?self.late, "a loop does not turn: the watchdog is not fed");
    }
}

/// Somebody worked with the dead queue: the audit's line, whatever the level of the log.
pub struct DeadQueueAudit<'a> {
    /// Who, and on which machine.
    pub who: &'a str,
    /// Which command.
    pub action: &'a str,
    /// On which queue.
    pub queue: &'a str,
    /// Which messages were meant.
    pub selection: &'a str,
    /// How many that were.
    pub selected: u64,
    /// How many were taken out of the queue.
    pub removed: u64,
    /// How it ended.
    pub end: &'a str,
    /// The run of a requeue, as in `x-pointsd-requeue-id`.
    pub requeue_id: Option<&'a str>,
}

impl DeadQueueAudit<'_> {
    /// Tells of it.
    pub fn emit(self) {
        let Self { who, action, queue, selection, selected, removed, end, requeue_id } = self;
        info!(target: "pointsd::audit", who, action, queue, selection, selected, removed, end, requeue_id, "dead queue");
    }
}
