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
    #[error("the lock file {} cannot be locked: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl WriterLock {
    /// Takes the lock of the database file at `ledger`, without waiting.
    pub fn take(ledger: &Path) -> Result<Self, LockError> {
        let mut name = ledger.as_os_str().to_owned();
        name.push(".lock");
        let file = PathBuf::from(name);
        let failed = |source| LockError::Io { file: file.clone(), source };
        let opened = OpenOptions::new().create(true).truncate(false).write(true).open(&file).map_err(failed)?;
        match opened.try_lock() {
            Ok(()) => Ok(Self { _file: opened }),
            Err(TryLockError::WouldBlock) => Err(LockError::Held { ledger: ledger.into(), file }),
            Err(TryLockError::Error(source)) => Err(failed(source)),
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
