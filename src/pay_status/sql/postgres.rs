//! A payment table in PostgreSQL.

use super::{Columns, Identifier, PaymentRow, PaymentTable, Rows};
use crate::{
    database::{
        DatabaseError, PostgresUri,
        postgres::{Pool, PooledConnection, Server},
    },
    domain::failure::Class,
};
use diesel::{
    PgConnection, RunQueryDsl, sql_query,
    sql_types::{Array, Integer, Nullable, Text},
};
use std::{sync::OnceLock, time::Duration};

pub(super) struct PostgresTable {
    server: Server,
    pool: Pool,
    /// Set when the server was found to give each connection its own session.
    has_sessions: OnceLock<()>,
    columns: Columns,
}

/// The types of the columns, as SQL writes them; the type of a domain is its base type.
#[derive(diesel::QueryableByName)]
struct Types {
    #[diesel(sql_type = Nullable<Text>)]
    id: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    status: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    value: Option<String>,
}

/// The types of the required columns, and whether the value column exists.
struct Known {
    id_type: String,
    status_type: String,
    has_value: bool,
}

impl PostgresTable {
    pub(super) fn new(uri: &PostgresUri, columns: Columns, timeout: Duration) -> Self {
        let server = Server::new(uri, timeout);
        Self { pool: server.pool(1, None), server, has_sessions: OnceLock::new(), columns }
    }

    fn connection(&self) -> Result<PooledConnection, DatabaseError> {
        if self.has_sessions.get().is_none() {
            self.server.check_session()?;
            let _ = self.has_sessions.set(());
        }
        Ok(self.pool.get()?)
    }

    /// Returns the types of the columns. They are queried each time, because a table may be altered while the daemon
    /// runs. A length, as in `varchar(20)`, is omitted, because a cast would truncate the text to it.
    fn column_types(&self, connection: &mut PgConnection) -> Result<Known, DatabaseError> {
        let of = |parameter: &str| {
            format!(
                "(WITH RECURSIVE base AS (\
                    SELECT t.oid, t.typtype, t.typbasetype \
                      FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = a.atttypid \
                     WHERE a.attrelid = $1::regclass AND a.attname = {parameter} AND NOT a.attisdropped \
                    UNION ALL \
                    SELECT t.oid, t.typtype, t.typbasetype \
                      FROM base JOIN pg_type AS t ON t.oid = base.typbasetype WHERE base.typtype = 'd'\
                  ) SELECT format_type(oid, -1) FROM base WHERE typtype <> 'd')"
            )
        };
        let query = format!("SELECT {} AS id, {} AS status, {} AS value", of("$2"), of("$3"), of("$4"));
        let Columns { table, id, status, value, .. } = &self.columns;
        let types: Types = sql_query(query)
            .bind::<Text, _>(table.to_string())
            .bind::<Text, _>(id.as_str())
            .bind::<Text, _>(status.as_str())
            .bind::<Nullable<Text>, _>(value.as_ref().map(Identifier::as_str))
            .get_result(connection)?;
        let missing = |column| DatabaseError::Unusable(format!("the table {table} has no column {column}"));
        Ok(Known {
            id_type: types.id.ok_or_else(|| missing(id))?,
            status_type: types.status.ok_or_else(|| missing(status))?,
            has_value: types.value.is_some(),
        })
    }
}

/// Returns which of these IDs are values of the column's type. Every ID is a text, integers are parsed here, and values
/// of other types are cast by the database without the table, so that an error has no other cause.
fn find_castable(connection: &mut PgConnection, ids: &[&str], id_type: &str) -> Result<Vec<bool>, DatabaseError> {
    let each = |is: fn(&str) -> bool| Ok(ids.iter().map(|id| is(id)).collect());
    match id_type {
        "text" | "character varying" | "bpchar" => each(|_| true),
        "smallint" => each(|id| id.parse::<i16>().is_ok()),
        "integer" => each(|id| id.parse::<i32>().is_ok()),
        "bigint" => each(|id| id.parse::<i64>().is_ok()),
        "uuid" => castable_by_database(connection, ids, id_type, may_be_uuid),
        "numeric" | "double precision" | "real" => {
            castable_by_database(connection, ids, id_type, |id| id.parse::<f64>().is_ok())
        }
        _ => castable_by_database(connection, ids, id_type, |_| true),
    }
}

