//! Connections to a SQLite file.

use super::DatabaseError;
use diesel::{
    Connection, SqliteConnection,
    connection::SimpleConnection,
    r2d2::{ConnectionManager, CustomizeConnection},
};
use std::{
    fmt,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

/// A pool of connections.
pub(crate) type Pool = r2d2::Pool<ConnectionManager<SqliteConnection>>;

/// A database file and the settings of its connections.
pub(crate) struct Database {
    file: PathBuf,
    settings: Settings,
}

impl Database {
    /// Creates a database without opening it. `timeout` is the deadline that the caller enforces.
    pub(crate) fn new(file: &Path, timeout: Duration) -> Self {
        Self { file: file.into(), settings: Settings { busy_timeout: timeout.mul_f64(0.5), ours: true } }
    }

    /// Creates a database for a file that belongs to another program, which chooses its journal mode.
    pub(crate) fn foreign(file: &Path, timeout: Duration) -> Self {
        Self { file: file.into(), settings: Settings { busy_timeout: timeout.mul_f64(0.5), ours: false } }
    }

    /// Returns a pool of at most `size` connections, opened on demand.
    pub(crate) fn pool(&self, size: u32) -> Pool {
        r2d2::Pool::builder()
            .max_size(size)
            .min_idle(Some(0))
            .test_on_check_out(true)
            .thread_pool(super::connecting_thread())
            .connection_timeout(Duration::from_secs(3))
            .error_handler(Box::new(r2d2::NopErrorHandler))
            .connection_customizer(Box::new(self.settings.clone()))
            .build_unchecked(ConnectionManager::new(self.file.to_string_lossy()))
    }

    /// Opens a connection outside the pool. SQLite creates a missing file.
    pub(crate) fn open(&self) -> Result<SqliteConnection, DatabaseError> {
        let mut connection = SqliteConnection::establish(&self.file.to_string_lossy())?;
        self.settings.apply(&mut connection)?;
        Ok(connection)
    }
}

/// Verifies that a file is still the one that was used first. SQLite would create a missing file, and would continue
/// with a replaced one. After an error, the caller opens the file that is present then.
pub(crate) struct SameFile {
    file: PathBuf,
    identity: OnceLock<(u64, u64)>,
}

impl SameFile {
    pub(crate) fn new(file: &Path) -> Self {
        Self { file: file.into(), identity: OnceLock::new() }
    }

    pub(crate) fn check(&self) -> Result<(), DatabaseError> {
        let gone = |what: &dyn fmt::Display| DatabaseError::Unreachable(format!("{}: {what}", self.file.display()));
        let now = std::fs::metadata(&self.file).map_err(|error| gone(&error))?;
        let now = (now.dev(), now.ino());
        if *self.identity.get_or_init(|| now) == now {
            return Ok(());
        }
        Err(gone(&"the file was replaced"))
    }
}

/// The settings of every connection.
#[derive(Debug, Clone)]
struct Settings {
    /// How long SQLite waits for another program's lock: less than the caller's deadline.
    busy_timeout: Duration,
    /// Whether the file is a ledger.
    ours: bool,
}

impl Settings {
    /// Applies the settings to a connection. `busy_timeout` comes first, because switching to WAL takes a lock itself.
    /// `FULL`, because with `NORMAL` a power failure can lose a commit whose message was acknowledged (SQLite, "PRAGMA
    /// synchronous").
    fn apply(&self, connection: &mut SqliteConnection) -> diesel::QueryResult<()> {
        let busy = self.busy_timeout.as_millis();
        connection.batch_execute(&format!("PRAGMA busy_timeout = {busy}; PRAGMA synchronous = FULL;"))?;
        if self.ours {
            connection.batch_execute("PRAGMA journal_mode = WAL; PRAGMA foreign_keys = ON;")?;
        }
        Ok(())
    }
}

impl CustomizeConnection<SqliteConnection, diesel::r2d2::Error> for Settings {
    fn on_acquire(&self, connection: &mut SqliteConnection) -> Result<(), diesel::r2d2::Error> {
        self.apply(connection).map_err(diesel::r2d2::Error::QueryError)
    }
}
