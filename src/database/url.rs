//! Where a database is.

use crate::files::{self, FileError};
use std::{
    fmt,
    ops::Deref,
    path::{Path, PathBuf},
};

/// Where a database is.
#[derive(Clone, PartialEq, Eq)]
pub enum DatabaseUrl {
    /// A database file.
    Sqlite(PathBuf),
    /// A PostgreSQL server.
    Postgres(PostgresUri),
}

/// A libpq connection URI. It may have a password: it is not printed.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresUri {
    text: String,
    /// The file that holds it: read again for each connection, because the password may be another one by then.
    file: Option<PathBuf>,
}

impl PostgresUri {
    /// As it is now. Blocks the thread where it is in a file.
    pub fn current(&self) -> Result<String, FileError> {
        let Some(file) = &self.file else { return Ok(self.text.clone()) };
        let text = files::read_text_now(file)?;
        match DatabaseUrl::parse(text.trim(), None) {
            Ok(DatabaseUrl::Postgres(uri)) if place(&uri.text) == place(&self.text) => Ok(uri.text),
            Ok(DatabaseUrl::Postgres(_)) => Err(FileError::malformed(
                file,
                "names another server or database than at the start; restart the daemon",
            )),
            Ok(DatabaseUrl::Sqlite(_)) => Err(FileError::malformed(file, "is no longer a PostgreSQL URL")),
            Err(error) => Err(FileError::malformed(file, error)),
        }
    }
}

/// Which database a connection URI names: all of it but the credentials. A part of a running program must not move to
/// another one.
fn place(uri: &str) -> (String, Vec<&str>) {
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

/// As it was when the program began.
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

/// Why a text is no database's URL. It does not repeat the text, which may have a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DatabaseUrlError {
    /// Another scheme.
    #[error("must be sqlite:FILE, postgres://… or postgresql://…")]
    Scheme,
    /// `sqlite:` without a file.
    #[error("names no file; must be sqlite:FILE, as in sqlite:pointsd.db or sqlite:///var/lib/pointsd/pointsd.db")]
    NoFile,
    /// A database that ends with the process cannot keep a credit.
    #[error("is a database in memory, which would lose every credit; must be sqlite:FILE")]
    InMemory,
    /// Blanks, control characters, several lines.
    #[error("has blanks or control characters in it; must be one URL in one line, special characters percent-encoded")]
    Blank,
    /// libpq would take it for something else, and quote it in an error.
    #[error("{0}; must be as in postgres://user:password@host:5432/database, special characters percent-encoded")]
    Postgres(&'static str),
    /// The file's name would be read as options.
    #[error("has a '?' in the file's name; SQLite options are not taken")]
    Options,
}

impl DatabaseUrl {
    /// Reads a URL. A relative file is taken from `state_directory`, where there is one, else from the current folder.
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

    /// The same database, whose URL is in a file. A database file stays where it was at the start.
    #[must_use]
    pub fn from_file(self, file: Option<PathBuf>) -> Self {
        match self {
            Self::Sqlite(path) => Self::Sqlite(path),
            Self::Postgres(uri) => Self::Postgres(PostgresUri { file, ..uri }),
        }
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

/// The form of libpq's "Connection URIs", after the scheme. libpq would find the same faults later, and repeat the
/// password in telling them.
fn check_postgres(rest: &str) -> Result<(), DatabaseUrlError> {
    let wrong = |what| Err(DatabaseUrlError::Postgres(what));
    if rest.contains(char::is_whitespace) {
        return Err(DatabaseUrlError::Blank);
    }
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = place.split_once('/').unwrap_or((place, ""));
    if database.contains(['@', '/', '#', ':']) || query.contains(['@', '#', '?']) || authority.contains('#') {
        return wrong("has one of @ / : # ? in a wrong place");
    }
    let (user, hosts) = authority.split_once('@').unwrap_or(("", authority));
    if hosts.contains('@') || user.matches(':').count() > 1 {
        return wrong("has an @ or a : too many before the host");
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
            return wrong("has a port that is no number (is there no @ before the host?)");
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
            assert_eq!(place(at_start) == place(now), is_same, "{now}");
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
