//! The ledger: credits, adjustments and balances in a SQL database, behind one trait.
//!
//! Every writer locks rows in one order (all credit rows by payment ID, then adjustments, then balances by user ID), so
//! that two writers cannot deadlock. In every committed state the balance of a user is the sum of the user's credits
//! and adjustments; [`Ledger::verify`] verifies it.

mod batch;
mod changes;
mod lock;
mod migrations;
mod open;
mod outbox;
mod outbox_events;
mod port;
mod postgres;
mod probe;
mod records;
pub mod settings;
mod sqlite;
mod verify;

pub use lock::{LockError, WriterLock};
pub use migrations::SchemaState;
pub use open::{Access, Options, open, open_outbox};
pub use outbox::{FailedDelivery, Listed, Outbox, OutboxRow, RowSelection, Summary};
pub use records::{Adjustment, PaymentRecord, UnverifiedCount, UnverifiedCredit, UnverifiedPage};
pub use verify::{Verification, Violation};

use crate::{
    database::DatabaseError,
    domain::{
        check::{Check, Checked, OnUnpaid},
        credit::{Credit, Verdict},
    },
    pipeline::ports::{LedgerRow, Patience, RowLocks},
};
use std::time::{Duration, Instant, SystemTime};

/// The largest count of unverified credits. The count is read every 15 seconds, so it must be cheap.
pub const MOST_COUNTED: i64 = 1_000_000;

/// Runs `work` within `transaction`, and returns the error of `work`. When a database has rolled back already, as
/// SQLite does on a full disk, the rollback that follows fails, and that failure would hide the cause.
fn run_keeping_error<C, T>(
    transaction: impl FnOnce(&mut dyn FnMut(&mut C) -> Result<T, DatabaseError>) -> Result<T, DatabaseError>,
    work: impl FnOnce(&mut C) -> Result<T, DatabaseError>,
) -> Result<T, DatabaseError> {
    let mut work = Some(work);
    let mut reason = None;
    let done = transaction(&mut |connection| match work.take() {
        Some(work) => work(connection).inspect_err(|error| reason = Some(error.clone())),
        None => Err(DatabaseError::Database("the transaction ran twice".into())),
    });
    done.map_err(|error| reason.unwrap_or(error))
}

/// Returns the result of a transaction, or an error that rolls it back if the deadline has passed.
fn within_deadline<T>(done: T, deadline: Instant) -> Result<T, DatabaseError> {
    if Instant::now() < deadline {
        return Ok(done);
    }
    Err(DatabaseError::Database("deadline exceeded before commit; rolled back".into()))
}

/// The statements that a probe runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// The statements of the credits.
    Credits,
    /// The statements of the checks, which write credits, too.
    Checks,
}

/// Returns the error that rolls the statements of a probe back.
fn probe_done() -> DatabaseError {
    DatabaseError::Database(PROBE_DONE.into())
}

const PROBE_DONE: &str = "the probe is rolled back";

/// Converts the result of a probe's transaction, which never commits.
fn expect_rolled_back(result: Result<(), DatabaseError>) -> Result<(), DatabaseError> {
    match result {
        Err(DatabaseError::Database(reason)) if reason == PROBE_DONE => Ok(()),
        result => result,
    }
}

/// Returns an error unless the probe wrote its one row: a probe that writes nothing proves nothing.
fn require_probe_row(rows: usize) -> Result<(), DatabaseError> {
    if rows == 1 {
        return Ok(());
    }
    Err(DatabaseError::Database(
        "the table points_probe must have one row; run `INSERT INTO points_probe (id) VALUES (1)`".into(),
    ))
}

/// A ledger. Its calls block the thread; [`crate::database::WithDeadline`] adds a deadline.
pub trait Ledger: Send + Sync {
    /// Credits a batch in one transaction: all or nothing. Returns a verdict for each credit, in order, equal to that
    /// of the credit alone; of two credits with one payment ID, the first is credited and the second is compared with
    /// it. An error may also occur after the commit: a repeated batch then consists of duplicates.
    fn credit(&self, batch: &[Credit], patience: Patience) -> Result<Vec<Verdict>, DatabaseError>;

    /// Makes each payment agree with the finding about it, in one transaction: all or nothing. Reads and locks the
    /// current row of each payment and decides by [`Resolution::decide`](crate::domain::check::Resolution::decide).
    /// `checks` contains each payment ID once, in order; the results are in the same order. Rolls back if `deadline`
    /// has passed before the commit: the finding may be outdated by then, and another process may have acted on a newer
    /// one.
    fn check(
        &self,
        checks: &[Check],
        on_unpaid: OnUnpaid,
        patience: Patience,
        deadline: Instant,
    ) -> Result<Vec<Checked>, DatabaseError>;

    /// Returns which of these rows are locked now, and by which session. A payment also counts as locked when the
    /// balance of its user is. A database without row locks returns none.
    fn row_locks(&self, rows: &[LedgerRow]) -> Result<RowLocks, DatabaseError> {
        let _ = rows;
        Ok(RowLocks::default())
    }

    /// Counts the credits that no check has found paid, up to [`MOST_COUNTED`]; those that were credited longer ago
    /// than `overdue_after` are overdue.
    fn count_unverified(&self, overdue_after: Duration) -> Result<UnverifiedCount, DatabaseError>;

    /// Returns a page of the credits that no check has found paid, oldest first.
    fn unverified(&self, page: &UnverifiedPage) -> Result<Vec<UnverifiedCredit>, DatabaseError>;

    /// Runs the statements of a batch on a reserved ID and rolls them back, and then commits a write that concerns no
    /// credit, over a separate connection. It fails where the batch would fail.
    fn probe(&self, probe: Probe) -> Result<(), DatabaseError>;

    /// Returns the time of the clock from which the ledger's times come: the server's clock, or the local one for an
    /// embedded database.
    fn now(&self) -> Result<SystemTime, DatabaseError>;

    /// Returns the state of the schema, compared with the one that this program needs. Writes nothing.
    fn schema(&self) -> Result<SchemaState, DatabaseError>;

    /// Migrates the schema, once even if several processes do so at the same time. Returns the names of the migrations
    /// that it ran.
    fn migrate(&self) -> Result<Vec<String>, DatabaseError>;

    /// Returns a user's balance; 0 for an unknown user.
    fn balance(&self, user_id: &str) -> Result<i64, DatabaseError>;

    /// Returns the ledger's record of a payment, or `None` when the payment has none.
    fn payment(&self, payment_id: &str) -> Result<Option<PaymentRecord>, DatabaseError>;

    /// Checks the ledger's invariants in one consistent snapshot.
    fn verify(&self) -> Result<Verification, DatabaseError>;
}
