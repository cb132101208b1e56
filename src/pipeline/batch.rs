//! Running the work of a batch: immediate attempts, then halves of the batch until the failing item is alone.

use crate::{
    domain::failure::{BatchError, Outage},
    observe::events::{self, Event as _},
    pauses,
    pipeline::{
        lock_search,
        lock_search::LockHolders,
        work::{BatchContext, ItemResult, Work},
    },
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// Time limit for splitting a failing batch. The broker requeues deliveries that are not settled within half an hour
/// (RabbitMQ, "Delivery Acknowledgement Timeout"); items that are undecided after this limit return in order before
/// that.
const SPLITTING_TIME: Duration = Duration::from_secs(60);

/// Number of times that a part waits for rows without a visible lock holder before it is split.
const MAX_LOCK_WAITS: u32 = 4;

/// Does the work for `items` and returns the result of each item, in order.
///
/// Items whose rows are known to be locked by other sessions fail at once; one of them tries the row. A batch that
/// fails for a reason of its own is split until the failing item is alone. The parts run in order, so that the first of
/// two items with the same ID remains the one that counts.
pub(super) async fn run_bisecting<W: Work>(
    work: &W,
    items: &Arc<[W::Item]>,
    attempts: u32,
    context: &BatchContext<'_>,
) -> (Vec<ItemResult<W::Done>>, Option<Outage>) {
    let results = items.iter().map(|_| ItemResult::Undecided).collect();
    let mut run = Run { work, items, attempts, context, results, parts: Vec::new(), is_split: false, lock_waits: 0 };
    let free = match work.locked_rows() {
        None => Ok((0..items.len()).collect()),
        Some(locked) => lock_search::set_aside_locked_items(work, locked, items, &mut run.results).await,
    };
    let outage = match free {
        Ok(free) => run.process_parts(free).await.err(),
        Err(outage) => Some(outage),
    };
    (run.results, outage)
}

/// The state of one call of [`run_bisecting`].
struct Run<'a, W: Work> {
    work: &'a W,
    items: &'a Arc<[W::Item]>,
    attempts: u32,
    context: &'a BatchContext<'a>,
    /// The result of each item.
    results: Vec<ItemResult<W::Done>>,
    /// The parts that are still to be processed, as indices of items; the next one is the last element.
    parts: Vec<Vec<usize>>,
    is_split: bool,
    /// Number of waits without a visible lock holder since the last visible one; at least 1 after any wait for a row.
    lock_waits: u32,
}

impl<W: Work> Run<'_, W> {
    /// Does the work for the items with these indices: first as a whole, then in parts.
    async fn process_parts(&mut self, indices: Vec<usize>) -> Result<(), Outage> {
        let begun = Instant::now();
        self.parts.push(indices);
        while let Some(part) = self.parts.pop() {
            if part.is_empty() {
                continue;
            }
            if (self.is_split || self.lock_waits > 0)
                && (self.context.stop.is_cancelled() || begun.elapsed() > SPLITTING_TIME)
            {
                break;
            }
            let alone = part.len() == 1;
            // A part that is only searched for the failing item gets one attempt: its items have had those of the
            // batch.
            let attempts = if !self.is_split || alone { self.attempts } else { 1 };
            let batch = self.items_of(&part);
            let result = attempt_part(self.work, &batch, attempts, self.context).await;
            match result {
                Ok(done) => {
                    for (index, done) in part.into_iter().zip(done) {
                        self.results[index] = ItemResult::Done(done);
                    }
                }
                Err(BatchError::Outage(outage)) => return Err(outage),
                Err(BatchError::Locked(reason)) => self.requeue_locked_part(part, &batch, &reason).await?,
                // The worker is stopping: an item that has not had all of its attempts is not charged for one.
                Err(BatchError::Transient(_)) if alone && self.context.stop.is_cancelled() => break,
                Err(BatchError::Refused(reason)) if alone => self.results[part[0]] = ItemResult::Rejected(reason),
                Err(BatchError::Transient(reason)) if alone => self.results[part[0]] = ItemResult::Failed(reason),
                Err(BatchError::Refused(_) | BatchError::Transient(_)) => self.push_halves(part),
            }
        }
        Ok(())
    }

    fn items_of(&self, part: &[usize]) -> Arc<[W::Item]> {
        if part.len() == self.items.len() {
            return Arc::clone(self.items);
        }
        part.iter().map(|index| self.items[*index].clone()).collect()
    }

    /// Decides how a part proceeds that has waited for a locked row.
    async fn requeue_locked_part(
        &mut self,
        part: Vec<usize>,
        batch: &Arc<[W::Item]>,
        reason: &str,
    ) -> Result<(), Outage> {
        self.context.heartbeat.beat();
        match decide_after_lock_wait(self.work, batch, &mut self.lock_waits, reason).await? {
            LockWaitDecision::SetAside(locked) => {
                let mut rest = part;
                for (position, reason) in locked.into_iter().rev() {
                    self.results[rest.remove(position)] = ItemResult::Failed(reason);
                }
                self.parts.push(rest);
            }
            LockWaitDecision::Retry => self.parts.push(part),
            LockWaitDecision::Fail(reason) => self.results[part[0]] = ItemResult::Failed(reason),
            LockWaitDecision::Split => self.push_halves(part),
        }
        Ok(())
    }

    /// Pushes both halves of a part onto the stack, the first half on top.
    fn push_halves(&mut self, mut part: Vec<usize>) {
        self.is_split = true;
        let later = part.split_off(part.len() / 2);
        self.parts.push(later);
        self.parts.push(part);
    }
}