/// Returns whether the database may accept the text as a UUID: it accepts more spellings than are distinguished here.
fn may_be_uuid(id: &str) -> bool {
    id.bytes().filter(u8::is_ascii_hexdigit).count() == 32
        && id.bytes().all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b'-' | b'{' | b'}'))
}

/// Lets the database cast those IDs that may be values of the type.
fn castable_by_database(
    connection: &mut PgConnection,
    ids: &[&str],
    id_type: &str,
    may_be: fn(&str) -> bool,
) -> Result<Vec<bool>, DatabaseError> {
    let asked: Vec<usize> = (0..ids.len()).filter(|index| may_be(ids[*index])).collect();
    let texts: Vec<&str> = asked.iter().map(|index| ids[*index]).collect();
    let mut found = vec![false; texts.len()];
    mark_castable(connection, &texts, id_type, &mut found, &mut { MOST_CASTS })?;
    let mut castable = vec![false; ids.len()];
    for (index, found) in asked.into_iter().zip(found) {
        castable[index] = found;
    }
    Ok(castable)
}

/// Returns the canonical spelling of an ID that the database has written. Trailing blanks of `char(n)` and trailing
/// zeros of a fraction are not significant to the column. `None` when no message can be expected to spell the ID in the
/// same way.
fn canonical_id(mut id: String, id_type: &str) -> Option<String> {
    let is_float = is_float(id_type);
    let length = match id_type {
        "bpchar" => id.trim_end_matches(' ').len(),
        "numeric" | "real" | "double precision" => {
            id.find('.').map_or(id.len(), |_| id.trim_end_matches('0').trim_end_matches('.').len())
        }
        "date" | "interval" | "money" | "bytea" => return None,
        other if other.starts_with("time") => return None,
        _ => id.len(),
    };
    id.truncate(length);
    // A cast to numeric keeps no more digits than these.
    let digits = id.bytes().filter(u8::is_ascii_digit).count();
    Some(id).filter(|_| !is_float || digits <= FLOAT_DIGITS)
}

/// The number of decimal digits that a `double precision` preserves (PostgreSQL, "Floating-Point Types").
const FLOAT_DIGITS: usize = 15;

fn is_float(id_type: &str) -> bool {
    matches!(id_type, "real" | "double precision")
}

/// The most statements that search for uncastable IDs in one call; beyond it, the batch is split.
const MOST_CASTS: u32 = 200;

/// Casts all IDs together and, if that fails, each half, until an uncastable ID is alone. A single ID is tried twice,
/// because any statement can fail once.
fn mark_castable(
    connection: &mut PgConnection,
    ids: &[&str],
    id_type: &str,
    castable: &mut [bool],
    left: &mut u32,
) -> Result<(), DatabaseError> {
    let Some(middle) = (!ids.is_empty()).then_some(ids.len() / 2) else { return Ok(()) };
    let attempts = if ids.len() == 1 { 2 } else { 1 };
    for _ in 0..attempts {
        *left = left
            .checked_sub(1)
            .ok_or_else(|| DatabaseError::Database("too many IDs are not of the column's type".into()))?;
        let cast = sql_query(format!("SELECT $1::text[]::{id_type}[]")).bind::<Array<Text>, _>(ids).execute(connection);
        match cast.map_err(DatabaseError::from) {
            Ok(_) => {
                castable.fill(true);
                return Ok(());
            }
            Err(error) if error.class() == Class::Outage => return Err(error),
            Err(_) => {}
        }
    }
    if middle == 0 {
        return Ok(());
    }
    let (first, second) = castable.split_at_mut(middle);
    mark_castable(connection, &ids[..middle], id_type, first, left)?;
    mark_castable(connection, &ids[middle..], id_type, second, left)
}

