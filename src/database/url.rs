//! URLs of databases.

use crate::files::{self, FileError};
use std::{
    fmt,
    ops::Deref,
    path::{Path, PathBuf},
};

/// The URL of a database.
#[derive(Clone, PartialEq, Eq)]
pub enum DatabaseUrl {
    /// A database file.
    Sqlite(PathBuf),
    /// A PostgreSQL server.
    Postgres(PostgresUri),
}

/// A libpq connection URI. It may contain a password, so it is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresUri {
    text: String,
    /// The file that contains the URI. It is read for each new connection, because the password may have changed.
    file: Option<PathBuf>,
}

impl PostgresUri {
    /// Returns the current URI. Blocks the thread if the URI is in a file.
    pub fn current(&self) -> Result<String, FileError> {
        let Some(file) = &self.file else { return Ok(self.text.clone()) };
        let text = files::read_text_now(file)?;
        match DatabaseUrl::parse(text.trim(), None) {
            Ok(DatabaseUrl::Postgres(uri)) if database_identity(&uri.text) == database_identity(&self.text) => {
                Ok(uri.text)
            }
            Ok(DatabaseUrl::Postgres(_)) => {
                Err(FileError::malformed(file, "has another server or database than at the start; restart the daemon"))
            }
            Ok(DatabaseUrl::Sqlite(_)) => Err(FileError::malformed(file, "is no longer a PostgreSQL URL; must be one")),
            Err(error) => Err(FileError::malformed(file, error)),
        }
    }
}

/// Returns the database that a connection URI identifies: the whole URI without the credentials. A part of a running
/// daemon must not change to another database.
fn database_identity(uri: &str) -> (String, Vec<&str>) {
    const CREDENTIALS: [&str; 8] =
        ["user", "password", "passfile", "sslpassword", "sslcert", "sslkey", "sslrootcert", "sslcrl"];
    let (_, rest) = uri.split_once("://").unwrap_or(("", uri));
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let place = place.rsplit_once('@').map_or(place, |(_, place)| place);
    let name = |parameter: &&str| parameter.split('=').next().unwrap_or_default().to_owned();
    let mut parameters: Vec<&str> = query.split('&').filter(|parameter| !parameter.is_empty()).collect();
    parameters.retain(|parameter| !CREDENTIALS.contains(&name(parameter).as_str()));
    parameters.sort_unstable();
    (place.to_owned(), parameters)
}

impl From<&str> for PostgresUri {
    fn from(text: &str) -> Self {
        Self { text: text.to_owned(), file: None }
    }
}

/// The URI as it was when the program started.
impl Deref for PostgresUri {
    type Target = str;

    fn deref(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}

/// Why a text is not a database URL. The error does not repeat the text, which may contain a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DatabaseUrlError {
    /// The URL has another scheme.
    #[error("must be sqlite:FILE, postgres://… or postgresql://…")]
    Scheme,
    /// The URL is `sqlite:` without a file.
    #[error("has no file; must be sqlite:FILE, as in sqlite:pointsd.db or sqlite:///var/lib/pointsd/pointsd.db")]
    NoFile,
    /// The database is in memory, so it would lose all credits when the process ends.
    #[error("is a database in memory, which would lose every credit; must be sqlite:FILE")]
    InMemory,
    /// The URL contains whitespace, control characters or several lines.
    #[error("has whitespace or control characters; must be one URL on one line, special characters percent-encoded")]
    Blank,
    /// The URL is ambiguous: libpq would interpret it differently, and quote it in an error.
    #[error("{0}; must be as in postgres://user:password@host:5432/database, special characters percent-encoded")]
    Postgres(&'static str),
    /// A part of the file's name would be read as options.
    #[error("has a '?' in the file name; must have no SQLite options")]
    Options,
}

impl DatabaseUrl {
    /// Parses a URL. A relative file is resolved against `state_directory` if there is one, otherwise against the
    /// current directory.
    pub fn parse(url: &str, state_directory: Option<&Path>) -> Result<Self, DatabaseUrlError> {
        if url.contains(char::is_control) {
            return Err(DatabaseUrlError::Blank);
        }
        if let Some(rest) = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://")) {
            check_postgres(rest)?;
            return Ok(Self::Postgres(url.into()));
        }
        let file = url.strip_prefix("sqlite:").ok_or(DatabaseUrlError::Scheme)?;
        let file = file.strip_prefix("//").unwrap_or(file);
        if file == ":memory:" || file.starts_with("file:") {
            return Err(DatabaseUrlError::InMemory);
        }
        if file.is_empty() {
            return Err(DatabaseUrlError::NoFile);
        }
        if file.contains('?') {
            return Err(DatabaseUrlError::Options);
        }
        Ok(Self::Sqlite(state_directory.map_or_else(|| file.into(), |folder| folder.join(file))))
    }

    /// Returns the same database with its URL in a file. For SQLite, the path that was read at the start is used.
    #[must_use]
    pub fn from_file(self, file: Option<PathBuf>) -> Self {
        match self {
            Self::Sqlite(path) => Self::Sqlite(path),
            Self::Postgres(uri) => Self::Postgres(PostgresUri { file, ..uri }),
        }
    }

    /// Returns a description for logs: the kind of database, and the path of a database file.
    pub fn describe(&self) -> String {
        match self {
            Self::Sqlite(file) => format!("SQLite {}", file.display()),
            Self::Postgres(_) => "PostgreSQL".to_owned(),
        }
    }

