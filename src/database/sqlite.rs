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

/// Connections that are kept.
pub(crate) type Pool = r2d2::Pool<ConnectionManager<SqliteConnection>>;

/// A database file, and how its connections are set.
pub(crate) struct Database {
    file: PathBuf,
    settings: Settings,
}

impl Database {
    /// Opens nothing yet. `timeout`: the deadline that the caller keeps.
    pub(crate) fn new(file: &Path, timeout: Duration) -> Self {
        Self { file: file.into(), settings: Settings { busy_timeout: timeout.mul_f64(0.5), ours: true } }
    }

    /// The same for a file whose journal is somebody else's to choose.
    pub(crate) fn of_somebody_else(file: &Path, timeout: Duration) -> Self {
        Self { file: file.into(), settings: Settings { busy_timeout: timeout.mul_f64(0.5), ours: false } }
    }

    /// At most `size` connections, made when they are needed.
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

    /// A connection of its own. SQLite makes a file that is not there.
    pub(crate) fn open(&self) -> Result<SqliteConnection, DatabaseError> {
        let mut connection = SqliteConnection::establish(&self.file.to_string_lossy())?;
        self.settings.apply(&mut connection)?;
        Ok(connection)
    }
}

/// A file that must stay the one that it was when it was first used. SQLite would make one that is not there, and goes on with
/// one that was replaced. An error has the caller begin anew, with the file that is there then.
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

/// What every connection is set to.
#[derive(Debug, Clone)]
struct Settings {
    /// How long SQLite waits for another program's lock: less than the caller's deadline.
    busy_timeout: Duration,
    /// Whether the file is a ledger.
    ours: bool,
}

impl Settings {
    /// `busy_timeout` comes first, because switching to WAL takes a lock itself. `FULL`, because with `NORMAL` a power
    /// cut can lose a commit whose message was acknowledged (SQLite, "PRAGMA synchronous").
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
