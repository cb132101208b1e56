//! Connections to PostgreSQL, every wait of which is bounded.

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

/// How long the pool waits for a connection, at most: a server that refuses shall be told as such, before the caller's
/// deadline passes.
const CHECKOUT_TIMEOUT: Duration = Duration::from_secs(3);

/// A connection that is known to have worked so lately is not tested before it is used again, because the test is a round
/// trip.
const LATELY: Duration = Duration::from_secs(1);

/// Connections that are kept.
pub(crate) type Pool = r2d2::Pool<Manager>;

/// One of them, in use.
pub(crate) type PooledConnection = r2d2::PooledConnection<Manager>;

/// Where a PostgreSQL is, and how its connections are set.
pub(crate) struct Server {
    uri: PostgresUri,
    settings: Settings,
    timeout: Duration,
}

impl Server {
    /// Connects to nothing yet. `timeout`: the deadline that the caller keeps; the server is told a shorter one.
    pub(crate) fn new(uri: &PostgresUri, timeout: Duration) -> Self {
        let settings = Settings { statement_timeout: timeout.mul_f64(0.8), lock_timeout: timeout.mul_f64(0.2) };
        Self { uri: uri.clone(), settings, timeout }
    }

    /// At most `size` connections, made when they are needed. `more`: SQL that each is set with besides.
    pub(crate) fn pool(&self, size: u32, more: Option<&'static str>) -> Pool {
        r2d2::Pool::builder()
            .max_size(size)
            .min_idle(Some(0))
            .test_on_check_out(true)
            .thread_pool(super::connecting_thread())
            .connection_timeout(CHECKOUT_TIMEOUT.min(self.timeout.mul_f64(0.5)))
            // What goes wrong is in the error of the call; the pool's own log line would repeat it.
            .error_handler(Box::new(r2d2::NopErrorHandler))
            .build_unchecked(Manager {
                uri: self.uri.clone(),
                settings: self.settings.clone(),
                timeout: self.timeout,
                more,
            })
    }

    /// An error when a pooler gives each transaction another session.
    pub(crate) fn check_session(&self) -> Result<(), DatabaseError> {
        let uri = self.uri.current().map_err(|error| diesel::ConnectionError::BadConnection(error.to_string()))?;
        super::session::check(&with_parameters(&uri, self.timeout))
    }

    /// A connection outside the pool.
    pub(crate) fn fresh(&self) -> Result<PgConnection, DatabaseError> {
        let mut connection = establish(&self.uri, self.timeout)?;
        self.settings.apply(&mut connection)?;
        Ok(connection)
    }

    /// The same without a time limit on statements, for commands that a person has started and can stop.
    pub(crate) fn fresh_unlimited(&self) -> Result<PgConnection, DatabaseError> {
        let mut connection = self.fresh()?;
        connection.batch_execute("SET statement_timeout = 0; SET lock_timeout = 0")?;
        Ok(connection)
    }
}

/// What every connection is set to.
#[derive(Debug, Clone)]
struct Settings {
    /// Shorter than the caller's deadline: a server that works can then say itself what it waited for.
    statement_timeout: Duration,
    /// Shorter still: a row that somebody else holds is one payment's trouble, and a whole batch waits while that payment
    /// is looked for. Not shorter than this: a message is charged for four such waits in a row, which is as long as a
    /// statement of another writer of ours may take.
    lock_timeout: Duration,
}

impl Settings {
    /// A commit that was answered must survive a crash, so `synchronous_commit = off` is not accepted; every other
    /// setting waits for the disk and stays. A transaction of ours that falls silent in the middle (its machine died)
    /// is ended by the server, because it holds rows that other daemons wait for.
    fn apply(&self, connection: &mut PgConnection) -> diesel::QueryResult<()> {
        let timeout = self.statement_timeout.as_millis();
        let lock_timeout = self.lock_timeout.as_millis();
        connection.batch_execute(&format!(
            "SET statement_timeout = {timeout}; SET lock_timeout = {lock_timeout}; SET idle_in_transaction_session_timeout = {timeout}; \
             SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
        ))
    }
}

/// Makes the connections of a pool.
pub(crate) struct Manager {
    uri: PostgresUri,
    settings: Settings,
    timeout: Duration,
    /// SQL for each new one.
    more: Option<&'static str>,
}

/// A connection of a pool.
pub(crate) struct Pooled {
    connection: PgConnection,
    /// When its last user was done, if that user has said that it works.
    worked: Option<Instant>,
}

impl Pooled {
    /// Everything that was asked of it was answered. Without this word it is tested before the next use.
    pub(crate) fn has_worked(&mut self) {
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
            Some(worked) if worked.elapsed() < LATELY => Ok(()),
            _ => pooled.connection.ping().map_err(diesel_r2d2::Error::QueryError),
        }
    }

    fn has_broken(&self, pooled: &mut Pooled) -> bool {
        pooled.connection.is_broken() || std::thread::panicking()
    }
}

/// Connects with the URI as it is now.
fn establish(uri: &PostgresUri, timeout: Duration) -> diesel::ConnectionResult<PgConnection> {
    let uri = uri.current().map_err(|error| diesel::ConnectionError::BadConnection(error.to_string()))?;
    PgConnection::establish(&with_parameters(&uri, timeout))
}

/// Adds the libpq parameters that bound a wait, unless the URI has them. (libpq, "Parameter Key Words".)
fn with_parameters(uri: &str, timeout: Duration) -> String {
    let authority = uri.split_once("://").map_or("", |(_, rest)| rest.split(['/', '?']).next().unwrap_or(rest));
    let hosts = u64::try_from(authority.split(',').count()).unwrap_or(1);
    // libpq waits so long for each host, two seconds at the least.
    let seconds = (timeout.as_secs() / 2 / hosts).clamp(2, 5);
    let milliseconds = timeout.as_millis();
    let mut uri = uri.trim_end_matches(['?', '&']).to_owned();
    for (name, value) in [
        ("application_name", "pointsd".to_owned()),
        ("connect_timeout", seconds.to_string()),
        ("tcp_user_timeout", milliseconds.to_string()),
        // A server that vanished while a connection was idle is noticed within half a minute, not two hours.
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
