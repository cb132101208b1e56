//! A worker: takes a batch, brings it the whole way, takes the next.

use super::{
    consume::{Findings, Opening, broker_lost},
    line::Pipeline,
};
use crate::{
    broker::{BatchSize, BrokerError, Consumer, Delivered},
    observe::{
        events,
        pulse::Pulse,
        status::{Part, Status},
    },
    pipeline::{
        check::CheckPipeline,
        credit::{Committed, CreditPipeline},
        ports::{Dependency, Outage},
        stages::{Interrupted, Turn},
    },
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
const MOST_HELD: Duration = Duration::from_secs(9 * 60);

/// A session that holds one message at a time ends when a message takes less than this.
const QUICK: Duration = Duration::from_secs(10);

pub(super) struct Worker {
    pub(super) consumer: Arc<Consumer>,
    pub(super) pulse: Pulse,
    pub(super) stop: CancellationToken,
    pub(super) status: Arc<Status>,
    pub(super) part: Part,
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

    fn turn(&self) -> Turn<'_> {
        Turn { pulse: &self.pulse, stop: &self.stop }
    }

    /// Credits: the next batch is taken and committed while the checks of the one before are being confirmed.
    async fn credit(&self, pipeline: &CreditPipeline) -> Finished {
        let mut idle_turns = 0;
        let mut finishing: Finishing<'_> = None;
        loop {
            self.pulse.beat();
            let taken = tokio::select! {
                // A stop comes before another batch.
                biased;
                () = self.stop.cancelled() => return last(&mut finishing).await,
                finished = next(&mut finishing) => {
                    self.after(finished).await?;
                    continue;
                }
                taken = tokio::time::timeout(IDLE_TURN, self.consumer.next_batch(self.batch)) => taken,
            };
            let Ok(batch) = taken else {
                idle_turns += 1;
                if self.probes && idle_turns % IDLE_TURNS_BEFORE_PROBE == 0 {
                    let (probed, finished) = tokio::join!(pipeline.ledger.probe(), last(&mut finishing));
                    self.after(finished).await?;
                    probed.map_err(down)?;
                }
                continue;
            };
            idle_turns = 0;
            let batch = match batch {
                Ok(batch) => batch,
                Err(lost) => return self.lost(lost, &mut finishing).await,
            };
            let turn = Turn { pulse: &self.pulse, stop: &self.stop };
            let (committed, finished) = tokio::join!(pipeline.commit(batch, &turn), last(&mut finishing));
            if let Err(mut interrupted) = self.after(finished).await {
                // Committed and not settled: they come again, and their checks are scheduled then.
                interrupted.unsettled.extend(messages(committed));
                return Err(interrupted);
            }
            finishing = Some(Box::pin(async move {
                let turn = self.turn();
                pipeline.finish(&*self.consumer, committed, &turn).await
            }));
        }
    }

    /// The connection is lost: what is on its way cannot be settled any more, but must not be forgotten either.
    async fn lost(&self, error: BrokerError, finishing: &mut Finishing<'_>) -> Finished {
        let mut lost = broker_lost(error);
        if let Err(interrupted) = last(finishing).await {
            lost.unsettled.extend(interrupted.unsettled);
        }
        Err(lost)
    }

    /// Of a batch that took too long, what is left comes again, to whoever takes it. Anything else ends the session.
    async fn after(&self, finished: Finished) -> Finished {
        match finished {
            Err(Interrupted { outage: None, unsettled }) if !self.stop.is_cancelled() => {
                let deliveries = Some(self.consumer.give_back(unsettled).await);
                events::GaveBack { deliveries }.emit();
                Ok(())
            }
            finished => finished,
        }
    }

    /// Checks and notifications, a batch at a time.
    async fn check(&self, pipeline: &CheckPipeline) -> Finished {
        loop {
            self.pulse.beat();
            let taken = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Ok(()),
                taken = tokio::time::timeout(IDLE_TURN, self.consumer.next_batch(self.batch)) => taken,
            };
            let Ok(batch) = taken else {
                if self.status.is_paused(self.part, Dependency::PayStatus) {
                    pipeline.probe_source().await.map_err(down)?;
                    self.status.resume(self.part, Dependency::PayStatus);
                    if matches!(self.opening, Opening::Trial(_)) {
                        return Ok(());
                    }
                }
                continue;
            };
            let batch = batch.map_err(broker_lost)?;
            if self.consumer.held_at_most() > MOST_HELD {
                self.findings.held_too_long.store(true, Ordering::Relaxed);
                return Err(Interrupted { outage: None, unsettled: batch });
            }
            let begun = Instant::now();
            let processed = pipeline.process(&*self.consumer, batch, &self.turn()).await;
            // A source that was only tried, after many failed probes, may work.
            let answered = pipeline.answered.swap(false, Ordering::Relaxed);
            if answered {
                self.status.resume(self.part, Dependency::PayStatus);
            }
            self.after(processed).await?;
            let found_out = match self.opening {
                Opening::Trial(_) => answered,
                Opening::Slow => begun.elapsed() < QUICK,
                Opening::Full | Opening::Careful => false,
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

fn messages(committed: Committed<Delivered>) -> impl Iterator<Item = Delivered> {
    committed.decided.into_iter().map(|decided| decided.message).chain(committed.undecided)
}
