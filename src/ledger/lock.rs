//! The lock of a SQLite ledger, which permits one writing program at a time: a lock on a file beside the database.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// The mode of the files of a ledger.
pub(super) const OWNERS_ONLY: u32 = 0o600;

/// The lock of a writing program. It is held until the value is dropped; the kernel also releases it when the process
/// ends.
#[derive(Debug)]
pub struct WriterLock {
    _file: File,
}

/// Why the lock could not be acquired.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another program writes to this ledger.
    #[error(
        "another pointsd uses the ledger {} (its lock file is {}); only one may write to a SQLite ledger: \
         stop the other one, or use PostgreSQL",
        ledger.display(), file.display()
    )]
    Held {
        /// The database file.
        ledger: PathBuf,
        /// The lock file.
        file: PathBuf,
    },
    /// The lock file cannot be created or locked.
    #[error("the lock file {} cannot be locked: {error}", file.display())]
    Io {
        /// The lock file.
        file: PathBuf,
        /// The error of the operating system.
        error: io::Error,
    },
}

impl WriterLock {
    /// Acquires the lock of the database file `ledger` without waiting.
    pub fn take(ledger: &Path) -> Result<Self, LockError> {
        // All names of a ledger (symbolic links) resolve to one lock file.
        let mut name = resolve_links(ledger).into_os_string();
        name.push(".lock");
        let file = PathBuf::from(name);
        let failed = |error| LockError::Io { file: file.clone(), error };
        // A lock file of another user can be locked, too, as long as it is readable.
        let writable = OpenOptions::new().create(true).truncate(false).write(true).mode(OWNERS_ONLY).open(&file);
        let opened = writable.or_else(|error| File::open(&file).map_err(|_| error)).map_err(failed)?;
        match opened.try_lock() {
            Ok(()) => Ok(Self { _file: opened }),
            Err(TryLockError::WouldBlock) => Err(LockError::Held { ledger: ledger.into(), file }),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }
}

/// The largest number of symbolic links to follow, as in the kernel.
const MOST_LINKS: usize = 40;

/// Returns the file to which a name resolves through symbolic links, whether or not it exists.
pub(super) fn resolve_links(name: &Path) -> PathBuf {
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
