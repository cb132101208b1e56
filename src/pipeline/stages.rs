//! What every pipeline shares: the immediate stage of a batch that fails, and the log lines of copies.

use super::ports::{BatchError, Decided, Forward, Message, Outage};
use crate::{
    backoff,
    domain::{retry::RetryPolicy, settlement::Destination},
    observe::{events, pulse::Pulse},
};
use async_trait::async_trait;
use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// How long a batch that fails may be split. The broker takes deliveries back that are not settled for half an
/// hour (RabbitMQ, "Delivery Acknowledgement Timeout"); what is undecided by then goes back in order before.
const SPLITTING_TIME: Duration = Duration::from_secs(60);

/// Who works on a batch.
pub struct Turn<'a> {
    /// Beats before each step that waits.
    pub pulse: &'a Pulse,
    /// When cancelled, no further attempt is begun.
    pub stop: &'a CancellationToken,
}

/// Processing stopped before every message was settled.
#[derive(Debug)]
pub struct Interrupted<M> {
    /// What is down; `None` when the worker was told to stop, or a batch took too long.
    pub outage: Option<Outage>,
    /// Neither committed for certain nor forwarded: to be given back.
    pub unsettled: Vec<M>,
}

impl<M> Interrupted<M> {
    /// `Ok` when nothing is left and nothing is down.
    pub fn unless_done(outage: Option<Outage>, unsettled: Vec<M>) -> Result<(), Self> {
        if outage.is_none() && unsettled.is_empty() { Ok(()) } else { Err(Self { outage, unsettled }) }
    }
}

/// Something that is done for a whole batch, or for none of it.
#[async_trait]
pub(super) trait Work: Sync {
    /// One of the batch.
    type Item: Clone + Send + Sync;
    /// What became of one.
    type Done: Send;

    /// Does it, and answers for each item, in order.
    async fn attempt(&self, batch: Arc<[Self::Item]>) -> Result<Vec<Self::Done>, BatchError>;

    /// Whether what it needs works for somebody else.
    async fn probe(&self) -> Result<(), Outage>;
}

/// What became of an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fate<T> {
    /// Nothing that is certain.
    Open,
    /// It is done.
    Done(T),
    /// It is refused, alone, now and later.
    Refused(String),
    /// It failed alone for a reason that may pass, while something else was done.
    Failed(String),
}

/// Does the work for `items`, and tells what became of each, in order.
///
/// A batch that fails for a reason of its own is split until the item that fails is alone; the parts are done in order,
/// so that of two items with one id still the first one counts.
pub(super) async fn through<W: Work>(
    work: &W,
    items: &Arc<[W::Item]>,
    attempts: u32,
    turn: &Turn<'_>,
) -> (Vec<Fate<W::Done>>, Option<Outage>) {
    let mut fates: Vec<_> = items.iter().map(|_| Fate::Open).collect();
    let begun = Instant::now();
    let mut parts = vec![Range { start: 0, end: items.len() }];
    while let Some(part) = parts.pop().filter(|part| !part.is_empty()) {
        let (whole, alone) = (part.len() == items.len(), part.len() == 1);
        if !whole && (turn.stop.is_cancelled() || begun.elapsed() > SPLITTING_TIME) {
            break;
        }
        // A part that is only looked through for the item that fails has failed often enough.
        let attempts = if whole || alone { attempts } else { 1 };
        let batch: Arc<[W::Item]> = if whole { Arc::clone(items) } else { items[part.clone()].into() };
        let tried = match attempt(work, &batch, attempts, turn).await {
            Err(BatchError::Transient(reason)) => blame(work, &batch, reason, turn).await,
            tried => tried,
        };
        match tried {
            Ok(done) => {
                for (fate, done) in fates[part].iter_mut().zip(done) {
                    *fate = Fate::Done(done);
                }
            }
            Err(BatchError::Outage(outage)) => return (fates, Some(outage)),
            // Told to stop: no attempt is spent on a message that has not had all of its own.
            Err(BatchError::Transient(_)) if alone && turn.stop.is_cancelled() => break,
            Err(BatchError::Refused(reason)) if alone => fates[part.start] = Fate::Refused(reason),
            Err(BatchError::Transient(reason)) if alone => fates[part.start] = Fate::Failed(reason),
            Err(BatchError::Refused(_) | BatchError::Transient(_)) => {
                let middle = part.start + part.len() / 2;
                parts.push(middle..part.end);
                parts.push(part.start..middle);
            }
        }
    }
    (fates, None)
}

/// Whether a failure that may pass is the part's own: something else must be done meanwhile, or nobody's message is to
/// blame. An item alone is tried once more after that, so that what was in everybody's way when it failed, and has just
/// gone, is not charged to it.
async fn blame<W: Work>(
    work: &W,
    batch: &Arc<[W::Item]>,
    reason: String,
    turn: &Turn<'_>,
) -> Result<Vec<W::Done>, BatchError> {
    turn.pulse.beat();
    work.probe().await?;
    if batch.len() > 1 {
        return Err(BatchError::Transient(reason));
    }
    attempt(work, batch, 1, turn).await
}

/// The immediate stage: a few attempts at one part, as long as the reason may pass.
async fn attempt<W: Work>(
    work: &W,
    batch: &Arc<[W::Item]>,
    attempts: u32,
    turn: &Turn<'_>,
) -> Result<Vec<W::Done>, BatchError> {
    let mut pauses = backoff::immediate(attempts);
    loop {
        turn.pulse.beat();
        match work.attempt(Arc::clone(batch)).await {
            Err(BatchError::Transient(reason)) => match pauses.next().filter(|_| !turn.stop.is_cancelled()) {
                Some(pause) => {
                    events::BatchRetried { size: batch.len(), reason: &reason, pause }.emit();
                    tokio::time::sleep(pause).await;
                }
                None => return Err(BatchError::Transient(reason)),
            },
            decided => return decided,
        }
    }
}

/// How far a batch came in one step.
pub(super) struct Progress<M, O> {
    pub(super) decided: Vec<Decided<M, O>>,
    pub(super) undecided: Vec<M>,
    pub(super) outage: Option<Outage>,
}

/// Writes a log line for every copy that is confirmed.
pub(super) fn log_copies<'a, M: Message + 'a>(copies: impl Iterator<Item = &'a Forward<'a, M>>, retry: &RetryPolicy) {
    for Forward { message, payment_id, to, error, .. } in copies {
        let (message, error) = (&message.label(), error.as_deref().unwrap_or_default());
        let payment_id = *payment_id;
        match *to {
            Destination::Dead(reason) => events::MessageParked { reason, payment_id, message, error }.emit(),
            Destination::Retry(step) => {
                let delay = retry.delays()[step.index()].as_str();
                events::MessageDelayed { attempt: step.attempt(), delay, payment_id, message, error }.emit();
            }
            // No trouble: it is counted with the step that asks for it.
            Destination::Check(_) | Destination::CheckQueue => {}
        }
    }
}
