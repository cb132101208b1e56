//! One session with the broker: connect, consume with as many workers as the ledger has writers, and stop them all
//! at the first outage.

use super::{App, SLACK};
use crate::{
    broker::{BrokerError, CONFIRM_TIMEOUT, Consumer, Delivered},
    observe::{events, pulse::Pulse, status::Status},
    pipeline::{
        credit::{CreditPipeline, Interrupted},
        ports::{Dependency, Outage},
    },
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How often a worker that waits for deliveries shows that it turns.
const IDLE_TURN: Duration = Duration::from_secs(5);

/// Why a session ended.
pub(super) enum Ended {
    /// The daemon was told to stop, and everything is settled or given back.
    Stopped,
    /// Something is down.
    Outage {
        outage: Outage,
        /// Whether a batch went through before it.
        progressed: bool,
    },
}

impl App {
    /// Consumes until something fails or the daemon is told to stop. Nothing stays unsettled behind it.
    pub(super) async fn consume(&self, pipeline: &Arc<CreditPipeline>) -> Ended {
        let connecting = self.pulses.begin("connect", Duration::from_secs(120) + SLACK);
        let opened = self.until_stopped(Consumer::open(&self.settings.broker)).await;
        drop(connecting);
        let consumer = match opened {
            None => return Ended::Stopped,
            Some(Ok(consumer)) => Arc::new(consumer),
            Some(Err(error)) => return Ended::Outage { outage: error.into_outage(), progressed: false },
        };
        events::BrokerConnected(true).emit();
        self.status.resume(Dependency::Broker);
        self.status.consuming(&self.settings.broker.credit_queue, &consumer.node().to_string());

        let (stopped, progressed) = self.work_together(pipeline, &consumer).await;
        let (outage, unsettled) = match stopped {
            None => (None, Vec::new()),
            Some(Interrupted { outage, unsettled }) => {
                // Told before the deliveries go back: from here on nothing is consumed.
                self.status.pause(&outage);
                (Some(outage), unsettled)
            }
        };
        let deliveries = consumer.close(unsettled).await;
        events::GaveBack { deliveries }.emit();
        events::BrokerConnected(false).emit();
        match outage {
            None => Ended::Stopped,
            Some(outage) => Ended::Outage { outage, progressed },
        }
    }

    /// Workers side by side, as many as there are ledger writers. The first that meets an outage stops the others
    /// after the batch that they are at; what all of them leave unsettled comes together.
    async fn work_together(
        &self,
        pipeline: &Arc<CreditPipeline>,
        consumer: &Arc<Consumer>,
    ) -> (Option<Interrupted<Delivered>>, bool) {
        let stop = self.stop.child_token();
        let progressed = Arc::new(AtomicBool::new(false));
        let step = self.settings.ledger.timeout.max(CONFIRM_TIMEOUT) + SLACK;
        let mut workers = JoinSet::new();
        for _ in 0..self.settings.ledger.pool_size {
            let worker = Worker {
                consumer: Arc::clone(consumer),
                pipeline: Arc::clone(pipeline),
                status: Arc::clone(&self.status),
                progressed: Arc::clone(&progressed),
                pulse: self.pulses.begin("worker", step),
                stop: stop.clone(),
                batch_max: self.settings.ledger.batch_max,
            };
            workers.spawn(worker.run());
        }
        let mut interrupted: Option<Interrupted<Delivered>> = None;
        while let Some(ended) = workers.join_next().await {
            match ended {
                Ok(Ok(())) => {}
                Ok(Err(this)) => {
                    stop.cancel();
                    match &mut interrupted {
                        None => interrupted = Some(this),
                        Some(first) => first.unsettled.extend(this.unsettled),
                    }
                }
                // A defect of ours. What it held is unsettled and comes again; the daemon must not go on half.
                Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
            }
        }
        (interrupted, progressed.load(Ordering::Relaxed))
    }
}

/// Takes a batch, brings it the whole way, takes the next.
struct Worker {
    consumer: Arc<Consumer>,
    pipeline: Arc<CreditPipeline>,
    status: Arc<Status>,
    progressed: Arc<AtomicBool>,
    pulse: Pulse,
    stop: CancellationToken,
    batch_max: usize,
}

impl Worker {
    async fn run(self) -> Result<(), Interrupted<Delivered>> {
        let broker_lost = |error: BrokerError| Interrupted { outage: error.into_outage(), unsettled: Vec::new() };
        loop {
            self.pulse.beat();
            let taken = tokio::select! {
                // A stop comes before another batch.
                biased;
                () = self.stop.cancelled() => return Ok(()),
                taken = tokio::time::timeout(IDLE_TURN, self.consumer.next_batch(self.batch_max)) => taken,
            };
            let Ok(batch) = taken else { continue };
            self.pipeline.process(&*self.consumer, batch.map_err(broker_lost)?, &self.pulse).await?;
            self.progressed.store(true, Ordering::Relaxed);
            self.status.resume(Dependency::Ledger);
        }
    }
}
