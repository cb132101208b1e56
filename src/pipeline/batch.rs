//! What every pipeline shares: the immediate stage of a batch that fails, and the log lines of copies.

use crate::{
    domain::failure::{BatchError, Outage},
    observe::events::{self, Event as _},
    pauses,
    pipeline::{
        lock_search,
        lock_search::LockedBy,
        work::{BatchContext, ItemResult, Work},
    },
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// How long a batch that fails may be split. The broker takes deliveries back that are not settled for half an
/// hour (RabbitMQ, "Delivery Acknowledgement Timeout"); what is undecided by then goes back in order before.
const SPLITTING_TIME: Duration = Duration::from_secs(60);

/// How often a part waits for rows that nobody is seen to hold before it is split.
const LOCK_WAITS: u32 = 4;

/// Does the work for `items`, and answers what became of each, in order.
///
/// Items whose rows are known to be locked by others fail at once, and one of them tries the row. A batch that fails for a
/// reason of its own is split until the item that fails is alone; the parts are done in order, so that of two items with one
/// id still the first one counts.
pub(super) async fn run_bisecting<W: Work>(
    work: &W,
    items: &Arc<[W::Item]>,
    attempts: u32,
    context: &BatchContext<'_>,
) -> (Vec<ItemResult<W::Done>>, Option<Outage>) {
    let mut results: Vec<_> = items.iter().map(|_| ItemResult::Undecided).collect();
    let free = match work.locked_rows() {
        None => Ok((0..items.len()).collect()),
        Some(locked) => lock_search::set_aside(work, locked, items, &mut results).await,
    };
    let outage = match free {
        Ok(free) => parts(work, items, free, attempts, context, &mut results).await.err(),
        Err(outage) => Some(outage),
    };
    (results, outage)
}

/// Does the work for the items with these indices: as a whole, and in parts when that does not help.
async fn parts<W: Work>(
    work: &W,
    items: &Arc<[W::Item]>,
    indices: Vec<usize>,
    attempts: u32,
    context: &BatchContext<'_>,
    results: &mut [ItemResult<W::Done>],
) -> Result<(), Outage> {
    let begun = Instant::now();
    let (mut parts, mut is_split, mut lock_waits) = (vec![indices], false, 0);
    while let Some(part) = parts.pop() {
        if part.is_empty() {
            continue;
        }
        let alone = part.len() == 1;
        if (is_split || lock_waits > 0) && (context.stop.is_cancelled() || begun.elapsed() > SPLITTING_TIME) {
            break;
        }
        // A part that is only searched for the item that fails has failed often enough.
        let attempts = if !is_split || alone { attempts } else { 1 };
        let batch: Arc<[W::Item]> = if part.len() == items.len() {
            Arc::clone(items)
        } else {
            part.iter().map(|index| items[*index].clone()).collect()
        };
        let tried = match attempt(work, &batch, attempts, context).await {
            Err(BatchError::Transient(reason)) => confirm_item_failure(work, &batch, reason, context).await,
            tried => tried,
        };
        match tried {
            Ok(done) => {
                for (index, done) in part.into_iter().zip(done) {
                    results[index] = ItemResult::Done(done);
                }
            }
            Err(BatchError::Outage(outage)) => return Err(outage),
            Err(BatchError::Locked(reason)) => {
                context.heartbeat.beat();
                match after_lock_wait(work, &batch, &mut lock_waits, &reason).await? {
                    AfterLockWait::SetAside(held) => {
                        let mut rest = part.clone();
                        for (position, reason) in held.into_iter().rev() {
                            results[rest.remove(position)] = ItemResult::Failed(reason);
                        }
                        parts.push(rest);
                    }
                    AfterLockWait::Again => parts.push(part),
                    AfterLockWait::Fail(reason) => results[part[0]] = ItemResult::Failed(reason),
                    AfterLockWait::Split => {
                        is_split = true;
                        split(part, &mut parts);
                    }
                }
            }
            // Told to stop: no attempt is spent on a message that has not had all of its own.
            Err(BatchError::Transient(_)) if alone && context.stop.is_cancelled() => break,
            Err(BatchError::Refused(reason)) if alone => results[part[0]] = ItemResult::Rejected(reason),
            Err(BatchError::Transient(reason)) if alone => results[part[0]] = ItemResult::Failed(reason),
            Err(BatchError::Refused(_) | BatchError::Transient(_)) => {
                is_split = true;
                split(part, &mut parts);
            }
        }
    }
    Ok(())
}

/// Puts both halves of a part on the stack, the first one on top.
fn split(mut part: Vec<usize>, parts: &mut Vec<Vec<usize>>) {
    let later = part.split_off(part.len() / 2);
    parts.push(later);
    parts.push(part);
}

/// How a part goes on after it waited for a row in vain.
enum AfterLockWait {
    /// Without the items at these positions, each with the reason why it fails.
    SetAside(Vec<(usize, String)>),
    /// The same part again: it costs nobody an attempt.
    Again,
    /// In halves, to find the item whose lock cannot be seen.
    Split,
    /// Its only item fails.
    Fail(String),
}

async fn after_lock_wait<W: Work>(
    work: &W,
    batch: &Arc<[W::Item]>,
    lock_waits: &mut u32,
    reason: &str,
) -> Result<AfterLockWait, Outage> {
    let locked_by = match work.locked_rows() {
        Some(locked) => lock_search::look(work, locked, batch).await?,
        None => LockedBy::Nothing,
    };
    match locked_by {
        LockedBy::Held(held) => {
            *lock_waits = 1;
            return Ok(AfterLockWait::SetAside(held));
        }
        LockedBy::OwnWriters => {
            *lock_waits = (*lock_waits).max(1);
            return Ok(AfterLockWait::Again);
        }
        LockedBy::Nothing => *lock_waits += 1,
    }
    if *lock_waits < LOCK_WAITS {
        return Ok(AfterLockWait::Again);
    }
    if batch.len() > 1 {
        return Ok(AfterLockWait::Split);
    }
    work.probe().await?;
    Ok(AfterLockWait::Fail(match work.locked_rows() {
        Some(locked) => lock_search::remember_unseen(work, locked, &batch[0]),
        None => reason.to_owned(),
    }))
}

/// Whether a failure that may pass is the part's own: something else must be done meanwhile, or nobody's message is to
/// blame. An item alone is tried once more after that, so that what was in everybody's way when it failed, and has just
/// gone, is not charged to it.
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
    attempt(work, batch, 1, context).await
}

/// The immediate stage: a few attempts at one part, as long as the reason may pass.
async fn attempt<W: Work>(
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
            decided => return decided,
        }
    }
}
