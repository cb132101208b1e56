//! Connections to PostgreSQL with a bound on every wait.

use super::{DatabaseError, PostgresUri};
use diesel::{
    Connection, PgConnection,
    connection::SimpleConnection,
    r2d2::{self as diesel_r2d2, R2D2Connection},
};
use r2d2::ManageConnection;
use std::{
    ops::{Deref, DerefMut},
    time::{Duration, Instant},
};

/// How long the pool waits for a connection, at most: a server that refuses connections must be reported as such before
/// the caller's deadline passes.
const CHECKOUT_TIMEOUT: Duration = Duration::from_secs(3);

/// How recently a connection must have worked to be reused without a test, because the test is a round trip.
const RECENT: Duration = Duration::from_secs(1);

/// A pool of connections.
pub(crate) type Pool = r2d2::Pool<Manager>;

/// A connection of the pool, in use.
pub(crate) type PooledConnection = r2d2::PooledConnection<Manager>;

/// A PostgreSQL server and the settings of its connections.
pub(crate) struct Server {
    uri: PostgresUri,
    settings: Settings,
    timeout: Duration,
}

impl Server {
    /// Creates a server without connecting. `timeout` is the deadline that the caller enforces; the server receives a
    /// shorter one.
    pub(crate) fn new(uri: &PostgresUri, timeout: Duration) -> Self {
        let settings = Settings { statement_timeout: timeout.mul_f64(0.8), lock_timeout: timeout.mul_f64(0.2) };
        Self { uri: uri.clone(), settings, timeout }
    }

    /// Returns a pool of at most `size` connections, opened on demand. `more` is SQL that runs on each new connection
    /// after the settings.
    pub(crate) fn pool(&self, size: u32, more: Option<&'static str>) -> Pool {
        r2d2::Pool::builder()
            .max_size(size)
            .min_idle(Some(0))
            .test_on_check_out(true)
            .thread_pool(super::connecting_thread())
            .connection_timeout(CHECKOUT_TIMEOUT.min(self.timeout.mul_f64(0.5)))
            // The error of the call contains the cause; the pool's own log line would repeat it.
            .error_handler(Box::new(r2d2::NopErrorHandler))
            .build_unchecked(Manager {
                uri: self.uri.clone(),
                settings: self.settings.clone(),
                timeout: self.timeout,
                more,
            })
    }

    /// Returns an error when a pooler gives each transaction another session.
    pub(crate) fn check_session(&self) -> Result<(), DatabaseError> {
        let uri = self.uri.current().map_err(|error| diesel::ConnectionError::BadConnection(error.to_string()))?;
        super::session::check(&with_parameters(&uri, self.timeout))
    }

    /// Opens a connection outside the pool.
    pub(crate) fn fresh(&self) -> Result<PgConnection, DatabaseError> {
        let mut connection = establish(&self.uri, self.timeout)?;
        self.settings.apply(&mut connection)?;
        Ok(connection)
    }

    /// Opens a connection outside the pool without a time limit on statements, for commands that a person has started
    /// and can stop.
    pub(crate) fn fresh_unlimited(&self) -> Result<PgConnection, DatabaseError> {
        let mut connection = self.fresh()?;
        connection.batch_execute("SET statement_timeout = 0; SET lock_timeout = 0")?;
        Ok(connection)
    }
}

/// The settings of every connection.
#[derive(Debug, Clone)]
struct Settings {
    /// Shorter than the caller's deadline, so that a working server can report itself what it waited for.
    statement_timeout: Duration,
    /// Shorter still: a row that another session holds concerns one payment, and a whole batch waits while that payment
    /// is identified. Not shorter than this: a message is charged after four such waits in a row, which is as long as a
    /// statement of another pointsd writer may take.
    lock_timeout: Duration,
}

impl Settings {
    /// Applies the settings to a connection. A commit that was reported as successful must survive a crash, so
    /// `synchronous_commit = off` is not accepted; every other setting waits for the disk and is kept. The server ends
    /// a transaction that becomes idle (because its machine died), because it holds rows for which other daemons wait.
    fn apply(&self, connection: &mut PgConnection) -> diesel::QueryResult<()> {
        let timeout = self.statement_timeout.as_millis();
        let lock_timeout = self.lock_timeout.as_millis();
        connection.batch_execute(&format!(
            "SET statement_timeout = {timeout}; SET lock_timeout = {lock_timeout}; SET idle_in_transaction_session_timeout = {timeout}; \
             SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
        ))
    }
}

