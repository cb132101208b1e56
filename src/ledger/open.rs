//! From a URL to a ledger.

use super::{Ledger, postgres::PostgresLedger, sqlite::SqliteLedger};
use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// Where a ledger is.
#[derive(Clone, PartialEq, Eq)]
pub enum LedgerUrl {
    /// A database file.
    Sqlite(PathBuf),
    /// A libpq connection URI. It may have a password: it is not printed.
    Postgres(String),
}

impl fmt::Debug for LedgerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}

/// Why a text is no ledger's URL. It does not repeat the text, which may have a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LedgerUrlError {
    /// Another scheme.
    #[error("must be sqlite:FILE, postgres://… or postgresql://…")]
    Scheme,
    /// `sqlite:` without a file.
    #[error("names no file; must be sqlite:FILE, as in sqlite:pointsd.db or sqlite:///var/lib/pointsd/pointsd.db")]
    NoFile,
    /// A database that ends with the process cannot keep a credit.
    #[error("is a database in memory, which would lose every credit; must be sqlite:FILE")]
    InMemory,
    /// The file's name would be read as options.
    #[error("has a '?' in the file's name; SQLite options are not taken")]
    Options,
}

impl LedgerUrl {
    /// Reads a URL. A relative file is taken from `state_directory`, where there is one, else from the current folder.
    pub fn parse(url: &str, state_directory: Option<&Path>) -> Result<Self, LedgerUrlError> {
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            return Ok(Self::Postgres(url.to_owned()));
        }
        let file = url.strip_prefix("sqlite:").ok_or(LedgerUrlError::Scheme)?;
        let file = file.strip_prefix("//").unwrap_or(file);
        if file == ":memory:" || file.starts_with("file:") {
            return Err(LedgerUrlError::InMemory);
        }
        if file.is_empty() {
            return Err(LedgerUrlError::NoFile);
        }
        if file.contains('?') {
            return Err(LedgerUrlError::Options);
        }
        Ok(Self::Sqlite(state_directory.map_or_else(|| file.into(), |folder| folder.join(file))))
    }

    /// For logs: which database, and for a file where.
    pub fn describe(&self) -> String {
        match self {
            Self::Sqlite(file) => format!("SQLite {}", file.display()),
            Self::Postgres(_) => "PostgreSQL".to_owned(),
        }
    }

    /// Whether the schema is brought up to date at the start unless the configuration says otherwise.
    pub fn auto_migrate_default(&self) -> bool {
        matches!(self, Self::Sqlite(_))
    }
}

/// What the caller is going to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Write: a SQLite file that is not there is made.
    Write,
    /// Read, beside a daemon that writes.
    Read,
}

/// How to open a ledger.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Connections of the pool that credits: at least 1.
    pub pool_size: u32,
    /// The deadline that the caller keeps. The database is told a shorter one, so that it can answer first.
    pub timeout: Duration,
    /// What for.
    pub access: Access,
}

/// Makes a ledger. Nothing is connected yet: that the database is down is found by the first call.
pub fn open(url: &LedgerUrl, options: Options) -> Arc<dyn Ledger> {
    match url {
        LedgerUrl::Sqlite(file) => Arc::new(SqliteLedger::new(file, options)),
        LedgerUrl::Postgres(uri) => Arc::new(PostgresLedger::new(uri, options)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_a_file_or_a_server() {
        let state = Path::new("/var/lib/pointsd");
        let file = |file: &str| Ok(LedgerUrl::Sqlite(file.into()));
        for (url, folder, expected) in [
            ("sqlite:pointsd.db", None, file("pointsd.db")),
            ("sqlite:pointsd.db", Some(state), file("/var/lib/pointsd/pointsd.db")),
            ("sqlite://pointsd.db", Some(state), file("/var/lib/pointsd/pointsd.db")),
            ("sqlite:///srv/p.db", Some(state), file("/srv/p.db")),
            ("sqlite:/srv/p.db", None, file("/srv/p.db")),
            ("sqlite:", None, Err(LedgerUrlError::NoFile)),
            ("sqlite::memory:", None, Err(LedgerUrlError::InMemory)),
            ("sqlite:p.db?mode=ro", None, Err(LedgerUrlError::Options)),
            ("mysql://h/db", None, Err(LedgerUrlError::Scheme)),
            ("postgres://u:p@h/db", None, Ok(LedgerUrl::Postgres("postgres://u:p@h/db".into()))),
            ("postgresql:///db", None, Ok(LedgerUrl::Postgres("postgresql:///db".into()))),
        ] {
            assert!(LedgerUrl::parse(url, folder) == expected, "{url}");
        }
    }
}
