//! A worker: takes batches from the consumer and processes them one after the other.

use crate::{
    app::{
        queue_consumer::Pipeline,
        session::{Findings, Opening, broker_lost},
    },
    broker::{BatchSize, Consumer, Delivered},
    domain::{
        component::Component,
        failure::{Dependency, Outage},
    },
    observe::{
        events::{self, Event as _},
        heartbeat::Heartbeat,
        spans,
        status::Status,
    },
    pipeline::{
        check::CheckPipeline,
        credit::{Committed, CreditPipeline},
        work::{BatchContext, Interrupted},
    },
    unpoisoned::lock,
};
use futures_util::future::BoxFuture;
use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

/// The maximum time that a worker waits for deliveries before it beats its heartbeat.
const IDLE_WAIT: Duration = Duration::from_secs(5);

/// The number of idle waits after which the ledger is probed, so that `/readyz` reports a current state.
const IDLE_WAITS_PER_PROBE: u32 = 3;

/// How long a check may be held before it is processed. The broker requeues deliveries that are held for half an hour
/// (RabbitMQ, "Delivery Acknowledgement Timeout").
const MAX_HELD: Duration = Duration::from_secs(8 * 60);

/// The processing time below which a session that takes one message at a time ends.
const QUICK: Duration = Duration::from_secs(10);

pub(super) struct Worker {
    pub(super) consumer: Arc<Consumer>,
    pub(super) heartbeat: Heartbeat,
    pub(super) stop: CancellationToken,
    pub(super) status: Arc<Status>,
    pub(super) component: Component,
    pub(super) batch: BatchSize,
    pub(super) opening: Opening,
    pub(super) findings: Arc<Findings>,
    /// Whether this worker probes the ledger while it is idle.
    pub(super) probes: bool,
}

type Finished = Result<(), Interrupted<Delivered>>;

/// The second half of a batch (check messages and acknowledgements), which runs while the next batch is taken and
/// committed.
type Finishing<'a> = Option<BoxFuture<'a, Finished>>;

/// Waits for the finishing batch; forever if there is none.
async fn wait_for_finished(finishing: &mut Finishing<'_>) -> Finished {
    match finishing {
        None => std::future::pending().await,
        Some(work) => {
            let finished = work.await;
            *finishing = None;
            finished
        }
    }
}

/// Runs `work` while the finishing batch continues, without waiting for it. The second result is `Ok` also if it is not
/// done yet.
async fn run_while_finishing<T>(work: impl Future<Output = T>, finishing: &mut Finishing<'_>) -> (T, Finished) {
    let mut work = std::pin::pin!(work);
    let mut finished = Ok(());
    loop {
        tokio::select! {
            done = &mut work => return (done, finished),
            result = wait_for_finished(finishing) => finished = result,
        }
    }
}

/// Waits for the finishing batch; returns at once if there is none.
async fn finish_remaining(finishing: &mut Finishing<'_>) -> Finished {
    if finishing.is_none() { Ok(()) } else { wait_for_finished(finishing).await }
}

impl Worker {
    pub(super) async fn run(self, pipeline: Pipeline) -> Finished {
        match pipeline {
            Pipeline::Credits(pipeline) => self.run_credits(&pipeline).await,
            Pipeline::Checks(pipeline) => self.run_checks(&pipeline).await,
        }
    }

