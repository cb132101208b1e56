//! Whether a PostgreSQL session is a session: behind a pooler in transaction mode each transaction may have another one, which
//! has neither the settings nor the prepared statements nor the locks of the one before.

use super::DatabaseError;
use diesel::{
    Connection, PgConnection, QueryableByName, RunQueryDsl, connection::SimpleConnection, sql_query, sql_types::Integer,
};

#[derive(QueryableByName)]
struct Backend {
    #[diesel(sql_type = Integer)]
    pid: i32,
}

/// The server's process behind a connection.
fn backend(connection: &mut PgConnection) -> diesel::QueryResult<i32> {
    let backend: Backend = sql_query("SELECT pg_backend_pid() AS pid").get_result(connection)?;
    Ok(backend.pid)
}

/// An error when two connections to this server share a session, or one has several.
pub(super) fn check(uri: &str) -> Result<(), DatabaseError> {
    let (mut one, mut other) = (PgConnection::establish(uri)?, PgConnection::establish(uri)?);
    match is_shared(&mut one, &mut other) {
        Ok(false) => Ok(()),
        Ok(true) => Err(DatabaseError::Pooled),
        Err(error) if is_of_a_pooler(&error.to_string()) => Err(DatabaseError::Pooled),
        Err(error) => Err(error.into()),
    }
}

fn is_shared(one: &mut PgConnection, other: &mut PgConnection) -> diesel::QueryResult<bool> {
    let session = backend(one)?;
    // As long as this transaction lasts its session is nobody else's. pgbouncer in statement mode ends the connection here,
    // while others still answer.
    if let Err(error) = other.batch_execute("BEGIN") {
        return backend(one).map(|_| true).map_err(|_| error);
    }
    let is_shared = backend(other)? == session || backend(one)? != session;
    other.batch_execute("ROLLBACK")?;
    Ok(is_shared)
}

/// A statement that was prepared in another session.
fn is_of_a_pooler(error: &str) -> bool {
    error.contains("prepared statement")
}
