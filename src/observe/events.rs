//! What happens: one struct an occurrence, which emits its log line and its metric together. Identifiers are logged,
//! bodies and secrets never.

#![allow(clippy::disallowed_macros, reason = "this is the place for them")]

use super::{metrics as names, status::Part};
use crate::{
    domain::{
        check::{Check, CheckOutcome, CheckStep, Checked, PaymentStatus},
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
fn count_messages(queue: &'static str, labels: &[&'static str], outcomes: impl Iterator<Item = &'static str>) {
    let mut counts = vec![0_u64; labels.len()];
    for outcome in outcomes {
        for (label, count) in labels.iter().zip(&mut counts) {
            *count += u64::from(*label == outcome);
        }
    }
    for (outcome, count) in labels.iter().zip(counts).filter(|(_, count)| *count > 0) {
        counter!(names::MESSAGES, "queue" => queue, "outcome" => *outcome).increment(count);
    }
}

/// The outcomes of a batch of credits are durable, and its messages are about to be settled.
pub struct CreditsSettled<O, A> {
    /// Of each message.
    pub outcomes: O,
    /// Since its producer sent it, of each message that says when.
    pub ages: A,
}

impl<'a, O: Iterator<Item = &'a Outcome>, A: Iterator<Item = Duration>> CreditsSettled<O, A> {
    /// Tells of it.
    pub fn emit(self) {
        count_messages(names::CREDIT_QUEUE, &Outcome::LABELS, self.outcomes.map(Outcome::label));
        let seconds = histogram!(names::END_TO_END_SECONDS);
        self.ages.for_each(|age| seconds.record(age));
    }
}

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
            let (payment_id, step_label) = (check.credit.payment_id.as_str(), step.label());
            match step {
                CheckStep::LateCredit | CheckStep::Reinstate => credited += points.unsigned_abs(),
                CheckStep::Expire | CheckStep::Reverse => reversed += points.unsigned_abs(),
                // Credited and reversed at once: nobody's balance has moved.
                CheckStep::Void => {}
                CheckStep::Verify | CheckStep::Recheck | CheckStep::None | CheckStep::Dead(_) => continue,
            }
            let reason = check.finding.reason(*step);
            info!(step = step_label, payment_id, user_id, points, reason, "ledger corrected");
        }
        counter!(names::POINTS_CREDITED).increment(credited);
        counter!(names::POINTS_REVERSED).increment(reversed);
        debug!(size = self.checks.len(), took = ?self.took, "checks committed");
    }
}

/// The outcomes of a batch of checks are durable, and its messages are about to be settled.
pub struct ChecksSettled<O> {
    /// Of each message.
    pub outcomes: O,
}

impl<'a, O: Iterator<Item = &'a CheckOutcome> + Clone> ChecksSettled<O> {
    /// Tells of it.
    pub fn emit(self) {
        let mut steps: Vec<(PaymentStatus, &'static str, u64)> = Vec::new();
        for outcome in self.outcomes.clone() {
            let (status, step) = match outcome {
                CheckOutcome::Checked { status, step, .. } => (*status, step.label()),
                CheckOutcome::Parked { status, reason, .. } => (*status, CheckStep::Dead(*reason).label()),
                _ => continue,
            };
            match steps.iter_mut().find(|(of, label, _)| (*of, *label) == (status, step)) {
                Some((_, _, count)) => *count += 1,
                None => steps.push((status, step, 1)),
            }
        }
        for (status, step, count) in steps {
            counter!(names::CHECKS, "status" => status.label(), "step" => step).increment(count);
        }
        count_messages(names::CHECK_QUEUE, &CheckOutcome::LABELS, self.outcomes.map(CheckOutcome::label));
    }
}

/// How many credits no check has found paid.
pub struct Unverified(
    /// Their number.
    pub i64,
);

impl Unverified {
    /// Tells of it.
    pub fn emit(self) {
        #[allow(clippy::cast_precision_loss, reason = "at most a million")]
        gauge!(names::UNVERIFIED_CREDITS).set(self.0 as f64);
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
pub struct InFlight {
    /// Of which queue: the metric's label.
    pub queue: &'static str,
    /// Their number.
    pub deliveries: usize,
}

impl InFlight {
    /// Tells of it.
    pub fn emit(self) {
        #[allow(clippy::cast_precision_loss, reason = "at most the prefetch")]
        gauge!(names::IN_FLIGHT, "queue" => self.queue).set(self.deliveries as f64);
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
pub struct BrokerConnected {
    /// Whose they are. The metric tells those of the credits.
    pub part: Part,
    /// Whether they do.
    pub connected: bool,
}

impl BrokerConnected {
    /// Tells of it.
    pub fn emit(self) {
        if self.part == Part::Credits {
            gauge!(names::BROKER_CONNECTED).set(f64::from(u8::from(self.connected)));
        }
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
