//! The outbox in a SQLite file. The lock file permits one writing daemon, so its relay always has the turn.

use crate::ledger::outbox::{
    AT_A_TIME, FailedDelivery, Id, Listed, MOST_BYTES, MOST_COUNTED, Outbox, OutboxRow, RowSelection, Summary,
    change_in_portions,
};
use crate::{
    database::{
        DatabaseError,
        sqlite::{Database, Pool, SameFile},
    },
    ledger::{
        outbox_events::OutboxEvents,
        sqlite::{TURN, statements},
    },
};
use diesel::{
    QueryResult, RunQueryDsl, SqliteConnection,
    r2d2::ConnectionManager,
    sql_query,
    sql_types::{BigInt, Binary, Bool, Double, Integer, Nullable, Text},
};
use jiff::Timestamp;
use std::{path::Path, sync::PoisonError, time::Duration};

pub(in crate::ledger) struct SqliteOutbox {
    pool: Pool,
    file: SameFile,
    database: Database,
}

impl SqliteOutbox {
    pub(in crate::ledger) fn new(file: &Path, timeout: Duration) -> Self {
        let database = Database::new(file, timeout);
        Self { pool: database.pool(1), file: SameFile::new(file), database }
    }

    /// Returns the relay's connection.
    fn pooled(&self) -> Result<r2d2::PooledConnection<ConnectionManager<SqliteConnection>>, DatabaseError> {
        self.file.check()?;
        Ok(self.pool.get()?)
    }

    fn fresh_connection(&self) -> Result<SqliteConnection, DatabaseError> {
        self.file.check()?;
        self.database.open()
    }
}

/// Returns the SQL for rows in order, each with the last held row of the same key before it.
fn select_rows(which: &str, order: &str) -> String {
    format!(
        "SELECT page.id, CAST(page.message_id AS BLOB) AS message_id, CAST(page.exchange AS BLOB) AS exchange, \
                CAST(page.routing_key AS BLOB) AS routing_key, CAST(page.key AS BLOB) AS key, \
                CAST(page.headers AS BLOB) AS headers, CAST(page.body AS BLOB) AS body, \
                page.attempts, page.behind_id, (julianday(b.next_try_at) - julianday(?1)) * 86400.0 AS behind_seconds \
           FROM (SELECT *, sum(octet_length(body)) OVER (ORDER BY id) - octet_length(body) AS bytes_before \
                   FROM (SELECT o.*, (SELECT max(h.id) FROM points_outbox AS h \
                                       WHERE h.key = o.key AND h.id < o.id AND h.next_try_at IS NOT NULL) AS behind_id \
                           FROM points_outbox AS o WHERE {which} ORDER BY {order} LIMIT ?2) AS picked) AS page \
           LEFT JOIN points_outbox AS b ON b.id = page.behind_id \
          WHERE page.bytes_before <= {MOST_BYTES} ORDER BY page.id"
    )
}

/// A row as bytes. SQLite stores any bytes as text, and one invalid row must not prevent the others from being read.
#[derive(diesel::QueryableByName)]
struct Bytes {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = Binary)]
    message_id: Vec<u8>,
    #[diesel(sql_type = Binary)]
    exchange: Vec<u8>,
    #[diesel(sql_type = Binary)]
    routing_key: Vec<u8>,
    #[diesel(sql_type = Nullable<Binary>)]
    key: Option<Vec<u8>>,
    #[diesel(sql_type = Binary)]
    headers: Vec<u8>,
    #[diesel(sql_type = Binary)]
    body: Vec<u8>,
    #[diesel(sql_type = Integer)]
    attempts: i32,
    #[diesel(sql_type = Nullable<BigInt>)]
    behind_id: Option<i64>,
    #[diesel(sql_type = Nullable<Double>)]
    behind_seconds: Option<f64>,
}

impl From<Bytes> for OutboxRow {
    fn from(bytes: Bytes) -> Self {
        let mut problem = None;
        let mut text = |column: &str, bytes: &[u8]| {
            if std::str::from_utf8(bytes).is_err() {
                problem = Some(format!("its {column} is not UTF-8"));
            }
            String::from_utf8_lossy(bytes).into_owned()
        };
        let message_id = text("message_id", &bytes.message_id);
        let (exchange, routing_key) = (text("exchange", &bytes.exchange), text("routing_key", &bytes.routing_key));
        let (key, headers) = (bytes.key.as_deref().map(|key| text("key", key)), text("headers", &bytes.headers));
        let Bytes { id, body, attempts, behind_id, behind_seconds, .. } = bytes;
        Self { id, message_id, exchange, routing_key, key, headers, body, attempts, behind_id, behind_seconds, problem }
    }
}