impl PaymentTable for PostgresTable {
    fn rows(&self, payments: &[&str]) -> Result<Rows, DatabaseError> {
        let connection = &mut **self.connection()?;
        let Known { id_type, has_value, .. } = self.column_types(connection)?;
        let (mut numbers, mut ids) = (Vec::with_capacity(payments.len()), Vec::with_capacity(payments.len()));
        for ((n, id), castable) in (0_i32..).zip(payments).zip(find_castable(connection, payments, &id_type)?) {
            if castable {
                numbers.push(n);
                ids.push(*id);
            }
        }
        let Columns { table, id, status, user, value } = &self.columns;
        let or_null = |column: Option<&Identifier>| column.map_or_else(|| "NULL".to_owned(), |it| format!("t.{it}"));
        let (user, value) = (or_null(user.as_ref()), or_null(value.as_ref().filter(|_| has_value)));
        // An exponent is not a spelling of an ID.
        let written = if is_float(&id_type) { "::float8::numeric::text" } else { "::text" };
        // The ID is cast to the column's type, and not the column, so that the index is used.
        let query = format!(
            "SELECT i.n AS n, t.{id}{written} AS id, t.{status}::text AS status, {user}::text AS user_id, \
                    {value}::text AS value \
             FROM unnest($1::text[]::{id_type}[], $2) AS i(id, n) JOIN {table} AS t ON t.{id} = i.id"
        );
        let query = sql_query(query).bind::<Array<Text>, _>(ids).bind::<Array<Integer>, _>(numbers);
        let mut rows: Vec<PaymentRow> = query.load(connection)?;
        for row in &mut rows {
            row.id = row.id.take().and_then(|id| canonical_id(id, &id_type));
        }
        Ok(Rows { rows, has_value })
    }

    fn probe_update(&self) -> Result<(), DatabaseError> {
        let Columns { table, status, .. } = &self.columns;
        sql_query(format!("UPDATE {table} SET {status} = {status} WHERE 1 = 0")).execute(&mut **self.connection()?)?;
        Ok(())
    }

    fn set(&self, payments: &[&str], to: &str, from: &[String]) -> Result<(), DatabaseError> {
        let connection = &mut **self.connection()?;
        let Known { id_type, status_type, .. } = self.column_types(connection)?;
        let castable = find_castable(connection, payments, &id_type)?;
        let ids: Vec<&str> =
            payments.iter().zip(castable).filter(|(_, castable)| *castable).map(|(id, _)| *id).collect();
        if ids.is_empty() {
            return Ok(());
        }
        let Columns { table, id, status, .. } = &self.columns;
        let update = format!(
            "UPDATE {table} AS t SET {status} = $2::text::{status_type} \
             WHERE t.{id} = ANY ($1::text[]::{id_type}[]) AND t.{status}::text = ANY ($3)"
        );
        sql_query(update)
            .bind::<Array<Text>, _>(ids)
            .bind::<Text, _>(to)
            .bind::<Array<Text>, _>(from)
            .execute(connection)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_written_without_what_its_column_ignores() {
        for (id, id_type, expected) in [
            ("7.00", "numeric", Some("7")),
            ("7.50", "numeric", Some("7.5")),
            ("700", "numeric", Some("700")),
            ("0.00", "numeric", Some("0")),
            ("NaN", "numeric", Some("NaN")),
            ("P7  ", "bpchar", Some("P7")),
            ("7.00", "text", Some("7.00")),
            ("P7 ", "character varying", Some("P7 ")),
            ("7", "double precision", Some("7")),
            ("1000000000000000", "double precision", None),
            ("P-7", "citext", Some("P-7")),
            ("2026-11-26 00:00:00", "timestamp without time zone", None),
        ] {
            assert_eq!(canonical_id(id.to_owned(), id_type).as_deref(), expected, "{id_type}");
        }
    }
}
