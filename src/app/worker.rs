//! A worker: takes a batch, brings it the whole way, takes the next.

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

/// How often a worker that waits for deliveries shows that it turns.
const IDLE_TURN: Duration = Duration::from_secs(5);

/// After so many of them without a delivery the ledger is probed: `/readyz` must not say more than is known.
const IDLE_TURNS_BEFORE_PROBE: u32 = 3;

/// How long a check may be held before it is worked on. The broker takes deliveries back that are held for half an hour
/// (RabbitMQ, "Delivery Acknowledgement Timeout").
const MOST_HELD: Duration = Duration::from_secs(8 * 60);

/// A session that holds one message at a time ends when a message takes less than this.
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
    /// Whether it is the one that probes an idle ledger.
    pub(super) probes: bool,
}

type Finished = Result<(), Interrupted<Delivered>>;

/// The second half of a batch, while the next one is taken and committed.
type Finishing<'a> = Option<BoxFuture<'a, Finished>>;

/// Never returns without one.
async fn next(finishing: &mut Finishing<'_>) -> Finished {
    match finishing {
        None => std::future::pending().await,
        Some(work) => {
            let finished = work.await;
            *finishing = None;
            finished
        }
    }
}

/// Does `work`; what is finishing goes on meanwhile, and is not waited for. `Ok` also when it goes on still.
async fn meanwhile<T>(work: impl Future<Output = T>, finishing: &mut Finishing<'_>) -> (T, Finished) {
    let mut work = std::pin::pin!(work);
    let mut finished = Ok(());
    loop {
        tokio::select! {
            done = &mut work => return (done, finished),
            this = next(finishing) => finished = this,
        }
    }
}

/// Returns at once without one.
async fn last(finishing: &mut Finishing<'_>) -> Finished {
    if finishing.is_none() { Ok(()) } else { next(finishing).await }
}

impl Worker {
    pub(super) async fn run(self, pipeline: Pipeline) -> Finished {
        match pipeline {
            Pipeline::Credits(pipeline) => self.credit(&pipeline).await,
            Pipeline::Checks(pipeline) => self.check(&pipeline).await,
        }
    }

