//! A payment table in a SQLite file.

use super::{Columns, Identifier, PaymentTable, Rows, TableName};
use crate::database::{
    DatabaseError,
    sqlite::{Database, Pool, SameFile},
};
use diesel::{RunQueryDsl, SqliteConnection, sql_query, sql_types::Text};
use std::{path::Path, time::Duration};

pub(super) struct SqliteTable {
    pool: Pool,
    file: SameFile,
    columns: Columns,
}

impl SqliteTable {
    pub(super) fn new(file: &Path, columns: Columns, timeout: Duration) -> Self {
        Self { pool: Database::foreign(file, timeout).pool(1), file: SameFile::new(file), columns }
    }
}

fn json_array(texts: &[String]) -> String {
    serde_json::Value::from(texts).to_string()
}

/// Returns each ID with its index as JSON: as text, and also as a number where it is an integer. A column without a
/// type, or an expression, compares texts only with texts and numbers only with numbers.
fn numbered_ids(payments: &[&str]) -> String {
    let mut ids: Vec<serde_json::Value> = Vec::with_capacity(payments.len());
    for (n, id) in payments.iter().enumerate() {
        ids.push(serde_json::json!([n, id]));
        if let Some(number) = id.parse::<i64>().ok().filter(|number| number.to_string() == *id) {
            ids.push(serde_json::json!([n, number]));
        }
    }
    serde_json::Value::from(ids).to_string()
}

/// The name of a column.
#[derive(diesel::QueryableByName)]
struct Name {
    #[diesel(sql_type = Text)]
    name: String,
}

/// Returns whether the table has a column. This is queried each time, because a table may be altered while the daemon
/// runs. SQLite compares names without regard to the case of ASCII letters.
fn has_column(
    connection: &mut SqliteConnection,
    TableName { schema, table }: &TableName,
    column: &Identifier,
) -> Result<bool, DatabaseError> {
    let names: Vec<Name> = sql_query("SELECT name FROM pragma_table_xinfo(?, ?)")
        .bind::<Text, _>(table.as_str())
        .bind::<Text, _>(schema.as_ref().map_or("main", Identifier::as_str))
        .load(connection)?;
    Ok(names.iter().any(|it| it.name.eq_ignore_ascii_case(column.as_str())))
}

impl PaymentTable for SqliteTable {
    fn rows(&self, payments: &[&str]) -> Result<Rows, DatabaseError> {
        self.file.check()?;
        let connection = &mut *self.pool.get()?;
        let Columns { table, id, status, user, value } = &self.columns;
        let has_value = value.as_ref().map_or(Ok(false), |value| has_column(connection, table, value))?;
        let or_null = |column: Option<&Identifier>| column.map_or_else(|| "NULL".to_owned(), |it| format!("t.{it}"));
        let (user, value) = (or_null(user.as_ref()), or_null(value.as_ref().filter(|_| has_value)));
        // SQLite writes the real number 7 as 7.0, and a large one with an exponent, which is not a spelling of an ID.
        let canonical = format!(
            "CASE WHEN typeof(t.{id}) <> 'real' THEN CAST(t.{id} AS TEXT) \
                  WHEN abs(t.{id}) >= 1e15 THEN NULL \
                  WHEN t.{id} = CAST(t.{id} AS INTEGER) THEN CAST(CAST(t.{id} AS INTEGER) AS TEXT) \
                  ELSE CAST(t.{id} AS TEXT) END"
        );
        // The compared text is converted to the column's type (SQLite, "Type Conversions Prior To Comparison"), so the
        // index is used. Every column is qualified, because SQLite treats an unknown quoted name as a text.
        let query = format!(
            "SELECT j.value ->> 0 AS n, {canonical} AS id, CAST(t.{status} AS TEXT) AS status, \
                    CAST({user} AS TEXT) AS user_id, CAST({value} AS TEXT) AS value \
             FROM json_each(?) AS j CROSS JOIN {table} AS t WHERE t.{id} = j.value ->> 1"
        );
        let rows = sql_query(query).bind::<Text, _>(numbered_ids(payments)).load(connection)?;
        Ok(Rows { rows, has_value })
    }

    fn probe_update(&self) -> Result<(), DatabaseError> {
        self.file.check()?;
        let Columns { table, status, .. } = &self.columns;
        sql_query(format!("UPDATE {table} SET {status} = {status} WHERE 1 = 0")).execute(&mut *self.pool.get()?)?;
        Ok(())
    }

    fn set(&self, payments: &[&str], to: &str, from: &[String]) -> Result<(), DatabaseError> {
        self.file.check()?;
        let Columns { table, id, status, .. } = &self.columns;
        let update = format!(
            "UPDATE {table} AS t SET {status} = ? WHERE t.{id} IN (SELECT value ->> 1 FROM json_each(?)) \
             AND CAST(t.{status} AS TEXT) IN (SELECT value FROM json_each(?))"
        );
        sql_query(update)
            .bind::<Text, _>(to)
            .bind::<Text, _>(numbered_ids(payments))
            .bind::<Text, _>(json_array(from))
            .execute(&mut *self.pool.get()?)?;
        Ok(())
    }
}
