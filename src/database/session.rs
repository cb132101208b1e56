//! Detects poolers. Behind a pooler in transaction mode, each transaction may have another session, without the
//! settings, the prepared statements and the locks of the previous one.

use super::DatabaseError;
use diesel::{
    Connection, PgConnection, QueryableByName, RunQueryDsl, connection::SimpleConnection, sql_query, sql_types::Integer,
};

#[derive(QueryableByName)]
struct Backend {
    #[diesel(sql_type = Integer)]
    pid: i32,
}

/// Returns the process ID of the server process that serves a connection.
fn backend_pid(connection: &mut PgConnection) -> diesel::QueryResult<i32> {
    let backend: Backend = sql_query("SELECT pg_backend_pid() AS pid").get_result(connection)?;
    Ok(backend.pid)
}

/// Returns an error when two connections to this server share a session, or when one connection has several sessions.
pub(super) fn check(uri: &str) -> Result<(), DatabaseError> {
    let (mut one, mut other) = (PgConnection::establish(uri)?, PgConnection::establish(uri)?);
    match is_shared(&mut one, &mut other) {
        Ok(false) => Ok(()),
        Ok(true) => Err(DatabaseError::Pooled),
        Err(error) if is_pooler_error(&error.to_string()) => Err(DatabaseError::Pooled),
        Err(error) => Err(error.into()),
    }
}

fn is_shared(one: &mut PgConnection, other: &mut PgConnection) -> diesel::QueryResult<bool> {
    let session = backend_pid(one)?;
    // During this transaction its session belongs to this connection alone. pgbouncer in statement mode ends the
    // connection here, while other connections still work.
    if let Err(error) = other.batch_execute("BEGIN") {
        return backend_pid(one).map(|_| true).map_err(|_| error);
    }
    let is_shared = backend_pid(other)? == session || backend_pid(one)? != session;
    other.batch_execute("ROLLBACK")?;
    Ok(is_shared)
}

/// Returns whether an error is typical of a pooler: a statement was prepared in another session.
fn is_pooler_error(error: &str) -> bool {
    error.contains("prepared statement")
}
