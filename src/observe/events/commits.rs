//! Events of ledger transactions: commits, failed commits and locked rows.

use super::{Event, seconds};
use crate::{
    domain::{
        component::Component,
        credit::{Credit, Verdict},
        failure::BatchError,
    },
    observe::{
        limit::Limit,
        metrics::{self, Work},
    },
};
use std::time::Duration;
use tracing::{debug, info, warn};

/// A transaction of credits was committed.
pub struct BatchCommitted<'a> {
    /// The credits of the transaction.
    pub credits: &'a [Credit],
    /// The result of each credit.
    pub verdicts: &'a [Verdict],
    /// The duration of the transaction.
    pub took: Duration,
}

impl Event for BatchCommitted<'_> {
    fn emit(self) {
        let new = self.credits.iter().zip(self.verdicts).filter(|(_, verdict)| **verdict == Verdict::Credited);
        let (credited, points) = new.fold((0_u64, 0_u64), |(credited, points), (credit, _)| {
            (credited + 1, points + credit.points.get().unsigned_abs())
        });
        metrics::POINTS_CREDITED.add([], points);
        metrics::COMMIT_DURATION.record([Work::Credits.label()], [self.took.as_secs_f64()]);
        #[allow(clippy::cast_precision_loss, reason = "a batch has at most 10 000 messages")]
        metrics::BATCH_SIZE.record([], [self.credits.len() as f64]);
        debug!(size = self.credits.len(), credited, points, took_seconds = seconds(self.took), "credits committed");
    }
}

/// A transaction of the ledger failed.
pub struct CommitFailed<'a> {
    /// The component whose batch it was.
    pub component: Component,
    /// The number of messages or checks in the batch.
    pub size: usize,
    /// The time until the failure.
    pub took: Duration,
    /// The reason of the failure.
    pub reason: &'a BatchError,
}

/// A failure after a wait of this length is a deadline or a timeout, whatever error the database reports.
const LONG_WAIT: Duration = Duration::from_secs(1);

/// The limit for timed-out commits: one locked row can delay the batches of all workers.
static COMMITS_TIMED_OUT: Limit = Limit::new(1);

impl Event for CommitFailed<'_> {
    /// Logs a failure after a lock or a long wait at WARN, at most once a second, and others at DEBUG.
    fn emit(self) {
        let Self { component, size, took, reason } = self;
        let (queue, waited_seconds) = (component.label(), seconds(took));
        if !matches!(reason, BatchError::Locked(_)) && took < LONG_WAIT {
            debug!(queue, size, waited_seconds, %reason, "commit failed");
        } else if let Some(suppressed) = COMMITS_TIMED_OUT.admit() {
            warn!(queue, size, waited_seconds, %reason, suppressed, "commit timed out");
        }
    }
}

/// Another database session holds a row locked. Messages that need the row take their retry steps.
pub struct RowLocked<'a> {
    /// The row.
    pub row: &'a str,
    /// The database session that holds it.
    pub holder: &'a str,
}

/// The limit for locked rows: a bulk update locks thousands of them.
static ROWS_LOCKED: Limit = Limit::new(10);

impl Event for RowLocked<'_> {
    /// Logs the row, at most ten times a second.
    fn emit(self) {
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

/// A row that was locked is free again.
pub struct RowReleased<'a> {
    /// The row.
    pub row: &'a str,
}

/// The limit for released rows, for the same reason as [`ROWS_LOCKED`].
static ROWS_RELEASED: Limit = Limit::new(10);

impl Event for RowReleased<'_> {
    /// Logs the row, at most ten times a second.
    fn emit(self) {
        if let Some(suppressed) = ROWS_RELEASED.admit() {
            info!(row = self.row, suppressed, "row released");
        }
    }
}

/// Logs the numbers of suppressed lines, when the second in which they were suppressed is over.
pub(super) fn report_suppressed() {
    for (limit, lines) in
        [(&COMMITS_TIMED_OUT, "commits timed out"), (&ROWS_LOCKED, "rows locked"), (&ROWS_RELEASED, "rows released")]
    {
        if let Some(suppressed) = limit.overdue() {
            warn!(suppressed, "further {lines}");
        }
    }
}
