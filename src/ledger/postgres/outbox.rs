//! The outbox in PostgreSQL. The relay's turn is an advisory lock of the session: it ends with the connection, however
//! the relay ends.

use crate::ledger::outbox::{
    AT_A_TIME, FailedDelivery, Id, Listed, MOST_BYTES, MOST_COUNTED, Outbox, OutboxRow, RowSelection, Summary,
    change_in_portions,
};
use crate::{
    database::{DatabaseError, PostgresUri, postgres::Server},
    ledger::outbox_events::OutboxEvents,
};
use diesel::{
    PgConnection, QueryResult, RunQueryDsl,
    connection::SimpleConnection,
    pg::Pg,
    query_builder::{AstPass, QueryFragment, QueryId},
    sql_query,
    sql_types::{Array, BigInt, Bool, Double, Nullable, Text},
};
use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// The lock of the active relay: a constant of pointsd combined with the table's OID, because another schema of the
/// database may have an outbox with its own relay (see `pg_advisory_lock`).
const RELAY_LOCK: &str =
    "pg_try_advisory_lock(1886349684, ('points_outbox'::regclass::oid::bigint - 2147483648)::integer)";

pub(in crate::ledger) struct PostgresOutbox {
    server: Server,
    /// The relay's only connection, which has the turn or waits for it.
    session: Mutex<Option<Session>>,
}

struct Session {
    connection: PgConnection,
    has_turn: bool,
}

#[derive(diesel::QueryableByName)]
struct Locked {
    #[diesel(sql_type = Bool)]
    locked: bool,
}

impl PostgresOutbox {
    pub(in crate::ledger) fn new(uri: &PostgresUri, timeout: Duration) -> Self {
        Self { server: Server::new(uri, timeout), session: Mutex::default() }
    }

    /// Opens the relay's connection. A relay whose machine has died must lose its turn within seconds, not hours.
    fn connect(&self) -> Result<PgConnection, DatabaseError> {
        let mut connection = self.server.fresh()?;
        connection.batch_execute(
            "SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 2; SET tcp_keepalives_count = 3",
        )?;
        Ok(connection)
    }

    /// Runs `work` on the connection that has the turn. After an error the connection is closed, and the turn is lost
    /// with it.
    fn in_turn<T>(&self, work: impl FnOnce(&mut PgConnection) -> Result<T, DatabaseError>) -> Result<T, DatabaseError> {
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Session { connection, has_turn: true }) = session.as_mut() else {
            return Err(DatabaseError::Unreachable(
                "the relay's connection is lost, and its advisory lock with it".into(),
            ));
        };
        let done = work(connection);
        if done.is_err() {
            *session = None;
        }
        done
    }
}

/// Returns the SQL for rows in order, each with the last held row of the same key before it.
fn select_rows(which: &str, order: &str) -> String {
    format!(
        "SELECT page.id, page.message_id, page.exchange, page.routing_key, page.key, page.headers::text AS headers, convert_to(page.body, 'UTF8') AS body, \
                page.attempts, page.behind_id, \
                extract(epoch FROM b.next_try_at - now())::double precision AS behind_seconds, \
                NULL::text AS problem \
           FROM (SELECT *, sum(octet_length(body)) OVER (ORDER BY id) - octet_length(body) AS bytes_before \
                   FROM (SELECT o.*, (SELECT max(h.id) FROM points_outbox AS h \
                                       WHERE h.key = o.key AND h.id < o.id AND h.next_try_at IS NOT NULL) AS behind_id \
                           FROM points_outbox AS o WHERE {which} ORDER BY {order} LIMIT $1) AS picked) AS page \
           LEFT JOIN points_outbox AS b ON b.id = page.behind_id \
          WHERE page.bytes_before <= {MOST_BYTES} ORDER BY page.id"
    )
}

