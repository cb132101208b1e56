//! The memory of locked rows. One message a second tries a locked row, so that no other message waits for it.

use super::ports::LedgerRow;
use crate::{
    observe::events::{self, Event as _},
    unpoisoned::lock,
};
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

/// Interval at which one message tries a locked row.
const TRY_INTERVAL: Duration = Duration::from_secs(1);

/// Time for which a row is remembered after it was last found locked. It is longer than most retry delays, because a
/// message that meets a forgotten locked row delays its whole batch.
const REMEMBERED_FOR: Duration = Duration::from_secs(60);

/// The rows that sessions of other programs hold locked. All pipelines of a daemon share this memory.
#[derive(Debug, Default)]
pub struct LockedRows(Mutex<HashMap<LedgerRow, Remembered>>);

#[derive(Debug)]
struct Remembered {
    /// Description of the session that holds the row.
    holder: String,
    /// Whether the lock is visible in the row itself. A row that another transaction inserts is not visible.
    seen: bool,
    next_try: Instant,
    forgotten_at: Instant,
}

/// The way in which a message proceeds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Course {
    /// None of the message's rows is locked.
    Free,
    /// The message tries its locked rows now; with a description of the lock.
    Try(String),
    /// The message takes its retry step without an attempt; with a description of the lock.
    Defer(String),
}

impl LockedRows {
    fn rows(&self) -> MutexGuard<'_, HashMap<LedgerRow, Remembered>> {
        lock(&self.0)
    }

    /// Forgets the rows whose time has expired. Returns whether no row is left, which is the usual case.
    pub(super) fn forget_expired(&self, now: Instant) -> bool {
        let mut remembered = self.rows();
        remembered.retain(|_, row| row.forgotten_at > now);
        remembered.is_empty()
    }

    /// Chooses how a message with these rows proceeds. A message without a retry step left (`is_last`) always tries
    /// them.
    pub(super) fn choose_course(&self, rows: &[LedgerRow], is_last: bool, now: Instant) -> Course {
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
                row.next_try = now + TRY_INTERVAL;
            }
        }
        Course::Try(holder)
    }

    /// Remembers a locked row, and logs it if it is new.
    pub(super) fn remember(&self, row: &LedgerRow, holder: &str, seen: bool) {
        let now = Instant::now();
        let remembered = Remembered {
            holder: holder.to_owned(),
            seen,
            next_try: now + TRY_INTERVAL,
            forgotten_at: now + REMEMBERED_FOR,
        };
        let known = self.rows().insert(row.clone(), remembered).is_some();
        if !known {
            events::RowLocked { row: &row.to_string(), holder }.emit();
        }
    }

    /// Forgets rows that are no longer locked.
    pub(super) fn forget<'a>(&self, rows: impl Iterator<Item = &'a LedgerRow>) {
        for row in rows {
            let forgotten = self.rows().remove(row).is_some();
            if forgotten {
                events::RowReleased { row: &row.to_string() }.emit();
            }
        }
    }

    /// Returns whether one of these rows is remembered for a lock that is not visible.
    pub(super) fn is_unseen(&self, rows: &[LedgerRow]) -> bool {
        let remembered = self.rows();
        rows.iter().any(|row| remembered.get(row).is_some_and(|row| !row.seen))
    }
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
            locked.choose_course(&[row("other"), row(user)], last, begun + Duration::from_secs_f64(seconds))
        };
        assert_eq!(course("a", false, 0.0), Course::Free);
        locked.remember(&row("a"), "psql", true);
        let wait = Course::Defer("user a: psql".into());
        let tries = Course::Try("user a: psql".into());
        assert_eq!((course("a", false, 0.5), course("b", false, 0.5)), (wait, Course::Free));
        assert_eq!((course("a", false, 1.5), course("a", false, 1.6)), (tries, Course::Defer("user a: psql".into())));
        assert_eq!(course("a", true, 1.7), Course::Try("user a: psql".into()), "no step is left");
        assert!(!locked.forget_expired(begun + Duration::from_secs(59)));
        assert!(locked.forget_expired(begun + Duration::from_secs(62)), "forgotten");
        locked.remember(&row("a"), "psql", false);
        assert!(locked.is_unseen(&[row("a")]) && !locked.is_unseen(&[row("b")]));
        locked.forget([row("a")].iter());
        assert!(locked.forget_expired(begun));
    }
}
