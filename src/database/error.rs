//! Errors of databases and their error classes.

use crate::domain::failure::{Class, Dependency, Outage};
use diesel::result::{ConnectionError, DatabaseErrorInformation, DatabaseErrorKind, Error as DieselError};
use std::time::Duration;

/// An error of a database. Its text contains neither a password nor a message's body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DatabaseError {
    /// No connection could be opened, or it was lost.
    #[error("cannot connect: {0}")]
    Unreachable(String),
    /// The database did not respond in time; the connection and its thread were abandoned.
    #[error("no answer within {0:?} (ledger.timeout)")]
    Deadline(Duration),
    /// The database accepts no writes at present.
    #[error("read-only: {0}")]
    ReadOnly(String),
    /// The database has no space for writes.
    #[error("no space left: {0}")]
    Full(String),
    /// The file is not a database, or is damaged.
    #[error("not a usable database: {0}")]
    Unusable(String),
    /// A pooler gives each transaction another session: settings, prepared statements and session locks are lost.
    #[error(
        "a pooler gives each transaction another session (pgbouncer: pool_mode = \
         transaction or statement): connect to PostgreSQL itself, or set pool_mode = session for this database"
    )]
    Pooled,
    /// A constraint of the schema, or the database's encoding, permanently refuses the write.
    #[error("{0}")]
    Refused(String),
    /// Another transaction held a row for longer than the lock timeout.
    #[error("{0}")]
    Locked(String),
    /// Any other error of the database: a deadlock, a busy file, a cancelled statement, …
    #[error("{0}")]
    Database(String),
    /// The code that uses the database panicked.
    #[error("internal error: {0}")]
    Panicked(String),
}

impl DatabaseError {
    /// Returns the error class.
    pub fn class(&self) -> Class {
        match self {
            Self::Unreachable(_)
            | Self::Deadline(_)
            | Self::ReadOnly(_)
            | Self::Full(_)
            | Self::Unusable(_)
            | Self::Pooled => Class::Outage,
            Self::Refused(_) => Class::Permanent,
            Self::Locked(_) => Class::Locked,
            Self::Database(_) | Self::Panicked(_) => Class::Transient,
        }
    }

    /// Returns the error as an outage of `dependency`, whatever its class: for calls that concern no message.
    pub fn into_outage(self, dependency: Dependency) -> Outage {
        Outage { dependency, reason: self.to_string() }
    }
}

impl From<DieselError> for DatabaseError {
    fn from(error: DieselError) -> Self {
        match error {
            DieselError::DatabaseError(kind, information) => from_diesel_error(kind, &*information),
            // The commit failed, and so did the rollback after it: SQLite has rolled back already.
            DieselError::RollbackErrorOnCommit { commit_error, .. } => (*commit_error).into(),
            DieselError::BrokenTransactionManager => {
                Self::Unreachable("the connection was lost in a transaction".into())
            }
            other => Self::Database(other.to_string()),
        }
    }
}

impl From<ConnectionError> for DatabaseError {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::CouldntSetupConfiguration(error) => error.into(),
            other => Self::Unreachable(one_line(&other.to_string())),
        }
    }
}

impl From<r2d2::Error> for DatabaseError {
    fn from(error: r2d2::Error) -> Self {
        Self::Unreachable(one_line(&error.to_string()))
    }
}

fn from_diesel_error(kind: DatabaseErrorKind, information: &dyn DatabaseErrorInformation) -> DatabaseError {
    let message = one_line(information.message());
    match kind {
        DatabaseErrorKind::ClosedConnection | DatabaseErrorKind::UnableToSendCommand => {
            DatabaseError::Unreachable(message)
        }
        DatabaseErrorKind::ReadOnlyTransaction => DatabaseError::ReadOnly(message),
        DatabaseErrorKind::CheckViolation
        | DatabaseErrorKind::NotNullViolation
        | DatabaseErrorKind::ForeignKeyViolation
        | DatabaseErrorKind::ExclusionViolation
        | DatabaseErrorKind::RestrictViolation
        | DatabaseErrorKind::UniqueViolation => DatabaseError::Refused(refusal_text(&message)),
        DatabaseErrorKind::SerializationFailure => DatabaseError::Database(message),
        // Diesel hides the SQLSTATE of all other errors, and may add kinds, so their text decides.
        _ => classify_text(message),
    }
}

fn refusal_text(message: &str) -> String {
    if message.contains("points_balances_range") {
        "the user's balance would leave its range of 9000000000000000000 points".into()
    } else {
        message.into()
    }
}

