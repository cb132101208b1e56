//! The outbox table, whose rows the relay publishes in order and deletes after the confirm (`docs/guides/events.md`).
//!
//! A row that could not be delivered is *held*: it is tried again at a certain time, and so are the later rows of its
//! key. One relay works at a time, over one connection, so that it loses its turn together with the connection.

use crate::database::DatabaseError;
use diesel::sql_types::{BigInt, Binary, Double, Integer, Nullable, Text};
use serde::Serialize;
use std::time::Duration;

/// The most bytes of bodies that are read at a time, unless a single body has more.
pub(super) const MOST_BYTES: i64 = 8 * 1024 * 1024;

/// The largest count of rows.
pub(super) const MOST_COUNTED: i64 = 1_000_000;

/// The number of rows that a command changes at a time, so that the relay never waits for long.
pub(super) const AT_A_TIME: usize = 1000;

/// The ID of a row.
#[derive(diesel::QueryableByName)]
pub(super) struct Id {
    #[diesel(sql_type = BigInt)]
    pub(super) id: i64,
}

/// Repeats a bounded change until no row is left, each time on the rows after the last changed one. Returns the number
/// of changed rows. A row that the relay changes meanwhile is not changed twice.
pub(super) fn change_in_portions(
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

/// The rows that a command selects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowSelection {
    /// All rows.
    All,
    /// The held rows.
    Held,
    /// The rows with these IDs.
    Ids(Vec<i64>),
}

/// The outbox. Its calls block the thread; [`crate::database::WithDeadline`] adds a deadline.
pub trait Outbox: Send + Sync {
    /// Acquires the relay's turn, or verifies that this relay still has it. Returns `false` while another relay has it.
    fn take_turn(&self) -> Result<bool, DatabaseError>;

    /// Releases the relay's turn.
    fn give_turn_up(&self);

    /// Returns the next rows that were never tried, in order. Requires the turn.
    fn fresh(&self, most: i64) -> Result<Vec<OutboxRow>, DatabaseError>;

    /// Returns held rows that are due for another try, in order. Requires the turn.
    fn due(&self, most: i64) -> Result<Vec<OutboxRow>, DatabaseError>;

    /// Deletes rows that are confirmed. Requires the turn.
    fn delete(&self, ids: &[i64]) -> Result<(), DatabaseError>;

    /// Holds rows. Requires the turn.
    fn hold(&self, failures: &[FailedDelivery]) -> Result<(), DatabaseError>;

    /// Returns the number of rows, and the age of the first one.
    fn summary(&self) -> Result<Summary, DatabaseError>;

    /// Returns the first rows, in order; with `held`, only held rows.
    fn list(&self, held: bool, most: i64) -> Result<Vec<Listed>, DatabaseError>;

    /// Makes held rows due at once, and returns their number. Retrying an ID retries every held row with its key.
    fn retry(&self, selection: &RowSelection) -> Result<usize, DatabaseError>;

    /// Deletes rows that were not published, and returns their number.
    fn drop_rows(&self, selection: &RowSelection) -> Result<usize, DatabaseError>;
}

/// A row to publish.
#[derive(Debug, Clone, PartialEq, diesel::QueryableByName)]
pub struct OutboxRow {
    /// The row's position in the order.
    #[diesel(sql_type = BigInt)]
    pub id: i64,
    /// The ID by which a consumer recognises a repeated message.
    #[diesel(sql_type = Text)]
    pub message_id: String,
    /// The exchange to publish to.
    #[diesel(sql_type = Text)]
    pub exchange: String,
    /// The routing key.
    #[diesel(sql_type = Text)]
    pub routing_key: String,
    /// The key: rows with the same key stay in order. A row without a key (`None`) waits for no other.
    #[diesel(sql_type = Nullable<Text>)]
    pub key: Option<String>,
    /// The headers, as a JSON object.
    #[diesel(sql_type = Text)]
    pub headers: String,
    /// The body, as it is sent.
    #[diesel(sql_type = Binary)]
    pub body: Vec<u8>,
    /// The number of failed deliveries.
    #[diesel(sql_type = Integer)]
    pub attempts: i32,
    /// The ID of the last held row of the same key before this row, which this row must not overtake.
    #[diesel(sql_type = Nullable<BigInt>)]
    pub behind_id: Option<i64>,
    /// The number of seconds until that held row is tried again.
    #[diesel(sql_type = Nullable<Double>)]
    pub behind_seconds: Option<f64>,
    /// Why the row cannot be published, if one of its texts is not valid.
    #[diesel(sql_type = Nullable<Text>)]
    pub problem: Option<String>,
}

/// A row that could not be delivered now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedDelivery {
    /// The ID of the row.
    pub id: i64,
    /// The error of the broker; `None` when the row only waits for an earlier row of its key.
    pub error: Option<String>,
    /// The delay before the next try.
    pub again_in: Duration,
}

/// The fill level of the outbox.
#[derive(Debug, Clone, PartialEq, Serialize, diesel::QueryableByName)]
pub struct Summary {
    /// The number of rows, counted up to a million.
    #[diesel(sql_type = BigInt)]
    pub rows: i64,
    /// The number of held rows, counted up to a million.
    #[diesel(sql_type = BigInt)]
    pub held: i64,
    /// The age of the first row in seconds.
    #[diesel(sql_type = Nullable<Double>)]
    pub oldest_seconds: Option<f64>,
}

/// A row as commands show it, without its body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, diesel::QueryableByName)]
pub struct Listed {
    /// The row's position in the order.
    #[diesel(sql_type = BigInt)]
    pub id: i64,
    /// The ID by which a consumer recognises a repeated message.
    #[diesel(sql_type = Text)]
    pub message_id: String,
    /// The exchange to publish to.
    #[diesel(sql_type = Text)]
    pub exchange: String,
    /// The routing key.
    #[diesel(sql_type = Text)]
    pub routing_key: String,
    /// The key: rows with the same key stay in order.
    #[diesel(sql_type = Nullable<Text>)]
    pub key: Option<String>,
    /// The length of the body in bytes.
    #[diesel(sql_type = Integer)]
    pub body_bytes: i32,
    /// The number of failed deliveries.
    #[diesel(sql_type = Integer)]
    pub attempts: i32,
    /// The last error of the broker.
    #[diesel(sql_type = Nullable<Text>)]
    pub last_error: Option<String>,
    /// The time at which the row was written (RFC 3339).
    #[diesel(sql_type = Text)]
    pub created_at: String,
    /// The time of the next try (RFC 3339); `None` for a row that was not tried yet.
    #[diesel(sql_type = Nullable<Text>)]
    pub next_try_at: Option<String>,
}
