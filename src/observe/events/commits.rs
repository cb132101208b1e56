//! Transactions of the ledger: what they commit, how long they take, and what they wait for.

#![allow(clippy::disallowed_macros, reason = "this is the place for them")]

use crate::{
    domain::{
        component::Component,
        credit::{Credit, Verdict},
        failure::BatchError,
    },
    observe::{limit::Limit, metrics as names},
};
use ::metrics::{counter, histogram};
use std::time::Duration;
use tracing::{debug, info, warn};

/// A transaction of the ledger was committed.
pub struct BatchCommitted<'a> {
    /// What was in it.
    pub credits: &'a [Credit],
    /// What the ledger said of each.
    pub verdicts: &'a [Verdict],
    /// How long the ledger took.
    pub took: Duration,
}

impl BatchCommitted<'_> {
    /// Counts and logs it.
    pub fn emit(self) {
        let new = self.credits.iter().zip(self.verdicts).filter(|(_, verdict)| **verdict == Verdict::Credited);
        let (credited, points) = new.fold((0_u64, 0_u64), |(credited, points), (credit, _)| {
            (credited + 1, points + credit.points.get().unsigned_abs())
        });
        counter!(names::POINTS_CREDITED).increment(points);
        histogram!(names::COMMIT_SECONDS).record(self.took);
        #[allow(clippy::cast_precision_loss, reason = "a batch has at most 10 000 messages")]
        histogram!(names::BATCH_SIZE).record(self.credits.len() as f64);
        debug!(size = self.credits.len(), credited, points, took = ?self.took, "batch committed");
    }
}

/// A transaction of the ledger failed.
pub struct CommitFailed<'a> {
    /// Whose it was.
    pub component: Component,
    /// How many messages or checks are in it.
    pub size: usize,
    /// How long it waited.
    pub took: Duration,
    /// Why.
    pub reason: &'a BatchError,
}

/// A failure after a wait of this length is a deadline or a time-out of some kind, whatever the database calls it.
const LONG_WAIT: Duration = Duration::from_secs(1);

/// Commits that wait in vain come in crowds.
static COMMITS_HELD_UP: Limit = Limit::new(1);

impl CommitFailed<'_> {
    /// Logs it: at WARN when it waited for a lock or for long, once a second at most.
    pub fn emit(self) {
        let Self { component, size, took, reason } = self;
        let queue = component.label();
        if !matches!(reason, BatchError::Locked(_)) && took < LONG_WAIT {
            debug!(queue, size, waited = ?took, %reason, "commit failed");
        } else if let Some(suppressed) = COMMITS_HELD_UP.admit() {
            warn!(queue, size, waited = ?took, %reason, suppressed, "commit timed out");
        }
    }
}

/// Another session holds a row locked: messages that need it take their retry steps, and all others go on.
pub struct RowLocked<'a> {
    /// Which row.
    pub row: &'a str,
    /// Which session.
    pub holder: &'a str,
}

/// A bulk update locks thousands of rows.
static ROWS_LOCKED: Limit = Limit::new(10);

impl RowLocked<'_> {
    /// Logs it, ten times a second at most.
    pub fn emit(self) {
        if let Some(suppressed) = ROWS_LOCKED.admit() {
            warn!(
                row = self.row,
                holder = self.holder,
                suppressed,
                "row locked by another session; its messages are retried"
            );
        }
    }
}

/// A row that was locked is free.
pub struct RowReleased<'a> {
    /// Which row.
    pub row: &'a str,
}

/// As [`ROWS_LOCKED`].
static ROWS_RELEASED: Limit = Limit::new(10);

impl RowReleased<'_> {
    /// Logs it, ten times a second at most.
    pub fn emit(self) {
        if let Some(suppressed) = ROWS_RELEASED.admit() {
            info!(row = self.row, suppressed, "row released");
        }
    }
}

/// Logs the counts of suppressed lines, once the second in which that happened is over.
pub(super) fn report_suppressed() {
    for (limit, what) in
        [(&COMMITS_HELD_UP, "commits timed out"), (&ROWS_LOCKED, "rows locked"), (&ROWS_RELEASED, "rows released")]
    {
        if let Some(suppressed) = limit.overdue() {
            warn!(suppressed, "further {what}");
        }
    }
}
