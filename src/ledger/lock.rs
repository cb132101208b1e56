//! One writing program at a time on a SQLite ledger, held by a lock on a file beside it.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io,
    path::{Path, PathBuf},
};

/// Held as long as the value lives; the kernel releases it when the process ends, however it ends.
#[derive(Debug)]
pub struct WriterLock {
    _file: File,
}

/// Why the lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another program writes to this ledger.
    #[error(
        "another pointsd uses the ledger {} (its lock file is {}); a SQLite ledger takes one at a time: \
         stop the other one, or use PostgreSQL",
        ledger.display(), file.display()
    )]
    Held {
        /// The database.
        ledger: PathBuf,
        /// The file that is locked.
        file: PathBuf,
    },
    /// The lock file cannot be made or locked.
    #[error("the lock file {} cannot be locked: {error}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// What the system says.
        error: io::Error,
    },
}

impl WriterLock {
    /// Takes the lock of the database file at `ledger`, without waiting.
    pub fn take(ledger: &Path) -> Result<Self, LockError> {
        // By whatever name it is called, it is one ledger. One that is not there yet has no other name.
        let mut name = ledger.canonicalize().unwrap_or_else(|_| ledger.into()).into_os_string();
        name.push(".lock");
        let file = PathBuf::from(name);
        let failed = |error| LockError::Io { file: file.clone(), error };
        // One that another user has made can be locked, too, as long as it can be read.
        let writable = OpenOptions::new().create(true).truncate(false).write(true).open(&file);
        let opened = writable.or_else(|error| File::open(&file).map_err(|_| error)).map_err(failed)?;
        match opened.try_lock() {
            Ok(()) => Ok(Self { _file: opened }),
            Err(TryLockError::WouldBlock) => Err(LockError::Held { ledger: ledger.into(), file }),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_writer_is_turned_away_until_the_first_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = folder.path().join("pointsd.db");
        let first = WriterLock::take(&ledger).unwrap();
        let error = WriterLock::take(&ledger).unwrap_err();
        assert!(matches!(error, LockError::Held { .. }), "{error}");
        drop(first);
        WriterLock::take(&ledger).unwrap();
    }

    #[test]
    fn a_folder_that_is_not_there_is_told() {
        let error = WriterLock::take(Path::new("/nonexistent/pointsd.db")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/pointsd.db.lock"), "{error}");
    }
}
