//! Locked rows: found once, remembered, and tried again by one message a second, so that no other message waits for them.

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
pub(super) enum Course {
    /// None of its rows is locked.
    Free,
    /// It is the one that tries its rows now.
    Try(String),
    /// It takes its retry step without a try.
    Defer(String),
}

impl LockedRows {
    fn rows(&self) -> MutexGuard<'_, HashMap<LedgerRow, Remembered>> {
        lock(&self.0)
    }

    /// Forgets what was remembered for long enough. Whether no row is left: nearly always.
    pub(super) fn is_empty_at(&self, now: Instant) -> bool {
        let mut remembered = self.rows();
        remembered.retain(|_, row| row.forgotten_at > now);
        remembered.is_empty()
    }

    /// How a message with these rows proceeds. `is_last`: it has no retry step left, and is always tried.
    pub(super) fn course(&self, rows: &[LedgerRow], is_last: bool, now: Instant) -> Course {
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
    pub(super) fn remember(&self, row: &LedgerRow, holder: &str, seen: bool) {
        let now = Instant::now();
        let remembered =
            Remembered { holder: holder.to_owned(), seen, next_try: now + BETWEEN_TRIES, forgotten_at: now + MEMORY };
        let known = self.rows().insert(row.clone(), remembered).is_some();
        if !known {
            events::RowLocked { row: &row.to_string(), holder }.emit();
        }
    }

    /// Forgets rows that are not locked any more.
    pub(super) fn forget<'a>(&self, rows: impl Iterator<Item = &'a LedgerRow>) {
        for row in rows {
            let forgotten = self.rows().remove(row).is_some();
            if forgotten {
                events::RowReleased { row: &row.to_string() }.emit();
            }
        }
    }

    /// Whether one of these rows is remembered without having been seen locked.
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