impl Outbox for PostgresOutbox {
    fn take_turn(&self) -> Result<bool, DatabaseError> {
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        // A connection that fails is not kept.
        let Session { mut connection, has_turn } = match session.take() {
            Some(session) => session,
            None => Session { connection: self.connect()?, has_turn: false },
        };
        // A response proves that the turn is still held: the lock lasts as long as the session.
        let lock = if has_turn { "true".to_owned() } else { RELAY_LOCK.to_owned() };
        let has_turn = sql_query(format!("SELECT {lock} AS locked")).get_result::<Locked>(&mut connection)?.locked;
        *session = Some(Session { connection, has_turn });
        Ok(has_turn)
    }

    fn give_turn_up(&self) {
        *self.session.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn fresh(&self, most: i64) -> Result<Vec<OutboxRow>, DatabaseError> {
        let query = select_rows("o.next_try_at IS NULL", "o.id");
        self.in_turn(|connection| Ok(sql_query(query).bind::<BigInt, _>(most).load(connection)?))
    }

    fn due(&self, most: i64) -> Result<Vec<OutboxRow>, DatabaseError> {
        // The row that has waited longest comes first, so that no row is postponed for ever.
        let query = select_rows("o.next_try_at <= now()", "o.next_try_at, o.id");
        self.in_turn(|connection| Ok(sql_query(query).bind::<BigInt, _>(most).load(connection)?))
    }

    fn delete(&self, ids: &[i64]) -> Result<(), DatabaseError> {
        self.in_turn(|connection| {
            sql_query("DELETE FROM points_outbox WHERE id = ANY ($1)")
                .bind::<Array<BigInt>, _>(ids)
                .execute(connection)?;
            Ok(())
        })
    }

    fn hold(&self, failures: &[FailedDelivery]) -> Result<(), DatabaseError> {
        let ids: Vec<i64> = failures.iter().map(|trouble| trouble.id).collect();
        let seconds: Vec<f64> = failures.iter().map(|trouble| trouble.again_in.as_secs_f64()).collect();
        let errors: Vec<Option<&str>> = failures.iter().map(|trouble| trouble.error.as_deref()).collect();
        self.in_turn(|connection| {
            sql_query(
                // Rows are locked in the order of their IDs, as in every other statement.
                "WITH held AS MATERIALIZED (SELECT id FROM points_outbox WHERE id = ANY ($1) ORDER BY id FOR UPDATE) \
                 UPDATE points_outbox AS o SET next_try_at = now() + make_interval(secs => t.seconds), \
                        attempts = o.attempts + (t.error IS NOT NULL)::integer, last_error = coalesce(t.error, o.last_error) \
                   FROM held JOIN unnest($1, $2, $3) AS t (id, seconds, error) ON t.id = held.id WHERE o.id = held.id",
            )
            .bind::<Array<BigInt>, _>(ids)
            .bind::<Array<Double>, _>(seconds)
            .bind::<Array<Nullable<Text>>, _>(errors)
            .execute(connection)?;
            Ok(())
        })
    }

    fn summary(&self) -> Result<Summary, DatabaseError> {
        let query = format!(
            "SELECT (SELECT count(*) FROM (SELECT 1 FROM points_outbox LIMIT {MOST_COUNTED}) AS counted) AS rows, \
                    (SELECT count(*) FROM (SELECT 1 FROM points_outbox WHERE next_try_at IS NOT NULL \
                                            LIMIT {MOST_COUNTED}) AS counted) AS held, \
                    (SELECT greatest(extract(epoch FROM now() - created_at), 0)::double precision \
                       FROM points_outbox ORDER BY id LIMIT 1) AS oldest_seconds"
        );
        Ok(sql_query(query).get_result(&mut self.server.fresh()?)?)
    }

    fn list(&self, held: bool, most: i64) -> Result<Vec<Listed>, DatabaseError> {
        let query = r#"
            SELECT id, message_id, exchange, routing_key, key, octet_length(body) AS body_bytes, attempts, last_error,
                   to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS created_at,
                   to_char(next_try_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS next_try_at
              FROM points_outbox WHERE next_try_at IS NOT NULL OR NOT $1 ORDER BY id LIMIT $2"#;
        let connection = &mut self.server.fresh_unlimited()?;
        Ok(sql_query(query).bind::<Bool, _>(held).bind::<BigInt, _>(most).load(connection)?)
    }

    fn retry(&self, selection: &RowSelection) -> Result<usize, DatabaseError> {
        let (which, ids) = match selection {
            RowSelection::All | RowSelection::Held => ("TRUE OR id = ANY ($2)", &[][..]),
            RowSelection::Ids(ids) => {
                ("id = ANY ($2) OR key IN (SELECT key FROM points_outbox WHERE id = ANY ($2))", &ids[..])
            }
        };
        let connection = &mut self.server.fresh_unlimited()?;
        let now: Now = sql_query("SELECT now()::text AS now").get_result(connection)?;
        let update = format!(
            "UPDATE points_outbox SET next_try_at = $1::timestamptz WHERE id IN \
                 (SELECT id FROM points_outbox \
                   WHERE next_try_at > $1::timestamptz AND id > $3 AND ({which}) ORDER BY id LIMIT {AT_A_TIME} FOR UPDATE) \
             RETURNING id"
        );
        change_in_portions(|after| {
            let update = sql_query(&update).bind::<Text, _>(&now.now).bind::<Array<BigInt>, _>(ids);
            Ok(update.bind::<BigInt, _>(after).load(connection)?)
        })
    }

    fn drop_rows(&self, selection: &RowSelection) -> Result<usize, DatabaseError> {
        let (which, ids) = match selection {
            RowSelection::All => ("TRUE OR id = ANY ($2)", &[][..]),
            RowSelection::Held => ("next_try_at IS NOT NULL OR id = ANY ($2)", &[][..]),
            RowSelection::Ids(ids) => ("id = ANY ($2)", &ids[..]),
        };
        let connection = &mut self.server.fresh_unlimited()?;
        // Rows that are inserted meanwhile are not selected.
        let last: Id = sql_query("SELECT coalesce(max(id), 0) AS id FROM points_outbox").get_result(connection)?;
        let delete = format!(
            "DELETE FROM points_outbox WHERE id IN \
                 (SELECT id FROM points_outbox WHERE id <= $1 AND id > $3 AND ({which}) ORDER BY id LIMIT {AT_A_TIME} FOR UPDATE) \
             RETURNING id"
        );
        change_in_portions(|after| {
            let delete = sql_query(&delete).bind::<BigInt, _>(last.id).bind::<Array<BigInt>, _>(ids);
            Ok(delete.bind::<BigInt, _>(after).load(connection)?)
        })
    }
}

#[derive(diesel::QueryableByName)]
struct Now {
    #[diesel(sql_type = Text)]
    now: String,
}

/// Inserts event rows, within the transaction that they report.
pub(in crate::ledger) struct InsertRows<'a>(pub(in crate::ledger) &'a OutboxEvents);

impl QueryId for InsertRows<'_> {
    type QueryId = InsertRows<'static>;
    const HAS_STATIC_QUERY_ID: bool = true;
}

impl RunQueryDsl<PgConnection> for InsertRows<'_> {}

impl QueryFragment<Pg> for InsertRows<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql(
            "INSERT INTO points_outbox (exchange, message_id, routing_key, key, body) \
             SELECT t.* FROM (SELECT ",
        );
        out.push_bind_param::<Text, _>(&self.0.exchange)?;
        out.push_sql("::text AS exchange, u.* FROM unnest(");
        out.push_bind_param::<Array<Text>, _>(&self.0.message_ids)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<Text>, _>(&self.0.routing_keys)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<Text>, _>(&self.0.keys)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<Text>, _>(&self.0.bodies)?;
        out.push_sql(") AS u) AS t");
        Ok(())
    }
}
