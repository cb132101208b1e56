//! Events of the daemon as a whole: its dependencies, its start and stop, its environment, and the audit of the dead queue.

use super::{Event, seconds};
use crate::{
    domain::{component::Component, failure::Dependency},
    observe::metrics,
};
use std::time::Duration;
use tracing::{debug, info, warn};

/// A call to a database exceeded its deadline, and its thread, connection and pool were abandoned.
pub struct DatabaseAbandoned {
    /// The deadline.
    pub timeout: Duration,
}

impl Event for DatabaseAbandoned {
    fn emit(self) {
        debug!(timeout_seconds = seconds(self.timeout), "database does not answer; its connections are abandoned");
    }
}

/// A component has connected to the broker, or lost its connection.
pub struct BrokerConnected {
    /// The component. The metric shows only the credit queue's.
    pub component: Component,
    /// Whether the component is connected.
    pub connected: bool,
}

impl Event for BrokerConnected {
    fn emit(self) {
        if self.component == Component::Credits {
            metrics::BROKER_CONNECTED.set([], f64::from(u8::from(self.connected)));
        }
    }
}

/// The daemon has paused because of the outage of a dependency.
pub struct Paused<'a> {
    /// The dependency.
    pub dependency: Dependency,
    /// The reason of the outage.
    pub reason: &'a str,
}

impl Event for Paused<'_> {
    fn emit(self) {
        metrics::PAUSED.set([self.dependency.label()], 1.0);
        warn!(dependency = self.dependency.label(), reason = self.reason, "paused");
    }
}

/// The daemon is still paused: the reason has changed, or a reminder is due.
pub struct StillPaused<'a> {
    /// The dependency.
    pub dependency: Dependency,
    /// The current reason of the outage.
    pub reason: &'a str,
    /// The duration of the pause so far.
    pub paused: Duration,
}

impl Event for StillPaused<'_> {
    fn emit(self) {
        let paused_seconds = seconds(self.paused);
        warn!(dependency = self.dependency.label(), reason = self.reason, paused_seconds, "still paused");
    }
}

/// The age of the oldest unsettled delivery was measured.
pub struct OldestInFlight {
    /// The component that consumes the queue.
    pub component: Component,
    /// The time since the delivery was taken; zero without one.
    pub age: Duration,
}

impl Event for OldestInFlight {
    fn emit(self) {
        metrics::OLDEST_IN_FLIGHT.set([self.component.label()], self.age.as_secs_f64());
    }
}

/// Deliveries of a queue wait, and none is committed.
pub struct Stalled {
    /// The component that consumes the queue.
    pub component: Component,
    /// The time without a commit.
    pub waited: Duration,
}

impl Event for Stalled {
    fn emit(self) {
        let waited_seconds = seconds(self.waited);
        warn!(queue = self.component.label(), waited_seconds, "stalled: no commit while deliveries wait");
    }
}

/// A queue is no longer stalled.
pub struct StallEnded {
    /// The component that consumes the queue.
    pub component: Component,
}

impl Event for StallEnded {
    fn emit(self) {
        info!(queue = self.component.label(), "no longer stalled");
    }
}

/// A dependency works again.
pub struct Resumed {
    /// The dependency.
    pub dependency: Dependency,
    /// The duration of the pause.
    pub paused: Duration,
}

impl Event for Resumed {
    fn emit(self) {
        metrics::PAUSED.set([self.dependency.label()], 0.0);
        info!(dependency = self.dependency.label(), paused_seconds = seconds(self.paused), "resumed");
    }
}

/// The daemon consumes a queue for the first time, or from another node than before.
pub struct Consuming<'a> {
    /// The queue.
    pub queue: &'a str,
    /// The node of the broker.
    pub broker: &'a str,
}

impl Event for Consuming<'_> {
    fn emit(self) {
        info!(queue = self.queue, broker = self.broker, "consuming");
    }
}

/// Environment variables have the prefix of pointsd but are not settings.
pub struct EnvironmentIgnored<'a> {
    /// The names of the variables.
    pub variables: &'a [String],
}

impl Event for EnvironmentIgnored<'_> {
    fn emit(self) {
        let variables = self.variables.join(", ");
        warn!(variables, "environment variables ignored: not settings (a setting is written POINTSD_SECTION__KEY)");
    }
}

