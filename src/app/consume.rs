//! One session with the broker: connect, consume with as many workers as its line has, and stop them all
//! at the first outage.

use super::{App, worker::Worker};
use crate::{
    app::queue_consumer::QueueConsumer,
    broker::{BrokerError, Consumer, Delivered},
    domain::{
        component::Component,
        failure::{Dependency, Outage},
    },
    observe::{events, heartbeat::Heartbeat, status::Status},
    pipeline::batch::Interrupted,
};
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// What opening a session may take: two connections, each with every node, and the topology.
const OPENING_TIME: Duration = Duration::from_secs(300);

/// How a session begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opening {
    /// With the prefetch of its line.
    Full,
    /// After an outage: with so many deliveries in all. If the dependency fails again, only these are given back, which the
    /// broker counts against each.
    Limited(u16),
    /// One message at a time until one takes little time: deliveries were held for too long.
    Slow,
    /// With so many deliveries, to find out whether a payment source whose probes fail works for others.
    Trial(u16),
}

impl Opening {
    /// The opening after an outage.
    pub(super) const ONE: Self = Self::Limited(1);

    /// The opening after a session with this one that ended in order: twice as many deliveries, and in the end those of a line
    /// with this prefetch.
    pub(super) fn widened(self, prefetch: u16) -> Self {
        match self {
            Self::Limited(deliveries) | Self::Trial(deliveries) => match deliveries.saturating_mul(2) {
                next if next < prefetch => Self::Limited(next),
                _ => Self::Full,
            },
            Self::Slow | Self::Full => Self::Full,
        }
    }
}

/// Why a session ended. Everything is settled or given back.
pub(super) enum Ended {
    /// The daemon was told to stop, or the session has found out what it was opened for.
    InOrder,
    /// Deliveries were held for too long.
    HeldTooLong,
    /// Something is down.
    Outage {
        outage: Outage,
        /// How long the session was in use.
        lived: Duration,
        /// How far it came.
        progress: Progress,
    },
}

/// How far a session came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// The broker did not let it begin, or delivered nothing: it cost no delivery.
    TookNothing,
    /// Nothing of what was delivered was settled.
    SettledNothing,
    /// Something had its effect, and was settled.
    Settled,
}

/// What the workers of a session find out together.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Deliveries were held for too long.
    pub(super) held_too_long: AtomicBool,
    /// Something was delivered.
    pub(super) taken: AtomicBool,
    /// Something had its effect, and was settled.
    pub(super) settled: AtomicBool,
    /// When a transaction was committed last.
    pub(super) committed: Mutex<Option<Instant>>,
}

impl Findings {
    fn progress(&self) -> Progress {
        match (self.taken.load(Ordering::Relaxed), self.settled.load(Ordering::Relaxed)) {
            (_, true) => Progress::Settled,
            (true, false) => Progress::SettledNothing,
            (false, false) => Progress::TookNothing,
        }
    }
}

impl App {
    /// Consumes until something fails or the daemon is told to stop.
    pub(super) async fn consume(&self, queue: &QueueConsumer, opening: Opening) -> Ended {
        let heartbeat = self.heartbeats.begin("connect", OPENING_TIME);
        let prefetch = match opening {
            Opening::Full => queue.prefetch,
            Opening::Slow => 1,
            Opening::Limited(deliveries) | Opening::Trial(deliveries) => deliveries.min(queue.prefetch),
        };
        let limited = matches!(opening, Opening::Limited(_));
        let opened = self.until_stopped(queue.sessions.open(prefetch, limited)).await;
        drop(heartbeat);
        let consumer = match opened {
            None => return Ended::InOrder,
            Some(Ok(consumer)) => Arc::new(consumer),
            Some(Err(error)) => {
                return outage(error.into_outage(), Duration::ZERO, Progress::TookNothing);
            }
        };
        let begun = Instant::now();
        let component = queue.component();
        events::BrokerConnected { component, connected: true }.emit();
        self.status.resume(component, Dependency::Broker);
        self.status.consuming(component, queue.sessions.queue(), &consumer.node().to_string());

        let stop = self.stop.child_token();
        let findings = Arc::new(Findings::default());
        let left = self.work_together(queue, opening, &consumer, &findings, &stop).await;
        if let Some(outage) = &left.outage {
            // Told before the deliveries go back: from here on nothing is consumed.
            self.status.pause(component, outage);
        }
        if consumer.met_unreadable() {
            findings.taken.store(true, Ordering::Relaxed);
        }
        consumer.close(left.unsettled).await;
        events::BrokerConnected { component, connected: false }.emit();
        match left.outage {
            None if findings.held_too_long.load(Ordering::Relaxed) => Ended::HeldTooLong,
            None => Ended::InOrder,
            Some(cause) => outage(cause, begun.elapsed(), findings.progress()),
        }
    }

