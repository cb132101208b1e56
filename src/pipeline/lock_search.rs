//! Finding the items of a batch that need locked rows, so that the others proceed without them.

use super::{
    locked_rows::{Course, LockedRows},
    ports::{LedgerRow, RowLocks},
    work::{ItemResult, Work},
};
use crate::domain::failure::{BatchError, Outage};
use std::{collections::HashMap, sync::Arc, time::Instant};

/// Returns the error text of a message that takes its retry step because of a locked row.
fn locked_error(what: &str) -> String {
    format!("a row that the message needs is locked by another session ({what})")
}

/// Holders of the rows for which a batch has waited without success.
pub(super) enum LockHolders {
    /// Other sessions hold rows of the items at these positions of the batch; each with its error text.
    OtherSessions(Vec<(usize, String)>),
    /// Only writers of pointsd wait for one another.
    OwnWriters,
    /// No lock is visible: it has been released, or the ledger cannot show it.
    NotVisible,
}

/// Finds the items whose rows other sessions hold, and remembers the rows. A probe proves that the ledger works
/// otherwise.
pub(super) async fn find_lock_holders<W: Work>(
    work: &W,
    locked: &LockedRows,
    batch: &[W::Item],
) -> Result<LockHolders, Outage> {
    let rows: Vec<Vec<LedgerRow>> = batch.iter().map(|item| work.rows(item)).collect();
    let mut distinct: Vec<LedgerRow> = rows.iter().flatten().cloned().collect();
    distinct.sort_unstable();
    distinct.dedup();
    let RowLocks { by_others, by_own_writers } = work.row_locks(distinct).await?;
    if by_others.is_empty() {
        return Ok(if by_own_writers { LockHolders::OwnWriters } else { LockHolders::NotVisible });
    }
    work.probe().await?;
    for (row, holder) in &by_others {
        locked.remember(row, holder, true);
    }
    let reason = |rows: &Vec<LedgerRow>| {
        rows.iter().find_map(|row| Some(locked_error(&format!("{row}: {}", by_others.get(row)?))))
    };
    Ok(LockHolders::OtherSessions(
        rows.iter().enumerate().filter_map(|(index, rows)| Some((index, reason(rows)?))).collect(),
    ))
}

/// Remembers the rows of a single item that fails because of a lock that is not visible. Returns its error text.
pub(super) fn remember_unseen_lock<W: Work>(work: &W, locked: &LockedRows, item: &W::Item) -> String {
    for row in work.rows(item) {
        locked.remember(&row, "a transaction that inserts it", false);
    }
    locked_error("a transaction that inserts it")
}

/// Removes the items from a batch whose rows are remembered as locked: they fail without an attempt, except for those
/// that try their rows now. Returns the indices of the remaining items.
pub(super) async fn set_aside_locked_items<W: Work>(
    work: &W,
    locked: &LockedRows,
    items: &[W::Item],
    results: &mut [ItemResult<W::Done>],
) -> Result<Vec<usize>, Outage> {
    let now = Instant::now();
    if locked.forget_expired(now) {
        return Ok((0..items.len()).collect());
    }
    let (mut free, mut tries) = (Vec::with_capacity(items.len()), Vec::new());
    for (index, item) in items.iter().enumerate() {
        match locked.choose_course(&work.rows(item), work.is_last(index), now) {
            Course::Free => free.push(index),
            Course::Try(holder) => tries.push((index, holder)),
            Course::Defer(holder) => results[index] = ItemResult::Failed(locked_error(&holder)),
        }
    }
    if !tries.is_empty() {
        free.extend(try_locked_rows(work, locked, items, tries, results).await?);
        // In the order of the items: the first of two messages with the same payment counts.
        free.sort_unstable();
    }
    Ok(free)
}

/// Tries items on locked rows together, with a short wait. Returns those that are neither locked nor done.
async fn try_locked_rows<W: Work>(
    work: &W,
    locked: &LockedRows,
    items: &[W::Item],
    tries: Vec<(usize, String)>,
    results: &mut [ItemResult<W::Done>],
) -> Result<Vec<usize>, Outage> {
    let batch: Arc<[W::Item]> = tries.iter().map(|(index, _)| items[*index].clone()).collect();
    let mut free = Vec::new();
    match work.attempt_briefly(Arc::clone(&batch)).await {
        Ok(done) => {
            for ((index, _), done) in tries.iter().zip(done) {
                results[*index] = ItemResult::Done(done);
            }
            locked.forget(batch.iter().flat_map(|item| work.rows(item)).collect::<Vec<_>>().iter());
        }
        Err(BatchError::Outage(outage)) => return Err(outage),
        // Splitting the batch finds the failing item.
        Err(BatchError::Refused(_) | BatchError::Transient(_)) => free.extend(tries.iter().map(|(index, _)| *index)),
        Err(BatchError::Locked(_)) => {
            let holders = find_lock_holders(work, locked, &batch).await?;
            // If only writers of pointsd had held the rows, the item would have been processed after them.
            let may_be_unseen = !matches!(holders, LockHolders::OwnWriters);
            let mut reasons: HashMap<usize, String> = match holders {
                LockHolders::OtherSessions(locked) => locked.into_iter().collect(),
                LockHolders::OwnWriters | LockHolders::NotVisible => HashMap::new(),
            };
            for (position, (index, holder)) in tries.into_iter().enumerate() {
                let rows = work.rows(&items[index]);
                let unseen = || (may_be_unseen && locked.is_unseen(&rows)).then(|| locked_error(&holder));
                if let Some(reason) = reasons.remove(&position).or_else(unseen) {
                    results[index] = ItemResult::Failed(reason);
                } else {
                    locked.forget(rows.iter());
                    free.push(index);
                }
            }
        }
    }
    Ok(free)
}
