//! Files that contain secrets. They are read again while the daemon runs, because their contents are rotated.

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};
use tokio::runtime::{Builder, Handle, Runtime};

/// The largest file that is accepted, in bytes.
const MOST_BYTES: u64 = 1024 * 1024;

/// How long reading a file may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why a file cannot be used. The error contains the path of the file, and nothing of its content.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The operating system refuses to open or read the file.
    #[error("{} cannot be read: {error}", file.display())]
    Unreadable {
        /// The path of the file.
        file: PathBuf,
        /// The error of the operating system.
        error: io::Error,
    },
    /// The content of the file is invalid.
    #[error("{}: {fault}", file.display())]
    Malformed {
        /// The path of the file.
        file: PathBuf,
        /// The error, which repeats nothing of the content.
        fault: String,
    },
}

impl FileError {
    /// Creates the error for a file whose content is invalid.
    pub fn malformed(file: &Path, fault: impl std::fmt::Display) -> Self {
        Self::Malformed { file: file.to_owned(), fault: fault.to_string() }
    }
}

/// Reads a file. Blocks the thread.
pub fn read_now(file: &Path) -> Result<Vec<u8>, FileError> {
    let unreadable = |error| FileError::Unreadable { file: file.to_owned(), error };
    let mut bytes = Vec::new();
    let opened = File::open(file).map_err(unreadable)?;
    opened.take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(FileError::malformed(file, format_args!("is too large; must have at most {MOST_BYTES} bytes")));
    }
    Ok(bytes)
}

/// Reads a file as text. Blocks the thread.
pub fn read_text_now(file: &Path) -> Result<String, FileError> {
    String::from_utf8(read_now(file)?).map_err(|_| FileError::malformed(file, "is not UTF-8; must be UTF-8"))
}

/// The most concurrent reads, including those that hang.
const MOST_THREADS: usize = 4;

/// Returns the threads that read files. A file whose read hangs must not occupy the threads that resolve host names.
fn reading_threads(file: &Path) -> Result<&'static Handle, FileError> {
    static RUNTIME: OnceLock<Option<Runtime>> = OnceLock::new();
    // The runtime is never driven: only its blocking threads are used.
    let start =
        || Builder::new_current_thread().max_blocking_threads(MOST_THREADS).thread_stack_size(STACK).build().ok();
    let runtime = RUNTIME.get_or_init(start).as_ref();
    Ok(runtime.ok_or_else(|| FileError::malformed(file, "cannot start a thread to read the file"))?.handle())
}

/// The stack of a thread that reads files, in bytes.
const STACK: usize = 2 * 1024 * 1024;

/// Runs `work`, which reads files, on a thread that may block, and waits at most [`PATIENCE`] for it.
pub async fn reading<T: Send + 'static>(
    file: &Path,
    work: impl FnOnce() -> Result<T, FileError> + Send + 'static,
) -> Result<T, FileError> {
    match tokio::time::timeout(PATIENCE, reading_threads(file)?.spawn_blocking(work)).await {
        Ok(Ok(read)) => read,
        Ok(Err(panicked)) => Err(FileError::malformed(file, panicked)),
        Err(_) => Err(FileError::malformed(file, format_args!("cannot be read within {PATIENCE:?}"))),
    }
}

/// Returns whether a file contains what its configuration key requires (a private key or certificates), all of it
/// readable.
pub fn is_pem(key: &str, bytes: &[u8]) -> bool {
    if key.ends_with("key_file") {
        return PrivateKeyDer::from_pem_slice(bytes).is_ok();
    }
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    certificates.is_ok_and(|certificates| !certificates.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_file_and_nothing_of_its_content() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        let missing = read_now(&file).unwrap_err().to_string();
        assert!(missing.starts_with(&format!("{} cannot be read: No such file", file.display())), "{missing}");
        std::fs::write(&file, b"s3cret\xff").unwrap();
        let error = read_text_now(&file).unwrap_err().to_string();
        assert_eq!(error, format!("{}: is not UTF-8; must be UTF-8", file.display()));
        std::fs::write(&file, vec![b'x'; 1024 * 1024 + 1]).unwrap();
        assert!(read_now(&file).unwrap_err().to_string().ends_with("is too large; must have at most 1048576 bytes"));
    }
}
