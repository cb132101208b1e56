//! Running one session with the broker: connect, consume with the workers of the queue, and stop all workers at the
//! first outage.

use super::{App, worker::Worker};
use crate::{
    app::{
        queue_consumer::QueueConsumer,
        session::{Ended, Findings, Opening, Progress},
    },
    broker::{Consumer, Delivered},
    domain::{
        component::Component,
        failure::{Dependency, Outage},
    },
    observe::{
        events::{self, Event as _},
        heartbeat::Heartbeat,
        status::Status,
    },
    pipeline::work::Interrupted,
    unpoisoned::lock,
};
use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The deadline for opening a session: two connections, each tried with every node, and the topology.
const OPENING_TIME: Duration = Duration::from_secs(300);

impl App {
    /// Consumes until an error or until the daemon stops.
    pub(super) async fn run_session(&self, queue: &QueueConsumer, opening: Opening) -> Ended {
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
                return ended_by_outage(error.into_outage(), Duration::ZERO, Progress::TookNothing);
            }
        };
        let begun = Instant::now();
        let component = queue.component();
        events::BrokerConnected { component, connected: true }.emit();
        self.status.resume(component, Dependency::Broker);
        self.status.consuming(component, queue.sessions.queue(), &consumer.node().to_string());

        let stop = self.stop.child_token();
        let findings = Arc::new(Findings::default());
        let left = self.run_workers(queue, opening, &consumer, &findings, &stop).await;
        if let Some(outage) = &left.outage {
            // Reported before the deliveries are requeued: the session consumes nothing from here on.
            self.status.pause(component, outage);
        }
        if consumer.met_unreadable() {
            findings.taken.store(true, Ordering::Relaxed);
        }
        consumer.close(left.unsettled).await;
        events::BrokerConnected { component, connected: false }.emit();
        match left.outage {
            None if findings.held_too_long.load(Ordering::Relaxed) => Ended::HeldTooLong,
            None if findings.idle.load(Ordering::Relaxed) => Ended::Idle,
            None => Ended::InOrder,
            Some(outage) => ended_by_outage(outage, begun.elapsed(), findings.progress()),
        }
    }

    /// Runs the workers of the queue concurrently. The first one with an outage stops the others after their current
    /// part of a batch. Returns the outage and the unsettled deliveries of all workers.
    async fn run_workers(
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
        workers.spawn(watch_progress(WatchedSession {
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
                // A worker that ends, ends the session. In a limited session it ends when no further delivery can
                // arrive, and the others finish their deliveries.
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
                // A bug in pointsd. The broker redelivers its messages; the daemon must not continue without the
                // worker.
                Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
            }
        }
        left
    }
}

fn ended_by_outage(outage: Outage, lived: Duration, progress: Progress) -> Ended {
    Ended::Outage { outage, lived, progress }
}

/// Ends the session if the broker accepts no messages or queues are missing, even while nothing is published: pointsd
/// must always be able to publish copies of deliveries.
async fn watch_broker(
    consumer: Arc<Consumer>,
    heartbeat: Heartbeat,
    stop: CancellationToken,
) -> Result<(), Interrupted<Delivered>> {
    let watched = consumer.watch(&heartbeat, &stop).await;
    watched.map_err(|outage| Interrupted { outage: Some(outage), unsettled: Vec::new() })
}

/// The interval at which the progress of a session is checked.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// A session without a delivery ends after this time, and the next one begins: the broker can lose a consumer without
/// cancelling it, when its queue is deleted and another program declares it again at once.
const MAX_IDLE: Duration = Duration::from_secs(300);

/// A session whose progress is watched.
struct WatchedSession {
    component: Component,
    /// How long deliveries may wait for a commit; `None` for queues whose messages need no commit.
    stalled_after: Option<Duration>,
    consumer: Arc<Consumer>,
    findings: Arc<Findings>,
    status: Arc<Status>,
    stop: CancellationToken,
}

/// Reports the age of the oldest unsettled delivery, and a stall if deliveries wait and nothing is committed.
async fn watch_progress(session: WatchedSession) -> Result<(), Interrupted<Delivered>> {
    let WatchedSession { component, stalled_after, consumer, findings, status, stop } = session;
    while stop.run_until_cancelled(tokio::time::sleep(PROGRESS_INTERVAL)).await.is_some() {
        let oldest = consumer.oldest_in_flight();
        events::OldestInFlight { component, age: oldest.map_or(Duration::ZERO, |at| at.elapsed()) }.emit();
        let committed = *lock(&findings.committed);
        let waiting = oldest.map(|at| committed.map_or(at, |committed| at.max(committed)).elapsed());
        status.stalled(component, waiting.filter(|waiting| stalled_after.is_some_and(|most| *waiting > most)));
        if oldest.is_none() && consumer.idle_for() > MAX_IDLE {
            findings.idle.store(true, Ordering::Relaxed);
            stop.cancel();
        }
    }
    events::OldestInFlight { component, age: Duration::ZERO }.emit();
    status.stalled(component, None);
    Ok(())
}
