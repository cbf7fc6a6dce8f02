//! Opening the databases of a shard: where they lie, how RocksDB is set, what is refused.
//!
//! ```text
//! <data dir>/shards/<id>/
//!   FORMAT            version of everything below
//!   log/              RocksDB with a WAL: entries and vote             (log_store.rs)
//!   state/CURRENT     names the live directory beside it               (snapshot.rs)
//!   state/db-<n>/     RocksDB without a WAL: the replicated state
//!   snapshots/        the newest checkpoint, files and manifest        (snapshot.rs)
//!   incoming/         snapshots that are being received; emptied at every start
//! ```

mod state;
#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) use self::state::{Create, number_of, point_to};
pub use self::state::{StateDb, StateHandle};
use crate::files;
use crate::log_store::LogStore;
use crate::snapshot::Snapshots;
use crate::state_machine::StateMachine;

/// What may be set. The defaults fit a node with a gigabyte of memory to spare.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which shard of the data directory.
    pub shard: u32,
    /// Blocks, indexes and filters of the state that are kept in memory.
    pub state_cache_bytes: usize,
    /// Writes to the state that gather in memory before RocksDB flushes them by itself. It bounds what a
    /// restart applies again; four such buffers may exist at once.
    pub state_write_buffer_bytes: usize,
    /// The newest log entries that are kept in memory for replication and apply.
    pub log_tail_bytes: usize,
    /// Where the log of an empty shard may begin.
    pub log_start: LogStart,
}

/// Where the log of an empty shard may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogStart {
    /// At index 0, as Raft has it. Anything else would be a hole.
    Zero,
    /// Anywhere: openraft's conformance suite begins some of its logs in the middle.
    Anywhere,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            shard: 0,
            state_cache_bytes: 128 << 20,
            state_write_buffer_bytes: 64 << 20,
            log_tail_bytes: 64 << 20,
            log_start: LogStart::Zero,
        }
    }
}

/// The databases of a shard, ready for openraft.
pub struct Stores {
    /// Entries and vote.
    pub log: LogStore,
    /// Applies entries to the state.
    pub machine: StateMachine,
    /// Reads of the state, for everybody else.
    pub state: StateHandle,
}

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
    /// Bytes are missing or wrong. Nothing was repaired.
    #[error(
        "{path} is damaged: {reason}. Do not start this node on parts of its data. If the other nodes have a \
         majority, move its data directory away and add it again, empty and under a new node id; otherwise \
         restore the whole data directory from a backup"
    )]
    Damaged {
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
    pub(crate) fn damaged(path: &Path, reason: impl ToString) -> Self {
        OpenError::Damaged {
            path: path.to_owned(),
            reason: reason.to_string(),
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
                rocksdb::ErrorKind::IOError if !says("No such file") => OpenError::Io {
                    path,
                    source: io::Error::other(reason),
                },
                _ => OpenError::Damaged { path, reason },
            }
        }
    }
}

/// Version of the layout above, of the log records and of the state's keys and values. Raise it when an
/// older version would misread what this one writes.
const FORMAT: &str = "agentpost shard 1";

/// Where the parts of a shard lie.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    root: PathBuf,
}

impl Layout {
    pub(crate) fn new(data_dir: &Path, shard: u32) -> Self {
        Layout {
            root: data_dir.join("shards").join(shard.to_string()),
        }
    }

    fn format(&self) -> PathBuf {
        self.root.join("FORMAT")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.root.join("log")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.root.join("state")
    }

    /// The file that names the live state directory.
    pub(crate) fn pointer(&self) -> PathBuf {
        self.state().join("CURRENT")
    }

    pub(crate) fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    pub(crate) fn incoming(&self) -> PathBuf {
        self.root.join("incoming")
    }
}

/// Opens, or creates, the databases of one shard under the data directory `dir`. Blocks.
pub fn open(dir: &Path, options: Options) -> Result<Stores, OpenError> {
    let layout = Layout::new(dir, options.shard);
    check_format(&layout)?;
    let state = StateHandle::open(&layout, &options)?;
    let log = LogStore::open(&layout.log(), &options)?;
    let snapshots = Snapshots::open(&layout, log.purge_point())?;
    check_state_reaches_log(&layout, &state, &log, &snapshots)?;
    let machine = StateMachine::new(state.clone(), Arc::new(snapshots));
    Ok(Stores { log, machine, state })
}

/// Refuses a directory of another version; marks a new one.
fn check_format(layout: &Layout) -> Result<(), OpenError> {
    let path = layout.format();
    match fs::read_to_string(&path) {
        Ok(found) if found.trim_end() == FORMAT => Ok(()),
        Ok(found) => Err(OpenError::ForeignFormat {
            path,
            found: found.trim_end().to_owned(),
        }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            if layout.log().exists() || layout.pointer().exists() {
                return Err(OpenError::damaged(&path, "it is missing beside databases"));
            }
            files::create_dir(&layout.root)
                .and_then(|()| files::replace_file(&path, format!("{FORMAT}\n").as_bytes()))
                .map_err(OpenError::io(&path))
        }
        Err(e) if e.kind() == io::ErrorKind::InvalidData => Err(OpenError::damaged(&path, "it is not text")),
        Err(source) => Err(OpenError::Io { path, source }),
    }
}

/// Entries below the log's purge point exist only as state: a state that ends before it has a hole.
fn check_state_reaches_log(
    layout: &Layout,
    state: &StateHandle,
    log: &LogStore,
    snapshots: &Snapshots,
) -> Result<(), OpenError> {
    let Some(purged) = log.purge_point().get() else {
        return Ok(());
    };
    let db = state.current();
    let applied = db.applied().map_err(|fatal| OpenError::damaged(db.dir(), fatal))?;
    let reached = applied.last.map(|last| last.index).max(snapshots.newest_index());
    if reached >= Some(purged.index) {
        return Ok(());
    }
    let reason = format!(
        "the log begins behind entry {}, but state and snapshot end at {reached:?}",
        purged.index
    );
    Err(OpenError::damaged(&layout.state(), reason))
}

/// What both databases share.
pub(crate) fn common_options() -> rocksdb::Options {
    // After a failed flush RocksDB would try again by itself, and a flush that failed once may succeed the second time
    // without its bytes. The binding names this option in text only.
    let mut db = rocksdb::Options::default()
        .get_options_from_string("max_bgerror_resume_count=0")
        .unwrap_or_else(|error| unreachable!("RocksDB knows this option: {error}"));
    db.set_paranoid_checks(true);
    db.set_max_open_files(1024);
    db.set_keep_log_file_num(4);
    db.set_max_log_file_size(4 << 20);
    db.set_stats_dump_period_sec(0);
    // Whoever drops an iterator does not wait for files to be unlinked.
    db.set_avoid_unnecessary_blocking_io(true);
    db
}
