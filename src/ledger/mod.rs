//! The ledger: credits, adjustments and balances in a SQL database, behind one trait.
//!
//! Every writer takes rows in one order (all credit rows by payment id, then adjustments, then balances by user id),
//! so that two writers cannot deadlock. In every committed state a user's balance is the sum of its credits and
//! adjustments; [`Ledger::verify`] proves it.

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

/// Unverified credits are counted so far: a number that is looked at every quarter of a minute must not cost much.
pub const MOST_COUNTED: i64 = 1_000_000;

/// Runs `work` within `transaction`, and keeps its error: when a database has rolled back by itself, as SQLite does on a
/// full disk, the rollback that follows fails, and that failure would hide the reason.
fn keeping_the_reason<C, T>(
    transaction: impl FnOnce(&mut dyn FnMut(&mut C) -> Result<T, DatabaseError>) -> Result<T, DatabaseError>,
    work: impl FnOnce(&mut C) -> Result<T, DatabaseError>,
) -> Result<T, DatabaseError> {
    let mut work = Some(work);
    let mut reason = None;
    let done = transaction(&mut |connection| match work.take() {
        Some(work) => work(connection).inspect_err(|error| reason = Some(error.clone())),
        None => Err(DatabaseError::Database("the transaction was run twice".into())),
    });
    done.map_err(|error| reason.unwrap_or(error))
}

/// The work of a transaction that must not be committed later than that.
fn in_time<T>(done: T, deadline: Instant) -> Result<T, DatabaseError> {
    if Instant::now() < deadline {
        return Ok(done);
    }
    Err(DatabaseError::Database("too late: whoever waited for it has given up".into()))
}

/// The work that a probe does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// That of the credits.
    Credits,
    /// That of the checks, which write credits, too.
    Checks,
}

/// The error that rolls a probe's statements back.
fn probe_done() -> DatabaseError {
    DatabaseError::Database(PROBE_DONE.into())
}

const PROBE_DONE: &str = "the probe is rolled back";

/// The result of a probe's transaction, which never commits.
fn rolled_back(result: Result<(), DatabaseError>) -> Result<(), DatabaseError> {
    match result {
        Err(DatabaseError::Database(reason)) if reason == PROBE_DONE => Ok(()),
        result => result,
    }
}

/// A probe that writes nothing proves nothing.
fn probed(rows: usize) -> Result<(), DatabaseError> {
    if rows == 1 {
        return Ok(());
    }
    Err(DatabaseError::Database(
        "the table points_probe must have one row; run `INSERT INTO points_probe (id) VALUES (1)`".into(),
    ))
}

/// A ledger. Its calls block the thread; [`crate::database::WithDeadline`] gives them a deadline.
pub trait Ledger: Send + Sync {
    /// Credits a batch in one transaction: all or nothing. Answers for each credit, in order, the same as if it had
    /// come alone; of two with one payment id the first is credited and the second compared with it. An error may come
    /// after the commit, too: the same batch again is then one of duplicates.
    fn credit(&self, batch: &[Credit], patience: Patience) -> Result<Vec<Verdict>, DatabaseError>;

    /// Brings each payment to agree with what was found of it, in one transaction: all or nothing. Finds its row as it is
    /// at that moment and decides by [`Resolution::decide`](crate::domain::check::Resolution::decide). `checks`: in the order of
    /// the payment ids, each once. Answers in that order. Rolls back when `deadline` has passed before the commit: what was
    /// found out then may no longer be true, and somebody else may have been told meanwhile.
    fn check(
        &self,
        checks: &[Check],
        on_unpaid: OnUnpaid,
        patience: Patience,
        deadline: Instant,
    ) -> Result<Vec<Checked>, DatabaseError>;

    /// Which of these rows are locked now, and by whom. A payment counts as locked, too, when the balance of its user is.
    /// Without row locks there are none.
    fn row_locks(&self, rows: &[LedgerRow]) -> Result<RowLocks, DatabaseError> {
        let _ = rows;
        Ok(RowLocks::default())
    }

    /// Counts the credits that no check has found paid, up to [`MOST_COUNTED`]; those that were credited longer ago than
    /// `overdue_after` are overdue.
    fn count_unverified(&self, overdue_after: Duration) -> Result<UnverifiedCount, DatabaseError>;

    /// A page of the credits that no check has found paid, oldest first.
    fn unverified(&self, page: &UnverifiedPage) -> Result<Vec<UnverifiedCredit>, DatabaseError>;

    /// Runs the statements of a batch on a reserved id and rolls them back, and then commits a write that concerns no
    /// credit, over a connection of its own: it fails where the work would.
    fn probe(&self, probe: Probe) -> Result<(), DatabaseError>;

    /// The time by the clock that the ledger's times come from: that of the server, or our own where there is none.
    fn now(&self) -> Result<SystemTime, DatabaseError>;

    /// How the schema stands to what this program needs. Writes nothing.
    fn schema(&self) -> Result<SchemaState, DatabaseError>;

    /// Brings the schema up to date, once, however many do it at a time; the names of the migrations that it ran.
    fn migrate(&self) -> Result<Vec<String>, DatabaseError>;

    /// A user's points; 0 for one that is not known.
    fn balance(&self, user_id: &str) -> Result<i64, DatabaseError>;

    /// Everything that the ledger knows of a payment.
    fn payment(&self, payment_id: &str) -> Result<Option<PaymentRecord>, DatabaseError>;

    /// Checks the ledger's invariants in one consistent snapshot.
    fn verify(&self) -> Result<Verification, DatabaseError>;
}
