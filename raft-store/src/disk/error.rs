//! Why a shard does not open.

use std::io;
use std::path::{Path, PathBuf};

use super::damage::is_damage;
use super::layout::FORMAT;

/// Why the databases do not open. The text says what an operator can do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Written by another version of this program.
    #[error(
        "{path} has format {found:?}, this version reads {FORMAT:?}; start the version that wrote it, or an \
         upgrade that names this format"
    )]
    ForeignFormat {
        /// The file that tells.
        path: PathBuf,
        /// What it says.
        found: String,
    },
    /// Another process has it open.
    #[error("{path} is in use by another process; stop that one first: {reason}")]
    InUse {
        /// The database.
        path: PathBuf,
        /// What RocksDB says.
        reason: String,
    },
    /// Bytes are missing or wrong, and nothing here can replace them. The node must not take part: it would count in
    /// majorities without what it once wrote.
    #[error("{path} is damaged: {reason}")]
    Quarantine {
        /// Where.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// The file system refused.
    #[error("{path}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl OpenError {
    /// Damage at `path`.
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
