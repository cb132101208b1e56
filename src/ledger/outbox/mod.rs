//! The outbox's table: what is to be published, read in order, deleted when it is confirmed (`docs/integrating.md`).
//!
//! A row that could not be delivered is *held*: it has a time at which it is tried again, and so have the later rows of its
//! key. One relay works at a time, over one connection, so that it loses its turn together with the connection.

mod postgres;
mod records;
mod sqlite;

use crate::database::{DatabaseError, DatabaseUrl};
pub(super) use postgres::InsertRows;
use postgres::PostgresOutbox;
pub use records::{Listed, Row, Summary, Trouble};
use sqlite::SqliteOutbox;
pub(super) use sqlite::insert_rows;
use std::{sync::Arc, time::Duration};

/// Most bytes of bodies that are read at a time, unless one alone has more.
const MOST_BYTES: i64 = 8 * 1024 * 1024;

/// Rows are counted so far.
const MOST_COUNTED: i64 = 1_000_000;

/// What a person changes is changed so many rows at a time, so that the relay never waits for long.
const AT_A_TIME: usize = 1000;

/// A row's id.
#[derive(diesel::QueryableByName)]
struct Id {
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    id: i64,
}

/// Repeats a bounded change, each time of the rows behind the last one that was changed, until there is nothing left; how many
/// rows it was. A row that the relay changes meanwhile is not changed twice.
fn bit_by_bit(mut change: impl FnMut(i64) -> Result<Vec<Id>, DatabaseError>) -> Result<usize, DatabaseError> {
    let (mut changed, mut after) = (0, i64::MIN);
    loop {
        let some = change(after)?;
        let Some(last) = some.iter().map(|row| row.id).max() else { return Ok(changed) };
        changed += some.len();
        after = last;
    }
}

/// Which rows a person means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chosen {
    /// All of them.
    All,
    /// Those that are held.
    Held,
    /// These.
    Ids(Vec<i64>),
}

/// The outbox. Its calls block the thread; [`crate::database::Guarded`] gives them a deadline.
pub trait Outbox: Send + Sync {
    /// Takes the turn, or finds that it still has it. `false`: another relay works.
    fn take_turn(&self) -> Result<bool, DatabaseError>;

    /// Lets another relay have the turn.
    fn give_turn_up(&self);

    /// The next rows that were never tried, in order. Only with the turn.
    fn fresh(&self, most: i64) -> Result<Vec<Row>, DatabaseError>;

    /// Held rows that are to be tried again now, in order. Only with the turn.
    fn due(&self, most: i64) -> Result<Vec<Row>, DatabaseError>;

    /// Deletes rows that are confirmed. Only with the turn.
    fn delete(&self, ids: &[i64]) -> Result<(), DatabaseError>;

    /// Holds rows. Only with the turn.
    fn hold(&self, troubles: &[Trouble]) -> Result<(), DatabaseError>;

    /// How many rows there are, and since when.
    fn summary(&self) -> Result<Summary, DatabaseError>;

    /// The first rows, in order; `held`: only of those that are held.
    fn list(&self, held: bool, most: i64) -> Result<Vec<Listed>, DatabaseError>;

    /// Has held rows tried again at once; how many. Of chosen ids their whole keys.
    fn retry(&self, chosen: &Chosen) -> Result<usize, DatabaseError>;

    /// Deletes rows that nobody has published; how many.
    fn drop_rows(&self, chosen: &Chosen) -> Result<usize, DatabaseError>;
}

/// Opens an outbox. Nothing is connected yet.
pub fn open_outbox(url: &DatabaseUrl, timeout: Duration) -> Arc<dyn Outbox> {
    match url {
        DatabaseUrl::Sqlite(file) => Arc::new(SqliteOutbox::new(file, timeout)),
        DatabaseUrl::Postgres(uri) => Arc::new(PostgresOutbox::new(uri, timeout)),
    }
}