    /// Returns whether the schema is migrated at the start by default.
    pub fn auto_migrate_default(&self) -> bool {
        matches!(self, Self::Sqlite(_))
    }
}

/// Checks the form of libpq's "Connection URIs", after the scheme. libpq would find the same errors later, and would
/// repeat the password when it reports them.
fn check_postgres(rest: &str) -> Result<(), DatabaseUrlError> {
    let wrong = |what| Err(DatabaseUrlError::Postgres(what));
    if rest.contains(char::is_whitespace) {
        return Err(DatabaseUrlError::Blank);
    }
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = place.split_once('/').unwrap_or((place, ""));
    if database.contains(['@', '/', '#', ':']) || query.contains(['@', '#', '?']) || authority.contains('#') {
        return wrong("has one of @ / : # ? in the wrong place");
    }
    let (user, hosts) = authority.split_once('@').unwrap_or(("", authority));
    if hosts.contains('@') || user.matches(':').count() > 1 {
        return wrong("has too many @ or : before the host");
    }
    let port_of = |host: &str| {
        let after_address = host.rsplit_once(']').map_or(host, |(_, after)| after).to_owned();
        after_address.rsplit_once(':').map(|(_, port)| port.to_owned())
    };
    for host in hosts.split(',') {
        if host.starts_with('[') != host.contains(']') {
            return wrong("has a [ or ] that does not enclose an IPv6 address");
        }
        if port_of(host).is_some_and(|port| !port.is_empty() && port.parse::<u16>().is_err()) {
            return wrong("has a port that is not a number (is the @ before the host missing?)");
        }
    }
    if query
        .split('&')
        .any(|parameter| !parameter.is_empty() && !parameter.split_once('=').is_some_and(|(name, _)| is_name(name)))
    {
        return wrong("has a parameter that is not name=value");
    }
    let hex = |text: &str| {
        text.len() >= 2 && text.as_bytes()[..2].iter().all(u8::is_ascii_hexdigit) && !text.starts_with("00")
    };
    if rest.split('%').skip(1).any(|after| !hex(after)) {
        return wrong("has a % that is not followed by two hexadecimal digits");
    }
    Ok(())
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_that_libpq_would_quote_in_an_error_are_refused_without_quoting_them() {
        for url in [
            "postgres://u:s3cret%zz@h/d",
            "postgres://u:s3cret%00@h/d",
            "postgres://u:p@s3cret@h/d",
            "postgres://h:s3cret/d",
            "postgres://u:p/s3cret@h/d",
            "postgres://u:p?s3cret@h/d",
            "postgres://u:p#s3cret@h/d",
            "postgres://u:s3cret@[h/d",
            "postgres://u:s3:cret@h/d",
            "postgres://u:s3cret@h/d?password",
            "postgres://u:p@h/d?pass%77ord=s3cret",
            "postgres://u:s3cret@h/d\npostgres://u:s3cret@i/d",
            "postgres://u:s3 cret@h/d",
        ] {
            let error = DatabaseUrl::parse(url, None).expect_err(url);
            assert!(!error.to_string().contains("s3"), "{error}");
        }
    }

    #[test]
    fn credentials_may_change_and_the_database_may_not() {
        let at_start = "postgres://u:p@a:5432,b/points?sslmode=require&password=x";
        for (now, is_same) in [
            ("postgresql://other:secret@a:5432,b/points?sslmode=require", true),
            ("postgres://u:p@a:5432,b/points?password=y&sslmode=require", true),
            ("postgres://u:p@a:5433,b/points?sslmode=require", false),
            ("postgres://u:p@a:5432,b/other?sslmode=require", false),
            ("postgres://u:p@a:5432,b/points?sslmode=require&options=-csearch_path%3Dx", false),
        ] {
            assert_eq!(database_identity(at_start) == database_identity(now), is_same, "{now}");
        }
    }

    #[test]
    fn urls_name_a_file_or_a_server() {
        let state = Path::new("/var/lib/pointsd");
        let file = |file: &str| Ok(DatabaseUrl::Sqlite(file.into()));
        for (url, folder, expected) in [
            ("sqlite:pointsd.db", None, file("pointsd.db")),
            ("sqlite:pointsd.db", Some(state), file("/var/lib/pointsd/pointsd.db")),
            ("sqlite://pointsd.db", Some(state), file("/var/lib/pointsd/pointsd.db")),
            ("sqlite:///srv/p.db", Some(state), file("/srv/p.db")),
            ("sqlite:/srv/p.db", None, file("/srv/p.db")),
            ("sqlite:", None, Err(DatabaseUrlError::NoFile)),
            ("sqlite::memory:", None, Err(DatabaseUrlError::InMemory)),
            ("sqlite:p.db?mode=ro", None, Err(DatabaseUrlError::Options)),
            ("mysql://h/db", None, Err(DatabaseUrlError::Scheme)),
            (
                "postgres://u@[::1]:5432,b:5433/db?sslmode=require&host=x",
                None,
                Ok(DatabaseUrl::Postgres("postgres://u@[::1]:5432,b:5433/db?sslmode=require&host=x".into())),
            ),
            ("postgres://u:p@h/db", None, Ok(DatabaseUrl::Postgres("postgres://u:p@h/db".into()))),
            ("postgresql:///db", None, Ok(DatabaseUrl::Postgres("postgresql:///db".into()))),
        ] {
            assert!(DatabaseUrl::parse(url, folder) == expected, "{url}");
        }
    }
}
