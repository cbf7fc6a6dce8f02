//! Why a shard does not open.

use std::io;
use std::path::{Path, PathBuf};

use super::damage::is_damage;
use super::layout::FORMAT;

/// Why a shard does not open. The text says what the operator can do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another version of this program wrote it.
    #[error(
        "{path} has format {found:?}, this version reads {FORMAT:?}; start the version that wrote it, or an \
         upgrade that names this format"
    )]
    ForeignFormat {
        /// The file that names the format.
        path: PathBuf,
        /// The format that it names.
        found: String,
    },
    /// Another process has it open.
    #[error("{path} is in use by another process; stop that one first: {reason}")]
    InUse {
        /// The database.
        path: PathBuf,
        /// RocksDB's error text.
        reason: String,
    },
    /// Bytes are missing or wrong, and nothing on this disk can replace them. The node must not take part in the
    /// cluster, because it would count in majorities without data that it once confirmed.
    #[error("{path} is damaged: {reason}")]
    Quarantine {
        /// The damaged file or directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file system reported an error.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
}

impl OpenError {
    /// The error for damage at `path`.
    pub fn quarantine(path: &Path, reason: impl ToString) -> Self {
        OpenError::Quarantine {
            path: path.to_owned(),
            reason: reason.to_string(),
        }
    }

    pub(crate) fn foreign(path: &Path, found: &str) -> Self {
        OpenError::ForeignFormat {
            path: path.to_owned(),
            found: found.to_owned(),
        }
    }

    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| OpenError::Io { path, source }
    }

    pub(crate) fn database(path: &Path) -> impl FnOnce(rocksdb::Error) -> Self {
        let path = path.to_owned();
        move |error| {
            let reason = error.to_string();
            let says = |text| reason.contains(text);
            match error.kind() {
                rocksdb::ErrorKind::IOError
                    if says("No locks available") || says("Resource temporarily unavailable") =>
                {
                    OpenError::InUse { path, reason }
                }
                rocksdb::ErrorKind::IOError if !is_damage(&error) => OpenError::Io {
                    path,
                    source: io::Error::other(reason),
                },
                _ => OpenError::Quarantine { path, reason },
            }
        }
    }
}