/// The daemon has started.
pub struct Started<'a> {
    /// Whether a payment source is configured.
    pub checks: bool,
    /// The ledger, without secrets.
    pub ledger: &'a str,
    /// The address of the endpoints.
    pub http: &'a str,
}

impl Event for Started<'_> {
    fn emit(self) {
        info!(version = env!("CARGO_PKG_VERSION"), ledger = self.ledger, http = self.http, "pointsd started");
        metrics::PAYMENT_SOURCE_CONFIGURED.set([], f64::from(u8::from(self.checks)));
        if !self.checks {
            warn!("credits are not checked: pay_status.source is \"none\"");
        }
    }
}

/// The ledger schema was checked for migrations to run.
pub struct Migrated<'a> {
    /// The versions that were run.
    pub versions: &'a [String],
}

impl Event for Migrated<'_> {
    /// Logs the versions, if there are any.
    fn emit(self) {
        if !self.versions.is_empty() {
            info!(versions = ?self.versions, "ledger schema migrated");
        }
    }
}

/// A signal asked the daemon to stop.
pub struct Stopping<'a> {
    /// The name of the signal.
    pub signal: &'a str,
}

impl Event for Stopping<'_> {
    fn emit(self) {
        info!(signal = self.signal, "stopping: settling deliveries in flight");
    }
}

/// The daemon has stopped.
pub struct Stopped {
    /// Whether every delivery in flight was settled or given back in time.
    pub in_time: bool,
}

impl Event for Stopped {
    fn emit(self) {
        if self.in_time {
            info!("stopped");
        } else {
            warn!("stopped at shutdown_timeout: the broker delivers unsettled messages again");
        }
    }
}

/// The clock of the daemon was compared with the clock of the ledger's server.
pub struct ClockSkew {
    /// The number of seconds by which the clock of the ledger's server is ahead; negative: behind.
    pub seconds: f64,
    /// Whether to log a warning.
    pub warn: bool,
}

impl Event for ClockSkew {
    fn emit(self) {
        metrics::CLOCK_SKEW.set([], self.seconds);
        if self.warn {
            let skew_seconds = (self.seconds * 10.0).round() / 10.0;
            warn!(skew_seconds, "clock skew between the ledger's server and this machine: synchronise the clocks");
        }
    }
}

/// A notification to systemd could not be sent. Logged once.
pub struct NotNotified<'a> {
    /// The reason.
    pub error: &'a str,
}

impl Event for NotNotified<'_> {
    fn emit(self) {
        warn!(error = self.error, "systemd cannot be notified (NOTIFY_SOCKET); further failures are not logged");
    }
}

/// A task of the daemon is stalled, so that the daemon withholds the ping of the systemd watchdog.
pub struct TaskStalled<'a> {
    /// The name of the task.
    pub task: &'a str,
    /// The time since the current step of the task was due.
    pub overdue: Duration,
}

impl Event for TaskStalled<'_> {
    fn emit(self) {
        let overdue_seconds = seconds(self.overdue);
        warn!(task = self.task, overdue_seconds, "task stalled; withholding the systemd watchdog ping");
    }
}

/// A command worked with the dead queue. The audit line is logged at every log level.
pub struct DeadQueueAudit<'a> {
    /// The user and the machine.
    pub who: &'a str,
    /// The command.
    pub action: &'a str,
    /// The dead queue.
    pub queue: &'a str,
    /// The selection of messages.
    pub selection: &'a str,
    /// The number of selected messages; `None` before it is known.
    pub selected: Option<u64>,
    /// The number of messages that were removed from the queue.
    pub removed: u64,
    /// The result of the command.
    pub end: &'a str,
    /// The ID of the requeue run, as in `x-pointsd-requeue-id`.
    pub requeue_id: Option<&'a str>,
}

impl Event for DeadQueueAudit<'_> {
    fn emit(self) {
        let Self { who, action, queue, selection, selected, removed, end, requeue_id } = self;
        info!(target: "pointsd::audit", who, action, queue, selection, selected, removed, end, requeue_id, "dead queue");
    }
}

/// A queue that pointsd did not declare may lose messages after a few redeliveries.
pub struct QueueIsDangerous<'a> {
    /// The queue.
    pub queue: &'a str,
    /// The danger.
    pub danger: &'a str,
}

impl Event for QueueIsDangerous<'_> {
    fn emit(self) {
        warn!(queue = self.queue, "the queue may lose messages: {}", self.danger);
    }
}
