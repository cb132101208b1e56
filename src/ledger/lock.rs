//! One writing program at a time on a SQLite ledger, held by a lock on a file beside it.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// The mode of the files of a ledger.
pub(super) const OWNERS_ONLY: u32 = 0o600;

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
        // By whatever name it is called, it is one ledger.
        let mut name = resolved(ledger).into_os_string();
        name.push(".lock");
        let file = PathBuf::from(name);
        let failed = |error| LockError::Io { file: file.clone(), error };
        // One that another user has made can be locked, too, as long as it can be read.
        let writable = OpenOptions::new().create(true).truncate(false).write(true).mode(OWNERS_ONLY).open(&file);
        let opened = writable.or_else(|error| File::open(&file).map_err(|_| error)).map_err(failed)?;
        match opened.try_lock() {
            Ok(()) => Ok(Self { _file: opened }),
            Err(TryLockError::WouldBlock) => Err(LockError::Held { ledger: ledger.into(), file }),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }
}

/// Symbolic links that are followed at most, as the kernel does.
const MOST_LINKS: usize = 40;

/// The file that a name leads to through symbolic links, whether it is there yet or not.
pub(super) fn resolved(name: &Path) -> PathBuf {
    let mut name = name.to_owned();
    for _ in 0..MOST_LINKS {
        let Ok(target) = std::fs::read_link(&name) else { break };
        name = name.parent().unwrap_or(Path::new("")).join(target);
    }
    let folder = name.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match (folder.canonicalize(), name.file_name()) {
        (Ok(folder), Some(file)) => folder.join(file),
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

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
    fn a_ledger_has_one_lock_by_whatever_name_it_is_called_also_before_it_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("data")).unwrap();
        std::os::unix::fs::symlink(at("data/pointsd.db"), at("link.db")).unwrap();
        std::os::unix::fs::symlink("link.db", at("another.db")).unwrap();
        std::os::unix::fs::symlink(at("data"), at("folder")).unwrap();
        for name in ["link.db", "another.db", "folder/pointsd.db", "folder/../data/pointsd.db"] {
            let first = WriterLock::take(&at("data/pointsd.db")).unwrap();
            assert!(matches!(WriterLock::take(&at(name)), Err(LockError::Held { .. })), "{name}");
            drop(first);
        }
        let mode = std::fs::metadata(at("data/pointsd.db.lock")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_folder_that_is_not_there_is_told() {
        let error = WriterLock::take(Path::new("/nonexistent/pointsd.db")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/pointsd.db.lock"), "{error}");
    }
}