/// Classifies an error by its text. SQLite's texts are constants of its source; PostgreSQL's are those of an English
/// server (its SQLSTATE classes 53 and 57). The probe that follows a transient error finds an outage that is not
/// recognised here.
fn classify_text(message: String) -> DatabaseError {
    let any = |texts: &[&str]| texts.iter().any(|text| message.contains(text));
    if any(&["database or disk is full", "No space left on device", "disk I/O error"]) {
        DatabaseError::Full(message)
    } else if any(&["readonly database", "read-only transaction", "recovery is in progress"]) {
        DatabaseError::ReadOnly(message)
    } else if any(&["file is not a database", "database disk image is malformed"]) {
        DatabaseError::Unusable(message)
    } else if any(&[
        "unable to open database file",
        "no connection to the server",
        "server closed the connection",
        "terminating connection",
        "the database system is",
        "could not receive data from server",
        "SSL connection has been closed",
    ]) {
        DatabaseError::Unreachable(message)
    } else if any(&["due to lock timeout"]) {
        DatabaseError::Locked(message)
    } else if any(&["out of range", "integer overflow"]) {
        DatabaseError::Refused(message)
    // SQLSTATE 22P05 and 22021. The message quotes bytes of the text, which may be confidential.
    } else if any(&["has no equivalent in encoding", "invalid byte sequence for encoding"]) {
        DatabaseError::Refused("the database's encoding cannot represent a character of the text".into())
    } else {
        DatabaseError::Database(message)
    }
}

/// Joins the lines of libpq's messages, because a log event has one line.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_its_class() {
        let text = || "x".to_owned();
        for (error, class) in [
            (DatabaseError::Unreachable(text()), Class::Outage),
            (DatabaseError::Deadline(Duration::from_secs(1)), Class::Outage),
            (DatabaseError::ReadOnly(text()), Class::Outage),
            (DatabaseError::Full(text()), Class::Outage),
            (DatabaseError::Unusable(text()), Class::Outage),
            (DatabaseError::Pooled, Class::Outage),
            (DatabaseError::Refused(text()), Class::Permanent),
            (DatabaseError::Locked(text()), Class::Locked),
            (DatabaseError::Database(text()), Class::Transient),
            (DatabaseError::Panicked(text()), Class::Transient),
        ] {
            assert_eq!(error.class(), class, "{error:?}");
        }
    }

    #[test]
    fn errors_that_diesel_tells_apart_are_known_by_their_kind() {
        for (kind, class) in [
            (DatabaseErrorKind::ClosedConnection, Class::Outage),
            (DatabaseErrorKind::UnableToSendCommand, Class::Outage),
            (DatabaseErrorKind::ReadOnlyTransaction, Class::Outage),
            (DatabaseErrorKind::CheckViolation, Class::Permanent),
            (DatabaseErrorKind::NotNullViolation, Class::Permanent),
            (DatabaseErrorKind::ForeignKeyViolation, Class::Permanent),
            (DatabaseErrorKind::ExclusionViolation, Class::Permanent),
            (DatabaseErrorKind::RestrictViolation, Class::Permanent),
            (DatabaseErrorKind::UniqueViolation, Class::Permanent),
            (DatabaseErrorKind::SerializationFailure, Class::Transient),
            (DatabaseErrorKind::Unknown, Class::Transient),
        ] {
            let error = DieselError::DatabaseError(kind, Box::new("text".to_owned()));
            assert_eq!(DatabaseError::from(error).class(), class);
        }
        let refused = ConnectionError::BadConnection("connection refused".into());
        assert_eq!(DatabaseError::from(refused).class(), Class::Outage);
        assert_eq!(DatabaseError::from(DieselError::BrokenTransactionManager).class(), Class::Outage);
    }

    #[test]
    fn errors_that_diesel_does_not_tell_apart_are_known_by_their_text() {
        for (text, class) in [
            ("database or disk is full", Class::Outage),
            ("could not extend file \"base/5/1\": No space left on device\n", Class::Outage),
            ("attempt to write a readonly database", Class::Outage),
            ("file is not a database", Class::Outage),
            ("terminating connection due to administrator command", Class::Outage),
            ("the database system is starting up", Class::Outage),
            ("bigint out of range", Class::Permanent),
            ("integer overflow", Class::Permanent),
            ("deadlock detected", Class::Transient),
            ("could not serialize access due to concurrent update", Class::Transient),
            ("canceling statement due to lock timeout", Class::Locked),
            (
                "character with byte sequence 0xe2 0x82 0xac in encoding \"UTF8\" has no equivalent in encoding \"LATIN1\"",
                Class::Permanent,
            ),
            ("invalid byte sequence for encoding \"UTF8\": 0x00", Class::Permanent),
            ("database is locked", Class::Transient),
            ("canceling statement due to statement timeout", Class::Transient),
        ] {
            let error = DieselError::DatabaseError(DatabaseErrorKind::Unknown, Box::new(text.to_owned()));
            assert_eq!(DatabaseError::from(error).class(), class, "{text}");
        }
    }
}
