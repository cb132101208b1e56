//! What becomes of the daemon, and who works with the dead queue.

#![allow(clippy::disallowed_macros, reason = "this is the place for them")]

use crate::{
    domain::{component::Component, failure::Dependency},
    observe::metrics as names,
};
use ::metrics::gauge;
use std::time::Duration;
use tracing::{debug, info, warn};

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

/// The connections to the broker stand, or not.
pub struct BrokerConnected {
    /// Whose they are. The metric tells those of the credits.
    pub component: Component,
    /// Whether they do.
    pub connected: bool,
}

impl BrokerConnected {
    /// Tells of it.
    pub fn emit(self) {
        if self.component == Component::Credits {
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

/// The daemon still waits for a dependency: the reason has changed, or it is time for a reminder.
pub struct StillPaused<'a> {
    /// For which.
    pub dependency: Dependency,
    /// The present reason.
    pub reason: &'a str,
    /// Since when.
    pub after: Duration,
}

impl StillPaused<'_> {
    /// Logs it.
    pub fn emit(self) {
        warn!(dependency = self.dependency.label(), reason = self.reason, after = ?self.after, "still paused");
    }
}

/// The age of the oldest delivery that is not settled.
pub struct OldestInFlight {
    /// Of which queue.
    pub component: Component,
    /// Since it was taken; zero without one.
    pub age: Duration,
}

impl OldestInFlight {
    /// Sets the metric.
    pub fn emit(self) {
        gauge!(names::OLDEST_IN_FLIGHT_SECONDS, "queue" => self.component.label()).set(self.age.as_secs_f64());
    }
}

/// Deliveries of a queue wait, and nothing is committed.
pub struct Stalled {
    /// Of which queue.
    pub component: Component,
    /// For how long.
    pub time: Duration,
}

impl Stalled {
    /// Logs it.
    pub fn emit(self) {
        warn!(queue = self.component.label(), time = ?self.time, "stalled: no commit while deliveries wait");
    }
}

/// A queue that was stalled goes on.
pub struct StallEnded {
    /// Which queue.
    pub component: Component,
}

impl StallEnded {
    /// Logs it.
    pub fn emit(self) {
        info!(queue = self.component.label(), "no longer stalled");
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

/// Environment variables begin as ours and are no settings.
pub struct EnvironmentIgnored<'a> {
    /// Their names.
    pub variables: &'a [String],
}

impl EnvironmentIgnored<'_> {
    /// Writes the log line.
    pub fn emit(self) {
        let variables = self.variables.join(", ");
        warn!(variables, "environment variables ignored: not settings (a setting is written POINTSD_SECTION__KEY)");
    }
}

/// The daemon starts.
pub struct Started<'a> {
    /// Whether there is a payment source.
    pub checks: bool,
    /// Which ledger it uses, without secrets.
    pub ledger: &'a str,
    /// Where its endpoints are.
    pub http: &'a str,
}

impl Started<'_> {
    /// Tells of it.
    pub fn emit(self) {
        info!(version = env!("CARGO_PKG_VERSION"), ledger = self.ledger, http = self.http, "pointsd started");
        gauge!(names::PAYMENT_SOURCE_CONFIGURED).set(f64::from(u8::from(self.checks)));
        if !self.checks {
            warn!("credits are not checked: pay_status.source is \"none\"");
        }
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

/// The daemon's clock was compared with the ledger's.
pub struct ClockSkew {
    /// By how many seconds the ledger's is ahead; negative: behind.
    pub seconds: f64,
    /// Whether to warn of it.
    pub warn: bool,
}

impl ClockSkew {
    /// Sets the metric, and writes the log line where it is to be warned of.
    pub fn emit(self) {
        gauge!(names::CLOCK_SKEW).set(self.seconds);
        if self.warn {
            let seconds = format!("{:+.1}", self.seconds);
            warn!(seconds, "clock skew between the ledger's server and this machine: synchronise the clocks");
        }
    }
}

/// A notification of systemd cannot be sent. Logged once.
pub struct NotNotified<'a> {
    /// Why.
    pub error: &'a str,
}

impl NotNotified<'_> {
    /// Writes the log line.
    pub fn emit(self) {
        warn!(error = self.error, "systemd cannot be notified (NOTIFY_SOCKET); further failures are not logged");
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
    /// How many that were; `None` before it is known.
    pub selected: Option<u64>,
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

/// A queue that others declared may lose messages after a few redeliveries.
pub struct QueueIsDangerous<'a> {
    /// Which queue.
    pub queue: &'a str,
    /// What is dangerous about it.
    pub danger: &'a str,
}

impl QueueIsDangerous<'_> {
    /// Logs it.
    pub fn emit(self) {
        warn!(queue = self.queue, "the queue may lose messages: {}", self.danger);
    }
}