/// A row for commands, as bytes.
#[derive(diesel::QueryableByName)]
struct ListedBytes {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = Binary)]
    message_id: Vec<u8>,
    #[diesel(sql_type = Binary)]
    exchange: Vec<u8>,
    #[diesel(sql_type = Binary)]
    routing_key: Vec<u8>,
    #[diesel(sql_type = Nullable<Binary>)]
    key: Option<Vec<u8>>,
    #[diesel(sql_type = Integer)]
    body_bytes: i32,
    #[diesel(sql_type = Integer)]
    attempts: i32,
    #[diesel(sql_type = Nullable<Text>)]
    last_error: Option<String>,
    #[diesel(sql_type = Text)]
    created_at: String,
    #[diesel(sql_type = Nullable<Text>)]
    next_try_at: Option<String>,
}

impl From<ListedBytes> for Listed {
    fn from(bytes: ListedBytes) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let ListedBytes { id, message_id, exchange, routing_key, key, .. } = bytes;
        let ListedBytes { body_bytes, attempts, last_error, created_at, next_try_at, .. } = bytes;
        Self {
            id,
            message_id: text(message_id),
            exchange: text(exchange),
            routing_key: text(routing_key),
            key: key.map(text),
            body_bytes,
            attempts,
            last_error,
            created_at,
            next_try_at,
        }
    }
}

fn now() -> String {
    statements::time(Timestamp::now())
}

fn json_array(ids: &[i64]) -> String {
    serde_json::Value::from(ids).to_string()
}

impl Outbox for SqliteOutbox {
    fn take_turn(&self) -> Result<bool, DatabaseError> {
        Ok(true)
    }

    fn give_turn_up(&self) {}

    fn fresh(&self, most: i64) -> Result<Vec<OutboxRow>, DatabaseError> {
        let query = select_rows("o.next_try_at IS NULL", "o.id");
        let connection = &mut *self.pooled()?;
        let rows: Vec<Bytes> = sql_query(query).bind::<Text, _>(now()).bind::<BigInt, _>(most).load(connection)?;
        Ok(rows.into_iter().map(OutboxRow::from).collect())
    }

    fn due(&self, most: i64) -> Result<Vec<OutboxRow>, DatabaseError> {
        let query = select_rows("o.next_try_at <= ?1", "o.next_try_at, o.id");
        let connection = &mut *self.pooled()?;
        let rows: Vec<Bytes> = sql_query(query).bind::<Text, _>(now()).bind::<BigInt, _>(most).load(connection)?;
        Ok(rows.into_iter().map(OutboxRow::from).collect())
    }

    fn delete(&self, ids: &[i64]) -> Result<(), DatabaseError> {
        let connection = &mut *self.pooled()?;
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        sql_query("DELETE FROM points_outbox WHERE id IN (SELECT value FROM json_each(?))")
            .bind::<Text, _>(json_array(ids))
            .execute(connection)?;
        Ok(())
    }

    fn hold(&self, failures: &[FailedDelivery]) -> Result<(), DatabaseError> {
        let connection = &mut *self.pooled()?;
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Timestamp::now();
        connection.immediate_transaction(|connection| -> Result<(), DatabaseError> {
            for trouble in failures {
                let again = now.checked_add(trouble.again_in).unwrap_or(now);
                sql_query(
                    "UPDATE points_outbox SET next_try_at = ?1, attempts = attempts + (?2 IS NOT NULL), \
                            last_error = coalesce(?2, last_error) WHERE id = ?3",
                )
                .bind::<Text, _>(statements::time(again))
                .bind::<Nullable<Text>, _>(&trouble.error)
                .bind::<BigInt, _>(trouble.id)
                .execute(connection)?;
            }
            Ok(())
        })
    }

