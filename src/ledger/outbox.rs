//! The outbox's table: what is to be published, read in order, deleted when it is confirmed (`docs/guides/events.md`).
//!
//! A row that could not be delivered is *held*: it has a time at which it is tried again, and so have the later rows of its
//! key. One relay works at a time, over one connection, so that it loses its turn together with the connection.

use crate::database::DatabaseError;
use diesel::sql_types::{BigInt, Binary, Double, Integer, Nullable, Text};
use serde::Serialize;
use std::time::Duration;

/// Most bytes of bodies that are read at a time, unless one alone has more.
pub(super) const MOST_BYTES: i64 = 8 * 1024 * 1024;

/// Rows are counted so far.
pub(super) const MOST_COUNTED: i64 = 1_000_000;

/// What a person changes is changed so many rows at a time, so that the relay never waits for long.
pub(super) const AT_A_TIME: usize = 1000;

/// A row's id.
#[derive(diesel::QueryableByName)]
pub(super) struct Id {
    #[diesel(sql_type = BigInt)]
    pub(super) id: i64,
}

/// Repeats a bounded change, each time of the rows behind the last one that was changed, until there is nothing left; how many
/// rows it was. A row that the relay changes meanwhile is not changed twice.
pub(super) fn bit_by_bit(
    mut change: impl FnMut(i64) -> Result<Vec<Id>, DatabaseError>,
) -> Result<usize, DatabaseError> {
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
pub enum RowSelection {
    /// All of them.
    All,
    /// Those that are held.
    Held,
    /// These.
    Ids(Vec<i64>),
}

/// The outbox. Its calls block the thread; [`crate::database::WithDeadline`] gives them a deadline.
pub trait Outbox: Send + Sync {
    /// Takes the turn, or finds that it still has it. `false`: another relay works.
    fn take_turn(&self) -> Result<bool, DatabaseError>;

    /// Lets another relay have the turn.
    fn give_turn_up(&self);

    /// The next rows that were never tried, in order. Only with the turn.
    fn fresh(&self, most: i64) -> Result<Vec<OutboxRow>, DatabaseError>;

    /// Held rows that are to be tried again now, in order. Only with the turn.
    fn due(&self, most: i64) -> Result<Vec<OutboxRow>, DatabaseError>;

    /// Deletes rows that are confirmed. Only with the turn.
    fn delete(&self, ids: &[i64]) -> Result<(), DatabaseError>;

    /// Holds rows. Only with the turn.
    fn hold(&self, failures: &[FailedDelivery]) -> Result<(), DatabaseError>;

    /// How many rows there are, and since when.
    fn summary(&self) -> Result<Summary, DatabaseError>;

    /// The first rows, in order; `held`: only of those that are held.
    fn list(&self, held: bool, most: i64) -> Result<Vec<Listed>, DatabaseError>;

    /// Has held rows tried again at once; how many. Of chosen ids their whole keys.
    fn retry(&self, selection: &RowSelection) -> Result<usize, DatabaseError>;

    /// Deletes rows that nobody has published; how many.
    fn drop_rows(&self, selection: &RowSelection) -> Result<usize, DatabaseError>;
}

/// A row that is to be published.
#[derive(Debug, Clone, PartialEq, diesel::QueryableByName)]
pub struct OutboxRow {
    /// Its place in the order.
    #[diesel(sql_type = BigInt)]
    pub id: i64,
    /// By which a listener knows it again.
    #[diesel(sql_type = Text)]
    pub message_id: String,
    /// Where it goes.
    #[diesel(sql_type = Text)]
    pub exchange: String,
    /// With which key.
    #[diesel(sql_type = Text)]
    pub routing_key: String,
    /// Rows of one key stay in order. `None`: it waits for no other.
    #[diesel(sql_type = Nullable<Text>)]
    pub key: Option<String>,
    /// A JSON object.
    #[diesel(sql_type = Text)]
    pub headers: String,
    /// As it is sent.
    #[diesel(sql_type = Binary)]
    pub body: Vec<u8>,
    /// How often it could not be delivered.
    #[diesel(sql_type = Integer)]
    pub attempts: i32,
    /// The held row of its key that stands next before it, which it must not overtake.
    #[diesel(sql_type = Nullable<BigInt>)]
    pub behind_id: Option<i64>,
    /// In how many seconds that one is tried again.
    #[diesel(sql_type = Nullable<Double>)]
    pub behind_seconds: Option<f64>,
    /// Why it cannot be published, if its text is none.
    #[diesel(sql_type = Nullable<Text>)]
    pub problem: Option<String>,
}

/// A row that is not delivered now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedDelivery {
    /// Which.
    pub id: i64,
    /// What the broker said; `None` when it only waits for an earlier one of its key.
    pub error: Option<String>,
    /// When it is tried again.
    pub again_in: Duration,
}

/// How full the outbox is.
#[derive(Debug, Clone, PartialEq, Serialize, diesel::QueryableByName)]
pub struct Summary {
    /// Rows, counted up to a million.
    #[diesel(sql_type = BigInt)]
    pub rows: i64,
    /// Those among them that are held, the same.
    #[diesel(sql_type = BigInt)]
    pub held: i64,
    /// The age of the first one.
    #[diesel(sql_type = Nullable<Double>)]
    pub oldest_seconds: Option<f64>,
}

/// A row as a person sees it: never its body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, diesel::QueryableByName)]
pub struct Listed {
    /// Its place in the order.
    #[diesel(sql_type = BigInt)]
    pub id: i64,
    /// By which a listener knows it again.
    #[diesel(sql_type = Text)]
    pub message_id: String,
    /// Where it goes.
    #[diesel(sql_type = Text)]
    pub exchange: String,
    /// With which key.
    #[diesel(sql_type = Text)]
    pub routing_key: String,
    /// Rows of one key stay in order.
    #[diesel(sql_type = Nullable<Text>)]
    pub key: Option<String>,
    /// How long its body is.
    #[diesel(sql_type = Integer)]
    pub body_bytes: i32,
    /// How often it could not be delivered.
    #[diesel(sql_type = Integer)]
    pub attempts: i32,
    /// What the broker said last.
    #[diesel(sql_type = Nullable<Text>)]
    pub last_error: Option<String>,
    /// RFC 3339.
    #[diesel(sql_type = Text)]
    pub created_at: String,
    /// When it is tried again; `None` for one that was not tried yet.
    #[diesel(sql_type = Nullable<Text>)]
    pub next_try_at: Option<String>,
}
