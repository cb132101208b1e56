//! The outbox in a SQLite file. One daemon writes a file (its lock says so), so its relay always has the turn.

use super::{Chosen, Listed, MOST_BYTES, MOST_COUNTED, Outbox, Row, Summary, Trouble};
use crate::{
    database::{
        DatabaseError,
        sqlite::{Database, Pool, SameFile},
    },
    ledger::{
        announce::Announcements,
        sqlite::{TURN, statements},
    },
};
use diesel::{
    QueryResult, RunQueryDsl, SqliteConnection,
    r2d2::ConnectionManager,
    sql_query,
    sql_types::{BigInt, Bool, Nullable, Text},
};
use jiff::Timestamp;
use std::{path::Path, sync::PoisonError, time::Duration};

pub(super) struct SqliteOutbox {
    pool: Pool,
    file: SameFile,
    database: Database,
}

impl SqliteOutbox {
    pub(super) fn new(file: &Path, timeout: Duration) -> Self {
        let database = Database::new(file, timeout);
        Self { pool: database.pool(1), file: SameFile::new(file), database }
    }

    /// On the relay's connection.
    fn pooled(&self) -> Result<r2d2::PooledConnection<ConnectionManager<SqliteConnection>>, DatabaseError> {
        self.file.check()?;
        Ok(self.pool.get()?)
    }

    fn fresh_connection(&self) -> Result<SqliteConnection, DatabaseError> {
        self.file.check()?;
        self.database.open()
    }
}

/// Rows in order, each with the first held row of its key that stands before it.
fn rows(which: &str, order: &str) -> String {
    format!(
        "SELECT page.id, page.message_id, page.exchange, page.routing_key, page.key, page.headers, page.body, \
                page.attempts, page.behind_id, (julianday(b.next_try_at) - julianday(?1)) * 86400.0 AS behind_seconds \
           FROM (SELECT *, sum(octet_length(body)) OVER (ORDER BY id) - octet_length(body) AS bytes_before \
                   FROM (SELECT o.*, (SELECT min(h.id) FROM points_outbox AS h \
                                       WHERE h.key = o.key AND h.id < o.id AND h.next_try_at IS NOT NULL) AS behind_id \
                           FROM points_outbox AS o WHERE {which} ORDER BY {order} LIMIT ?2) AS picked) AS page \
           LEFT JOIN points_outbox AS b ON b.id = page.behind_id \
          WHERE page.bytes_before <= {MOST_BYTES} ORDER BY page.id"
    )
}

fn now() -> String {
    statements::time(Timestamp::now())
}

fn json(ids: &[i64]) -> String {
    serde_json::Value::from(ids).to_string()
}

impl Outbox for SqliteOutbox {
    fn take_turn(&self) -> Result<bool, DatabaseError> {
        Ok(true)
    }

    fn give_turn_up(&self) {}

    fn fresh(&self, after: i64, most: i64) -> Result<Vec<Row>, DatabaseError> {
        let query = rows("o.next_try_at IS NULL AND o.id > ?3", "o.id");
        let connection = &mut *self.pooled()?;
        let query = sql_query(query).bind::<Text, _>(now()).bind::<BigInt, _>(most).bind::<BigInt, _>(after);
        Ok(query.load(connection)?)
    }

    fn due(&self, most: i64) -> Result<Vec<Row>, DatabaseError> {
        let query = rows("o.next_try_at <= ?1", "o.next_try_at, o.id");
        let connection = &mut *self.pooled()?;
        Ok(sql_query(query).bind::<Text, _>(now()).bind::<BigInt, _>(most).load(connection)?)
    }

    fn delete(&self, ids: &[i64]) -> Result<(), DatabaseError> {
        let connection = &mut *self.pooled()?;
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        sql_query("DELETE FROM points_outbox WHERE id IN (SELECT value FROM json_each(?))")
            .bind::<Text, _>(json(ids))
            .execute(connection)?;
        Ok(())
    }

    fn hold(&self, troubles: &[Trouble]) -> Result<(), DatabaseError> {
        let connection = &mut *self.pooled()?;
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Timestamp::now();
        connection.immediate_transaction(|connection| -> Result<(), DatabaseError> {
            for trouble in troubles {
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
        let query = "SELECT id, message_id, exchange, routing_key, key, octet_length(body) AS body_bytes, attempts, \
                            last_error, created_at, next_try_at \
                       FROM points_outbox WHERE next_try_at IS NOT NULL OR NOT ?1 ORDER BY id LIMIT ?2";
        let connection = &mut self.fresh_connection()?;
        Ok(sql_query(query).bind::<Bool, _>(held).bind::<BigInt, _>(most).load(connection)?)
    }

    fn retry(&self, chosen: &Chosen) -> Result<usize, DatabaseError> {
        let connection = &mut self.fresh_connection()?;
        let update = "UPDATE points_outbox SET next_try_at = ?1 WHERE next_try_at IS NOT NULL";
        Ok(match chosen {
            Chosen::All | Chosen::Held => sql_query(update).bind::<Text, _>(now()).execute(connection)?,
            Chosen::Ids(ids) => sql_query(format!(
                "{update} AND (id IN (SELECT value FROM json_each(?2)) OR key IN \
                     (SELECT key FROM points_outbox WHERE id IN (SELECT value FROM json_each(?2))))"
            ))
            .bind::<Text, _>(now())
            .bind::<Text, _>(json(ids))
            .execute(connection)?,
        })
    }

    fn drop_rows(&self, chosen: &Chosen) -> Result<usize, DatabaseError> {
        let connection = &mut self.fresh_connection()?;
        Ok(match chosen {
            Chosen::All => sql_query("DELETE FROM points_outbox").execute(connection)?,
            Chosen::Held => sql_query("DELETE FROM points_outbox WHERE next_try_at IS NOT NULL").execute(connection)?,
            Chosen::Ids(ids) => sql_query("DELETE FROM points_outbox WHERE id IN (SELECT value FROM json_each(?))")
                .bind::<Text, _>(json(ids))
                .execute(connection)?,
        })
    }
}

/// Writes announcements, within the transaction of what they tell.
pub(in crate::ledger) fn insert_rows(connection: &mut SqliteConnection, rows: &Announcements) -> QueryResult<()> {
    for index in 0..rows.bodies.len() {
        statements::insert_announcement(
            connection,
            &rows.exchange,
            (&rows.message_ids[index], rows.routing_keys[index]),
            (&rows.keys[index], &rows.bodies[index]),
        )?;
    }
    Ok(())
}