    fn context(&self) -> BatchContext<'_> {
        BatchContext { heartbeat: &self.heartbeat, stop: &self.stop }
    }

    /// Processes points messages: takes and commits further batches while the check messages of earlier ones are being
    /// confirmed. Batches that are committed meanwhile are finished together.
    async fn run_credits(&self, pipeline: &CreditPipeline) -> Finished {
        let mut idle_waits = 0;
        let mut finishing: Finishing<'_> = None;
        let mut committed: Committed<Delivered> = Committed::default();
        let ended: Finished = loop {
            self.heartbeat.beat();
            if finishing.is_none() && !committed.is_empty() {
                finishing = Some(self.finish(pipeline, std::mem::take(&mut committed)));
            }
            let room = committed.len() < self.batch.messages;
            let taken = tokio::select! {
                // A stop takes precedence over another batch.
                biased;
                () = self.stop.cancelled() => break Ok(()),
                finished = wait_for_finished(&mut finishing) => match self.requeue_unfinished(finished).await {
                    Ok(()) => continue,
                    interrupted => break interrupted,
                },
                taken = tokio::time::timeout(IDLE_WAIT, self.consumer.next_batch(self.batch)), if room => taken,
            };
            let batch = match taken {
                Ok(Ok(Some(batch))) => batch,
                Ok(Ok(None)) => break Ok(()),
                Ok(Err(lost)) => break Err(broker_lost(lost)),
                Err(_) => {
                    idle_waits += 1;
                    if self.probes && idle_waits % IDLE_WAITS_PER_PROBE == 0 {
                        let (probed, finished) = run_while_finishing(pipeline.ledger.probe(), &mut finishing).await;
                        if let Err(interrupted) =
                            self.requeue_unfinished(finished).await.and(probed.map_err(interrupted_by))
                        {
                            break Err(interrupted);
                        }
                    }
                    continue;
                }
            };
            idle_waits = 0;
            self.findings.taken.store(true, Ordering::Relaxed);
            let context = self.context();
            let span = spans::batch(self.component, batch.len());
            let commit = pipeline.commit(batch, &context).instrument(span);
            let (batch, finished) = run_while_finishing(commit, &mut finishing).await;
            if batch.reached_the_ledger() {
                *lock(&self.findings.committed) = Some(Instant::now());
            }
            committed.extend(batch);
            match self.requeue_unfinished(finished).await {
                Ok(()) if committed.outage.is_none() => {}
                ended => break ended,
            }
        };
        self.conclude(pipeline, ended, finishing, committed).await
    }

    /// Finishes committed messages: publishes their checks and settles them.
    fn finish<'a>(&'a self, pipeline: &'a CreditPipeline, committed: Committed<Delivered>) -> BoxFuture<'a, Finished> {
        Box::pin(async move {
            let context = self.context();
            // An unreadable message proves nothing about the ledger.
            let committed_some = committed.reached_the_ledger();
            let finished = pipeline.finish(&*self.consumer, committed, &context).await;
            if finished.is_ok() && committed_some {
                self.findings.settled.store(true, Ordering::Relaxed);
            }
            finished
        })
    }

    /// Ends the work: settles the committed messages as far as the broker works, and returns the rest.
    async fn conclude(
        &self,
        pipeline: &CreditPipeline,
        ended: Finished,
        mut finishing: Finishing<'_>,
        committed: Committed<Delivered>,
    ) -> Finished {
        let mut left = Interrupted { outage: None, unsettled: Vec::new() };
        let mut add = |finished: Finished| {
            if let Err(Interrupted { outage, unsettled }) = finished {
                left.outage = left.outage.take().or(outage);
                left.unsettled.extend(unsettled);
            }
            left.outage.as_ref().is_none_or(|outage| outage.dependency != Dependency::Broker)
        };
        add(ended);
        // Committed messages that are not settled are redelivered, and their checks are scheduled then.
        let broker_works = add(finish_remaining(&mut finishing).await);
        let finished = if broker_works && !committed.is_empty() {
            self.finish(pipeline, committed).await
        } else {
            Err(Interrupted { outage: None, unsettled: committed.into_messages().collect() })
        };
        add(finished);
        Interrupted::unless_done(left.outage, left.unsettled)
    }

    /// Requeues the unsettled rest of a batch that exceeded its deadline. Any other interruption ends the session.
    async fn requeue_unfinished(&self, finished: Finished) -> Finished {
        match finished {
            Err(Interrupted { outage: None, unsettled }) if !self.stop.is_cancelled() => {
                let total = unsettled.len();
                let given_back = self.consumer.give_back(unsettled).await;
                events::GaveBack { deliveries: Some(given_back) }.emit();
                if given_back == total {
                    return Ok(());
                }
                // The rest would be held until the session ends.
                let reason = "deliveries could not be requeued".to_owned();
                let outage = Some(Outage { dependency: Dependency::Broker, reason });
                Err(Interrupted { outage, unsettled: Vec::new() })
            }
            finished => finished,
        }
    }

    /// Processes checks and notifications, one batch at a time.
    async fn run_checks(&self, pipeline: &CheckPipeline) -> Finished {
        loop {
            self.heartbeat.beat();
            let taken = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Ok(()),
                taken = tokio::time::timeout(IDLE_WAIT, self.consumer.next_batch(self.batch)) => taken,
            };
            let Ok(batch) = taken else {
                if self.status.is_paused(self.component, Dependency::PayStatus) {
                    pipeline.probe_source().await.map_err(interrupted_by)?;
                    self.status.resume(self.component, Dependency::PayStatus);
                    if matches!(self.opening, Opening::Trial(_)) {
                        return Ok(());
                    }
                }
                continue;
            };
            let Some(batch) = batch.map_err(broker_lost)? else { return Ok(()) };
            self.findings.taken.store(true, Ordering::Relaxed);
            if self.consumer.held_at_most() > MAX_HELD {
                self.findings.held_too_long.store(true, Ordering::Relaxed);
                return Err(Interrupted { outage: None, unsettled: batch });
            }
            let begun = Instant::now();
            let span = spans::batch(self.component, batch.len());
            let processed = pipeline.process(&*self.consumer, batch, &self.context()).instrument(span).await;
            // The payment source may work in a trial session although its probes fail.
            let answered = pipeline.answered.swap(false, Ordering::Relaxed);
            if answered {
                self.status.resume(self.component, Dependency::PayStatus);
            }
            let is_done = processed.is_ok();
            self.requeue_unfinished(processed).await?;
            if is_done {
                self.findings.settled.store(true, Ordering::Relaxed);
            }
            let has_answer = match self.opening {
                Opening::Trial(_) => answered,
                Opening::Slow => begun.elapsed() < QUICK,
                Opening::Limited(_) | Opening::Full => false,
            };
            if has_answer {
                return Ok(());
            }
        }
    }
}

/// Converts an outage to an interruption without unsettled deliveries.
fn interrupted_by(outage: Outage) -> Interrupted<Delivered> {
    Interrupted { outage: Some(outage), unsettled: Vec::new() }
}