    /// Workers side by side, as many as the line has. The first that meets an outage stops the others
    /// after the part of a batch that they are at; what all of them leave unsettled comes together.
    async fn work_together(
        &self,
        queue: &QueueConsumer,
        opening: Opening,
        consumer: &Arc<Consumer>,
        findings: &Arc<Findings>,
        stop: &CancellationToken,
    ) -> Interrupted<Delivered> {
        let mut workers = JoinSet::new();
        for number in 0..queue.workers {
            let worker = Worker {
                consumer: Arc::clone(consumer),
                heartbeat: self.heartbeats.begin(queue.component().label(), queue.step),
                stop: stop.clone(),
                status: Arc::clone(&self.status),
                component: queue.component(),
                batch: queue.batch,
                opening,
                findings: Arc::clone(findings),
                probes: number == 0,
            };
            workers.spawn(worker.run(queue.pipeline.clone()));
        }
        let heartbeat = self.heartbeats.begin("proof", OPENING_TIME);
        workers.spawn(watch_progress(Progressing {
            component: queue.component(),
            stalled_after: queue.is_credits().then_some(self.settings.health.stalled_after),
            consumer: Arc::clone(consumer),
            findings: Arc::clone(findings),
            status: Arc::clone(&self.status),
            stop: stop.clone(),
        }));
        workers.spawn(watch_broker(Arc::clone(consumer), heartbeat, stop.clone()));
        let mut left = Interrupted { outage: None, unsettled: Vec::new() };
        let mut working = queue.workers;
        while let Some(ended) = workers.join_next().await {
            match ended {
                // A worker that leaves ends the session. In one with a limit it leaves when nothing more will come, and the
                // others finish what they have.
                Ok(Ok(())) => {
                    working = working.saturating_sub(1);
                    if working == 0 || !matches!(opening, Opening::Limited(_)) {
                        stop.cancel();
                    }
                }
                Ok(Err(interrupted)) => {
                    stop.cancel();
                    left.outage = left.outage.or(interrupted.outage);
                    left.unsettled.extend(interrupted.unsettled);
                }
                // A defect of ours. What it held is unsettled and comes again; the daemon must not go on half.
                Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
            }
        }
        left
    }
}

fn outage(outage: Outage, lived: Duration, progress: Progress) -> Ended {
    Ended::Outage { outage, lived, progress }
}

/// A broker that takes no messages, or whose queues are gone, is down also while nothing has to be published: whatever is
/// delivered must be able to go on.
async fn watch_broker(
    consumer: Arc<Consumer>,
    heartbeat: Heartbeat,
    stop: CancellationToken,
) -> Result<(), Interrupted<Delivered>> {
    consumer.watch(&heartbeat, &stop).await.map_err(broker_lost)
}

pub(super) fn broker_lost(error: BrokerError) -> Interrupted<Delivered> {
    Interrupted { outage: Some(error.into_outage()), unsettled: Vec::new() }
}

/// How often the progress of a session is looked at.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// A session whose progress is watched.
struct Progressing {
    component: Component,
    /// How long deliveries may wait for a commit; `None` where there need not be one.
    stalled_after: Option<Duration>,
    consumer: Arc<Consumer>,
    findings: Arc<Findings>,
    status: Arc<Status>,
    stop: CancellationToken,
}

/// Reports how long the oldest delivery waits, and that nothing is committed although deliveries wait.
async fn watch_progress(session: Progressing) -> Result<(), Interrupted<Delivered>> {
    let Progressing { component, stalled_after, consumer, findings, status, stop } = session;
    while stop.run_until_cancelled(tokio::time::sleep(PROGRESS_INTERVAL)).await.is_some() {
        let oldest = consumer.oldest_in_flight();
        events::OldestInFlight { component, age: oldest.map_or(Duration::ZERO, |at| at.elapsed()) }.emit();
        let committed = *findings.committed.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = oldest.map(|at| committed.map_or(at, |committed| at.max(committed)).elapsed());
        status.stalled(component, waiting.filter(|waiting| stalled_after.is_some_and(|most| *waiting > most)));
    }
    events::OldestInFlight { component, age: Duration::ZERO }.emit();
    status.stalled(component, None);
    Ok(())
}