    fn summary(&self) -> Result<Summary, DatabaseError> {
        let query = format!(
            "SELECT (SELECT count(*) FROM (SELECT 1 FROM points_outbox LIMIT {MOST_COUNTED})) AS rows, \
                    (SELECT count(*) FROM (SELECT 1 FROM points_outbox WHERE next_try_at IS NOT NULL \
                                            LIMIT {MOST_COUNTED})) AS held, \
                    (SELECT max((julianday(?) - julianday(created_at)) * 86400.0, 0.0) \
                       FROM points_outbox ORDER BY id LIMIT 1) AS oldest_seconds"
        );
        Ok(sql_query(query).bind::<Text, _>(now()).get_result(&mut self.fresh_connection()?)?)
    }

    fn list(&self, held: bool, most: i64) -> Result<Vec<Listed>, DatabaseError> {
        let query = "SELECT id, CAST(message_id AS BLOB) AS message_id, CAST(exchange AS BLOB) AS exchange, \
                            CAST(routing_key AS BLOB) AS routing_key, CAST(key AS BLOB) AS key, \
                            octet_length(body) AS body_bytes, attempts, last_error, created_at, next_try_at \
                       FROM points_outbox WHERE next_try_at IS NOT NULL OR NOT ?1 ORDER BY id LIMIT ?2";
        let connection = &mut self.fresh_connection()?;
        let rows: Vec<ListedBytes> = sql_query(query).bind::<Bool, _>(held).bind::<BigInt, _>(most).load(connection)?;
        Ok(rows.into_iter().map(Listed::from).collect())
    }

    fn retry(&self, selection: &RowSelection) -> Result<usize, DatabaseError> {
        let of_ids = "id IN (SELECT value FROM json_each(?2))";
        let (which, ids) = match selection {
            RowSelection::All | RowSelection::Held => (format!("TRUE OR {of_ids}"), &[][..]),
            RowSelection::Ids(ids) => {
                (format!("{of_ids} OR key IN (SELECT key FROM points_outbox WHERE {of_ids})"), &ids[..])
            }
        };
        let (connection, now, ids) = (&mut self.fresh_connection()?, now(), json_array(ids));
        let update = format!(
            "UPDATE points_outbox SET next_try_at = ?1 WHERE id IN \
                 (SELECT id FROM points_outbox \
                   WHERE next_try_at > ?1 AND id > ?3 AND ({which}) ORDER BY id LIMIT {AT_A_TIME}) RETURNING id"
        );
        change_in_portions(|after| {
            let update = sql_query(&update).bind::<Text, _>(&now).bind::<Text, _>(&ids);
            Ok(update.bind::<BigInt, _>(after).load(connection)?)
        })
    }

    fn drop_rows(&self, selection: &RowSelection) -> Result<usize, DatabaseError> {
        let of_ids = "id IN (SELECT value FROM json_each(?2))";
        let (which, ids) = match selection {
            RowSelection::All => (format!("TRUE OR {of_ids}"), &[][..]),
            RowSelection::Held => (format!("next_try_at IS NOT NULL OR {of_ids}"), &[][..]),
            RowSelection::Ids(ids) => (of_ids.to_owned(), &ids[..]),
        };
        let (connection, ids) = (&mut self.fresh_connection()?, json_array(ids));
        // Rows that are inserted meanwhile are not selected.
        let last: Id = sql_query("SELECT coalesce(max(id), 0) AS id FROM points_outbox").get_result(connection)?;
        let delete = format!(
            "DELETE FROM points_outbox WHERE id IN \
                 (SELECT id FROM points_outbox WHERE id <= ?1 AND id > ?3 AND ({which}) ORDER BY id LIMIT {AT_A_TIME}) RETURNING id"
        );
        change_in_portions(|after| {
            let delete = sql_query(&delete).bind::<BigInt, _>(last.id).bind::<Text, _>(&ids);
            Ok(delete.bind::<BigInt, _>(after).load(connection)?)
        })
    }
}

/// Inserts event rows, within the transaction that they report.
pub(in crate::ledger) fn insert_rows(connection: &mut SqliteConnection, rows: &OutboxEvents) -> QueryResult<()> {
    for index in 0..rows.bodies.len() {
        statements::insert_outbox_row(
            connection,
            &rows.exchange,
            (&rows.message_ids[index], rows.routing_keys[index]),
            (&rows.keys[index], &rows.bodies[index]),
        )?;
    }
    Ok(())
}
