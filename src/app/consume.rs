//! One session with the broker: connect, consume with as many workers as its line has, and stop them all
//! at the first outage.

use super::{
    App,
    line::{Line, Pipeline},
};
use crate::{
    broker::{BrokerError, Consumer, Delivered},
    observe::{
        events,
        pulse::Pulse,
        status::{Part, Status},
    },
    pipeline::{
        ports::{Dependency, Outage},
        stages::{Interrupted, Turn},
    },
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How often a worker that waits for deliveries shows that it turns.
const IDLE_TURN: Duration = Duration::from_secs(5);

/// After so many of them without a delivery the ledger is probed: `/readyz` must not say more than is known.
const IDLE_TURNS_BEFORE_PROBE: u32 = 3;

/// How long messages are taken one at a time after one that the client could not read.
const CAREFUL_TIME: Duration = Duration::from_secs(30);

/// What opening a session may take: two connections, each with every node, and the topology.
const OPENING_TIME: Duration = Duration::from_secs(300);

/// Why a session ended. Everything is settled or given back.
pub(super) enum Ended {
    /// The daemon was told to stop, or a careful session has gone well for long enough.
    InOrder,
    /// Something is down.
    Outage {
        outage: Outage,
        /// How long the session was in use.
        lived: Duration,
        /// The next session must be careful.
        unreadable: bool,
    },
}

impl App {
    /// Consumes until something fails or the daemon is told to stop. A careful session takes one message at a time,
    /// so that one that ends the connection by being unreadable is alone in being counted by the broker.
    pub(super) async fn consume(&self, line: &Line, careful: bool) -> Ended {
        let opening = self.pulses.begin("connect", OPENING_TIME);
        let prefetch = if careful { 1 } else { line.prefetch };
        let opened = self.until_stopped(line.sessions.open(prefetch)).await;
        drop(opening);
        let consumer = match opened {
            None => return Ended::InOrder,
            Some(Ok(consumer)) => Arc::new(consumer),
            Some(Err(error)) => return outage(error.into_outage(), Duration::ZERO, careful),
        };
        let begun = Instant::now();
        let part = line.part();
        events::BrokerConnected { part, connected: true }.emit();
        self.status.resume(part, Dependency::Broker);
        self.status.consuming(part, line.sessions.queue(), &consumer.node().to_string());

        let stop = self.stop.child_token();
        if careful {
            let stop = stop.clone();
            tokio::spawn(async move {
                let _ = tokio::time::timeout(CAREFUL_TIME, stop.cancelled()).await;
                stop.cancel();
            });
        }
        let left = self.work_together(line, &consumer, &stop).await;
        if let Some(outage) = &left.outage {
            // Told before the deliveries go back: from here on nothing is consumed.
            self.status.pause(part, outage);
        }
        let unreadable = consumer.met_unreadable().await;
        consumer.close(left.unsettled).await;
        events::BrokerConnected { part, connected: false }.emit();
        match left.outage {
            None => Ended::InOrder,
            Some(cause) => outage(cause, begun.elapsed(), unreadable),
        }
    }

    /// Workers side by side, as many as the line has. The first that meets an outage stops the others
    /// after the part of a batch that they are at; what all of them leave unsettled comes together.
    async fn work_together(
        &self,
        line: &Line,
        consumer: &Arc<Consumer>,
        stop: &CancellationToken,
    ) -> Interrupted<Delivered> {
        let mut workers = JoinSet::new();
        for number in 0..line.workers {
            let worker = Worker {
                consumer: Arc::clone(consumer),
                pipeline: line.pipeline.clone(),
                pulse: self.pulses.begin(line.part().label(), line.step),
                stop: stop.clone(),
                status: Arc::clone(&self.status),
                part: line.part(),
                batch_max: line.batch_max,
                probes: number == 0,
            };
            workers.spawn(worker.run());
        }
        workers.spawn(watch_publishing(Arc::clone(consumer), stop.clone()));
        let mut left = Interrupted { outage: None, unsettled: Vec::new() };
        while let Some(ended) = workers.join_next().await {
            match ended {
                Ok(Ok(())) => {}
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

fn outage(outage: Outage, lived: Duration, unreadable: bool) -> Ended {
    Ended::Outage { outage, lived, unreadable }
}

/// A broker that takes no messages is down also while none has to be published: whatever is delivered must be able to
/// go on.
async fn watch_publishing(consumer: Arc<Consumer>, stop: CancellationToken) -> Result<(), Interrupted<Delivered>> {
    consumer.watch_publishing(&stop).await.map_err(broker_lost)
}

fn broker_lost(error: BrokerError) -> Interrupted<Delivered> {
    Interrupted { outage: Some(error.into_outage()), unsettled: Vec::new() }
}

/// Takes a batch, brings it the whole way, takes the next.
struct Worker {
    consumer: Arc<Consumer>,
    pipeline: Pipeline,
    pulse: Pulse,
    stop: CancellationToken,
    status: Arc<Status>,
    part: Part,
    batch_max: usize,
    /// Whether it is the one that probes an idle ledger.
    probes: bool,
}

impl Worker {
    async fn run(self) -> Result<(), Interrupted<Delivered>> {
        let turn = Turn { pulse: &self.pulse, stop: &self.stop };
        let mut idle_turns = 0;
        loop {
            self.pulse.beat();
            let taken = tokio::select! {
                // A stop comes before another batch.
                biased;
                () = self.stop.cancelled() => return Ok(()),
                taken = tokio::time::timeout(IDLE_TURN, self.consumer.next_batch(self.batch_max)) => taken,
            };
            let Ok(batch) = taken else {
                idle_turns += 1;
                if self.status.is_paused(self.part, Dependency::PayStatus) {
                    let source_down = |outage| Interrupted { outage: Some(outage), unsettled: Vec::new() };
                    self.pipeline.probe_source().await.map_err(source_down)?;
                    self.status.resume(self.part, Dependency::PayStatus);
                }
                if self.probes && idle_turns % IDLE_TURNS_BEFORE_PROBE == 0 {
                    let ledger_down = |outage| Interrupted { outage: Some(outage), unsettled: Vec::new() };
                    self.pipeline.probe_idle().await.map_err(ledger_down)?;
                }
                continue;
            };
            idle_turns = 0;
            match self.pipeline.process(&self.consumer, batch.map_err(broker_lost)?, &turn).await {
                // A batch that took too long: what is left of it comes again, to whoever takes it.
                Err(Interrupted { outage: None, unsettled }) if !self.stop.is_cancelled() => {
                    let deliveries = Some(self.consumer.give_back(unsettled).await);
                    events::GaveBack { deliveries }.emit();
                }
                processed => {
                    processed?;
                    // A source that was only tried, after many failed probes, may work.
                    if self.pipeline.source_has_answered() {
                        self.status.resume(self.part, Dependency::PayStatus);
                    }
                }
            }
        }
    }
}
