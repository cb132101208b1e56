//! Locked rows: found once, remembered, and tried again by one message a second, so that no other message waits for them.

use super::ports::{LedgerRow, RowLocks};
use crate::{
    domain::failure::{BatchError, Outage},
    observe::events,
    pipeline::batch::{ItemResult, Work},
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How often one message tries a locked row.
const BETWEEN_TRIES: Duration = Duration::from_secs(1);

/// How long a row is remembered after it was last found locked. Longer than most retry delays: a message that runs into a
/// forgotten row holds its whole batch up.
const MEMORY: Duration = Duration::from_secs(60);

/// The rows that sessions other than pointsd's hold locked, shared by all pipelines of a daemon.
#[derive(Debug, Default)]
pub struct LockedRows(Mutex<HashMap<LedgerRow, Remembered>>);

#[derive(Debug)]
struct Remembered {
    /// Which session holds it, for a person.
    holder: String,
    /// Whether that was seen in the row itself. A row that another transaction inserts cannot be seen.
    seen: bool,
    next_try: Instant,
    forgotten_at: Instant,
}

/// How a message proceeds.
#[derive(Debug, PartialEq, Eq)]
enum Course {
    /// None of its rows is locked.
    Free,
    /// It is the one that tries its rows now.
    Try(String),
    /// It takes its retry step without a try.
    Defer(String),
}

impl LockedRows {
    fn rows(&self) -> MutexGuard<'_, HashMap<LedgerRow, Remembered>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what was remembered for long enough. Whether no row is left: nearly always.
    fn is_empty_at(&self, now: Instant) -> bool {
        let mut remembered = self.rows();
        remembered.retain(|_, row| row.forgotten_at > now);
        remembered.is_empty()
    }

    /// How a message with these rows proceeds. `is_last`: it has no retry step left, and is always tried.
    fn course(&self, rows: &[LedgerRow], is_last: bool, now: Instant) -> Course {
        let mut remembered = self.rows();
        let found = || rows.iter().filter(|row| remembered.contains_key(*row));
        let Some(holder) = found().next().map(|row| format!("{row}: {}", remembered[row].holder)) else {
            return Course::Free;
        };
        let due = found().all(|row| remembered[row].next_try <= now);
        if !due && !is_last {
            return Course::Defer(holder);
        }
        for row in rows {
            if let Some(row) = remembered.get_mut(row) {
                row.next_try = now + BETWEEN_TRIES;
            }
        }
        Course::Try(holder)
    }

    /// Remembers a row, and logs it when it is new.
    fn remember(&self, row: &LedgerRow, holder: &str, seen: bool) {
        let now = Instant::now();
        let remembered =
            Remembered { holder: holder.to_owned(), seen, next_try: now + BETWEEN_TRIES, forgotten_at: now + MEMORY };
        let known = self.rows().insert(row.clone(), remembered).is_some();
        if !known {
            events::RowLocked { row: &row.to_string(), holder }.emit();
        }
    }

    /// Forgets rows that are not locked any more.
    fn forget<'a>(&self, rows: impl Iterator<Item = &'a LedgerRow>) {
        for row in rows {
            let forgotten = self.rows().remove(row).is_some();
            if forgotten {
                events::RowReleased { row: &row.to_string() }.emit();
            }
        }
    }

    /// Whether one of these rows is remembered without having been seen locked.
    fn is_unseen(&self, rows: &[LedgerRow]) -> bool {
        let remembered = self.rows();
        rows.iter().any(|row| remembered.get(row).is_some_and(|row| !row.seen))
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::UserId;

    #[test]
    fn one_message_a_second_tries_a_locked_row_and_the_last_step_is_always_tried() {
        let locked = LockedRows::default();
        let row = |user: &str| LedgerRow::User(UserId::new(user).unwrap());
        let begun = Instant::now();
        let course = |user: &str, last, seconds: f64| {
            locked.course(&[row("other"), row(user)], last, begun + Duration::from_secs_f64(seconds))
        };
        assert_eq!(course("a", false, 0.0), Course::Free);
        locked.remember(&row("a"), "psql", true);
        let wait = Course::Defer("user a: psql".into());
        let tries = Course::Try("user a: psql".into());
        assert_eq!((course("a", false, 0.5), course("b", false, 0.5)), (wait, Course::Free));
        assert_eq!((course("a", false, 1.5), course("a", false, 1.6)), (tries, Course::Defer("user a: psql".into())));
        assert_eq!(course("a", true, 1.7), Course::Try("user a: psql".into()), "no step is left");
        assert!(!locked.is_empty_at(begun + Duration::from_secs(59)));
        assert!(locked.is_empty_at(begun + Duration::from_secs(62)), "forgotten");
        locked.remember(&row("a"), "psql", false);
        assert!(locked.is_unseen(&[row("a")]) && !locked.is_unseen(&[row("b")]));
        locked.forget([row("a")].iter());
        assert!(locked.is_empty_at(begun));
    }
}