/// The next action for a part that has waited for a row without success.
enum LockWaitDecision {
    /// Fail the items at these positions, each with its reason, and retry the others.
    SetAside(Vec<(usize, String)>),
    /// Retry the same part. No item is charged for an attempt.
    Retry,
    /// Split the part in halves to find the item whose lock is not visible.
    Split,
    /// Fail the only item of the part.
    Fail(String),
}

async fn decide_after_lock_wait<W: Work>(
    work: &W,
    batch: &Arc<[W::Item]>,
    lock_waits: &mut u32,
    reason: &str,
) -> Result<LockWaitDecision, Outage> {
    let holders = match work.locked_rows() {
        Some(locked) => lock_search::find_lock_holders(work, locked, batch).await?,
        None => LockHolders::NotVisible,
    };
    match holders {
        LockHolders::OtherSessions(locked) => {
            *lock_waits = 1;
            return Ok(LockWaitDecision::SetAside(locked));
        }
        LockHolders::OwnWriters => {
            *lock_waits = (*lock_waits).max(1);
            return Ok(LockWaitDecision::Retry);
        }
        LockHolders::NotVisible => *lock_waits += 1,
    }
    if *lock_waits < MAX_LOCK_WAITS {
        return Ok(LockWaitDecision::Retry);
    }
    if batch.len() > 1 {
        return Ok(LockWaitDecision::Split);
    }
    work.probe().await?;
    Ok(LockWaitDecision::Fail(match work.locked_rows() {
        Some(locked) => lock_search::remember_unseen_lock(work, locked, &batch[0]),
        None => reason.to_owned(),
    }))
}

/// Makes the attempts at one part, and confirms that a transient failure belongs to it.
async fn attempt_part<W: Work>(
    work: &W,
    batch: &Arc<[W::Item]>,
    attempts: u32,
    context: &BatchContext<'_>,
) -> Result<Vec<W::Done>, BatchError> {
    match attempt_immediately(work, batch, attempts, context).await {
        Err(BatchError::Transient(reason)) => confirm_item_failure(work, batch, reason, context).await,
        result => result,
    }
}

/// Confirms that a transient failure belongs to the part. A successful probe shows that other work succeeds at the same
/// time; otherwise no message is to blame. A single item is tried once more after the probe, so that a problem of all
/// messages that has just ended is not charged to the item.
async fn confirm_item_failure<W: Work>(
    work: &W,
    batch: &Arc<[W::Item]>,
    reason: String,
    context: &BatchContext<'_>,
) -> Result<Vec<W::Done>, BatchError> {
    context.heartbeat.beat();
    work.probe().await?;
    if batch.len() > 1 {
        return Err(BatchError::Transient(reason));
    }
    attempt_immediately(work, batch, 1, context).await
}

/// Makes the immediate attempts at one part while the error is transient.
async fn attempt_immediately<W: Work>(
    work: &W,
    batch: &Arc<[W::Item]>,
    attempts: u32,
    context: &BatchContext<'_>,
) -> Result<Vec<W::Done>, BatchError> {
    let mut pauses = pauses::immediate(attempts);
    loop {
        context.heartbeat.beat();
        match work.attempt(Arc::clone(batch)).await {
            Err(BatchError::Transient(reason)) => match pauses.next().filter(|_| !context.stop.is_cancelled()) {
                Some(pause) => {
                    events::BatchRetried { size: batch.len(), reason: &reason, pause }.emit();
                    tokio::time::sleep(pause).await;
                }
                None => return Err(BatchError::Transient(reason)),
            },
            result => return result,
        }
    }
}
