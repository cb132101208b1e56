//! Finding out which items of a batch need locked rows, so that the others proceed without them.

use super::{
    locked_rows::{Course, LockedRows},
    ports::{LedgerRow, RowLocks},
    work::{ItemResult, Work},
};
use crate::domain::failure::{BatchError, Outage};
use std::{collections::HashMap, sync::Arc, time::Instant};

/// The reason of a message that takes its retry step because of a locked row.
fn held(what: &str) -> String {
    format!("a row that it needs is locked by another session ({what})")
}

/// The outcome of looking who holds the rows of a batch that waited in vain.
pub(super) enum LockedBy {
    /// The positions within the batch of the items whose rows other sessions hold, and the reason of each.
    Held(Vec<(usize, String)>),
    /// Only pointsd's own writers wait for one another.
    OwnWriters,
    /// No lock is seen: it is gone by now, or cannot be seen.
    Nothing,
}

/// Finds the items whose rows other sessions hold, and remembers the rows. A probe proves that the ledger works otherwise.
pub(super) async fn look<W: Work>(work: &W, locked: &LockedRows, batch: &[W::Item]) -> Result<LockedBy, Outage> {
    let rows: Vec<Vec<LedgerRow>> = batch.iter().map(|item| work.rows(item)).collect();
    let mut distinct: Vec<LedgerRow> = rows.iter().flatten().cloned().collect();
    distinct.sort_unstable();
    distinct.dedup();
    let RowLocks { by_others, by_own_writers } = work.row_locks(distinct).await?;
    if by_others.is_empty() {
        return Ok(if by_own_writers { LockedBy::OwnWriters } else { LockedBy::Nothing });
    }
    work.probe().await?;
    for (row, holder) in &by_others {
        locked.remember(row, holder, true);
    }
    let reason =
        |rows: &Vec<LedgerRow>| rows.iter().find_map(|row| Some(held(&format!("{row}: {}", by_others.get(row)?))));
    Ok(LockedBy::Held(rows.iter().enumerate().filter_map(|(index, rows)| Some((index, reason(rows)?))).collect()))
}

/// Remembers the rows of an item that fails alone at a lock which cannot be seen. Returns the reason.
pub(super) fn remember_unseen<W: Work>(work: &W, locked: &LockedRows, item: &W::Item) -> String {
    for row in work.rows(item) {
        locked.remember(&row, "a transaction that inserts it", false);
    }
    held("a transaction that inserts it")
}

/// Takes the items out of a batch whose rows are remembered as locked: they fail without a try, but for those that try them
/// now. Returns the indices of the others.
pub(super) async fn set_aside<W: Work>(
    work: &W,
    locked: &LockedRows,
    items: &[W::Item],
    results: &mut [ItemResult<W::Done>],
) -> Result<Vec<usize>, Outage> {
    let now = Instant::now();
    if locked.is_empty_at(now) {
        return Ok((0..items.len()).collect());
    }
    let (mut free, mut tries) = (Vec::with_capacity(items.len()), Vec::new());
    for (index, item) in items.iter().enumerate() {
        match locked.course(&work.rows(item), work.is_last(index), now) {
            Course::Free => free.push(index),
            Course::Try(holder) => tries.push((index, holder)),
            Course::Defer(holder) => results[index] = ItemResult::Failed(held(&holder)),
        }
    }
    if !tries.is_empty() {
        free.extend(try_briefly(work, locked, items, tries, results).await?);
        // In the order of the items: of two messages of one payment the first one counts.
        free.sort_unstable();
    }
    Ok(free)
}

/// Tries items on locked rows together, with little patience. Returns those that are not locked, and not done.
async fn try_briefly<W: Work>(
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
        // The usual way finds out which of them it is.
        Err(BatchError::Refused(_) | BatchError::Transient(_)) => free.extend(tries.iter().map(|(index, _)| *index)),
        Err(BatchError::Locked(_)) => {
            let locked_by = look(work, locked, &batch).await?;
            // Behind a writer of ours it would have had its turn.
            let may_be_unseen = !matches!(locked_by, LockedBy::OwnWriters);
            let mut reasons: HashMap<usize, String> = match locked_by {
                LockedBy::Held(held) => held.into_iter().collect(),
                LockedBy::OwnWriters | LockedBy::Nothing => HashMap::new(),
            };
            for (position, (index, holder)) in tries.into_iter().enumerate() {
                let rows = work.rows(&items[index]);
                let unseen = || (may_be_unseen && locked.is_unseen(&rows)).then(|| held(&holder));
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