    fn context(&self) -> BatchContext<'_> {
        BatchContext { heartbeat: &self.heartbeat, stop: &self.stop }
    }

    /// Credits: further batches are taken and committed while the checks of those before are being confirmed. What is
    /// committed meanwhile is finished together.
    async fn credit(&self, pipeline: &CreditPipeline) -> Finished {
        let mut idle_turns = 0;
        let mut finishing: Finishing<'_> = None;
        let mut committed: Committed<Delivered> = Committed::default();
        let ended: Finished = loop {
            self.heartbeat.beat();
            if finishing.is_none() && !committed.is_empty() {
                finishing = Some(self.finish(pipeline, std::mem::take(&mut committed)));
            }
            let room = committed.len() < self.batch.messages;
            let taken = tokio::select! {
                // A stop comes before another batch.
                biased;
                () = self.stop.cancelled() => break Ok(()),
                finished = next(&mut finishing) => match self.after(finished).await {
                    Ok(()) => continue,
                    interrupted => break interrupted,
                },
                taken = tokio::time::timeout(IDLE_TURN, self.consumer.next_batch(self.batch)), if room => taken,
            };
            let batch = match taken {
                Ok(Ok(Some(batch))) => batch,
                Ok(Ok(None)) => break Ok(()),
                Ok(Err(lost)) => break Err(broker_lost(lost)),
                Err(_) => {
                    idle_turns += 1;
                    if self.probes && idle_turns % IDLE_TURNS_BEFORE_PROBE == 0 {
                        let (probed, finished) = meanwhile(pipeline.ledger.probe(), &mut finishing).await;
                        if let Err(interrupted) = self.after(finished).await.and(probed.map_err(down)) {
                            break Err(interrupted);
                        }
                    }
                    continue;
                }
            };
            idle_turns = 0;
            self.findings.taken.store(true, Ordering::Relaxed);
            let context = self.context();
            let (batch, finished) = meanwhile(pipeline.commit(batch, &context), &mut finishing).await;
            if batch.reached_the_ledger() {
                *lock(&self.findings.committed) = Some(Instant::now());
            }
            committed.extend(batch);
            match self.after(finished).await {
                Ok(()) if committed.outage.is_none() => {}
                ended => break ended,
            }
        };
        self.conclude(pipeline, ended, finishing, committed).await
    }

    fn finish<'a>(&'a self, pipeline: &'a CreditPipeline, committed: Committed<Delivered>) -> BoxFuture<'a, Finished> {
        Box::pin(async move {
            let context = self.context();
            // A message from which nothing can be read says nothing about the ledger.
            let committed_some = committed.reached_the_ledger();
            let finished = pipeline.finish(&*self.consumer, committed, &context).await;
            if finished.is_ok() && committed_some {
                self.findings.settled.store(true, Ordering::Relaxed);
            }
            finished
        })
    }

    /// The end of a session: what is on its way is settled as far as the broker takes it, and the rest is handed back.
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
        // Committed and not settled: they come again, and their checks are scheduled then.
        let broker_works = add(last(&mut finishing).await);
        let finished = if broker_works && !committed.is_empty() {
            self.finish(pipeline, committed).await
        } else {
            Err(Interrupted { outage: None, unsettled: committed.into_messages().collect() })
        };
        add(finished);
        Interrupted::unless_done(left.outage, left.unsettled)
    }

    /// Of a batch that took too long, what is left comes again, to whoever takes it. Anything else ends the session.
    async fn after(&self, finished: Finished) -> Finished {
        match finished {
            Err(Interrupted { outage: None, unsettled }) if !self.stop.is_cancelled() => {
                let in_all = unsettled.len();
                let given_back = self.consumer.give_back(unsettled).await;
                events::GaveBack { deliveries: Some(given_back) }.emit();
                if given_back == in_all {
                    return Ok(());
                }
                // The rest would be held for as long as the session lasts.
                let reason = "deliveries could not be given back".to_owned();
                let outage = Some(Outage { dependency: Dependency::Broker, reason });
                Err(Interrupted { outage, unsettled: Vec::new() })
            }
            finished => finished,
        }
    }

    /// Checks and notifications, a batch at a time.
    async fn check(&self, pipeline: &CheckPipeline) -> Finished {
        loop {
            self.heartbeat.beat();
            let taken = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Ok(()),
                taken = tokio::time::timeout(IDLE_TURN, self.consumer.next_batch(self.batch)) => taken,
            };
            let Ok(batch) = taken else {
                if self.status.is_paused(self.component, Dependency::PayStatus) {
                    pipeline.probe_source().await.map_err(down)?;
                    self.status.resume(self.component, Dependency::PayStatus);
                    if matches!(self.opening, Opening::Trial(_)) {
                        return Ok(());
                    }
                }
                continue;
            };
            let Some(batch) = batch.map_err(broker_lost)? else { return Ok(()) };
            self.findings.taken.store(true, Ordering::Relaxed);
            if self.consumer.held_at_most() > MOST_HELD {
                self.findings.held_too_long.store(true, Ordering::Relaxed);
                return Err(Interrupted { outage: None, unsettled: batch });
            }
            let begun = Instant::now();
            let processed = pipeline.process(&*self.consumer, batch, &self.context()).await;
            // A source that was only tried, after many failed probes, may work.
            let answered = pipeline.answered.swap(false, Ordering::Relaxed);
            if answered {
                self.status.resume(self.component, Dependency::PayStatus);
            }
            let is_done = processed.is_ok();
            self.after(processed).await?;
            if is_done {
                self.findings.settled.store(true, Ordering::Relaxed);
            }
            let found_out = match self.opening {
                Opening::Trial(_) => answered,
                Opening::Slow => begun.elapsed() < QUICK,
                Opening::Limited(_) | Opening::Full => false,
            };
            if found_out {
                return Ok(());
            }
        }
    }
}

fn down(outage: Outage) -> Interrupted<Delivered> {
    Interrupted { outage: Some(outage), unsettled: Vec::new() }
}