/// Opens the connections of a pool.
pub(crate) struct Manager {
    uri: PostgresUri,
    settings: Settings,
    timeout: Duration,
    /// SQL for each new connection.
    more: Option<&'static str>,
}

/// A connection of a pool.
pub(crate) struct Pooled {
    connection: PgConnection,
    /// When the last user of the connection finished, if that user has marked the connection as working.
    worked: Option<Instant>,
}

impl Pooled {
    /// Marks the connection as working: every statement was answered. Without this mark, the connection is tested
    /// before its next use.
    pub(crate) fn mark_working(&mut self) {
        self.worked = Some(Instant::now());
    }
}

impl Deref for Pooled {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.connection
    }
}

impl DerefMut for Pooled {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}

impl ManageConnection for Manager {
    type Connection = Pooled;
    type Error = diesel_r2d2::Error;

    fn connect(&self) -> Result<Pooled, diesel_r2d2::Error> {
        let mut connection = establish(&self.uri, self.timeout).map_err(diesel_r2d2::Error::ConnectionError)?;
        let more = |connection: &mut PgConnection| self.more.map_or(Ok(()), |more| connection.batch_execute(more));
        let set = self.settings.apply(&mut connection).and_then(|()| more(&mut connection));
        set.map_err(diesel_r2d2::Error::QueryError)?;
        Ok(Pooled { connection, worked: None })
    }

    fn is_valid(&self, pooled: &mut Pooled) -> Result<(), diesel_r2d2::Error> {
        match pooled.worked.take() {
            Some(worked) if worked.elapsed() < RECENT => Ok(()),
            _ => pooled.connection.ping().map_err(diesel_r2d2::Error::QueryError),
        }
    }

    fn has_broken(&self, pooled: &mut Pooled) -> bool {
        pooled.connection.is_broken() || std::thread::panicking()
    }
}

/// Connects with the current URI.
fn establish(uri: &PostgresUri, timeout: Duration) -> diesel::ConnectionResult<PgConnection> {
    let uri = uri.current().map_err(|error| diesel::ConnectionError::BadConnection(error.to_string()))?;
    PgConnection::establish(&with_parameters(&uri, timeout))
}

/// Adds the libpq parameters that bound waits, unless the URI contains them. (libpq, "Parameter Key Words".)
fn with_parameters(uri: &str, timeout: Duration) -> String {
    let authority = uri.split_once("://").map_or("", |(_, rest)| rest.split(['/', '?']).next().unwrap_or(rest));
    let hosts = u64::try_from(authority.split(',').count()).unwrap_or(1);
    // libpq applies this timeout to each host, and rounds it up to two seconds.
    let seconds = (timeout.as_secs() / 2 / hosts).clamp(2, 5);
    let milliseconds = timeout.as_millis();
    let mut uri = uri.trim_end_matches(['?', '&']).to_owned();
    for (name, value) in [
        ("application_name", "pointsd".to_owned()),
        ("connect_timeout", seconds.to_string()),
        ("tcp_user_timeout", milliseconds.to_string()),
        // Keepalives detect within 30 seconds, instead of two hours, that a server vanished while a connection was
        // idle.
        ("keepalives_idle", "15".to_owned()),
        ("keepalives_interval", "5".to_owned()),
        ("keepalives_count", "3".to_owned()),
    ] {
        let query = uri.split_once('?').map(|(_, query)| query);
        let given =
            query.is_some_and(|query| query.split('&').any(|parameter| parameter.split('=').next() == Some(name)));
        if !given {
            uri.push(if query.is_some() { '&' } else { '?' });
            uri.push_str(name);
            uri.push('=');
            uri.push_str(&value);
        }
    }
    uri
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_bounded_unless_the_uri_says_how() {
        let timeout = Duration::from_secs(10);
        for (given, completed) in [
            ("postgres:///p", "postgres:///p?application_name=pointsd&connect_timeout=5&tcp_user_timeout=10000"),
            ("postgres://a,b/p?", "postgres://a,b/p?application_name=pointsd&connect_timeout=2&tcp_user_timeout=10000"),
            (
                "postgres://a,b/p?connect_timeout=1&target_session_attrs=read-write",
                "postgres://a,b/p?connect_timeout=1&target_session_attrs=read-write\
                 &application_name=pointsd&tcp_user_timeout=10000",
            ),
        ] {
            let completed = format!("{completed}&keepalives_idle=15&keepalives_interval=5&keepalives_count=3");
            assert_eq!(with_parameters(given, timeout), completed);
        }
    }
}
