//! Opening the databases of a shard: where they lie, how RocksDB is set, what is refused.
//!
//! ```text
//! <data dir>/shards/<id>/
//!   FLOOR             what the log must not fall below, and whose it is; made first (floor.rs)
//!   FORMAT            version of everything here, for people; the floor says it with a checksum
//!   log/              RocksDB with a WAL: entries and vote             (log_store.rs)
//!   state/CURRENT     names the live directory beside it               (snapshot.rs)
//!   state/db-<n>/     RocksDB without a WAL: the replicated state
//!   snapshots/        the newest checkpoint, files and manifest        (snapshot.rs)
//!   incoming/         snapshots that are being received; emptied at every start
//!   scrub/            a checkpoint that is being read (scrub.rs); emptied at every start
//!   REPAIR            names directories that were found damaged          (damage.rs)
//!   damaged/          the last state that was moved aside                (repair.rs)
//! ```
//!
//! What a damaged file leads to:
//!
//! | damaged, missing or cut | at the next start |
//! |---|---|
//! | `FORMAT`, `state/CURRENT`, one slot of `FLOOR` | written again |
//! | `state/` | moved aside; from the newest sound snapshot that the log continues, or from a log that was never purged |
//! | a snapshot | removed; a new one is taken |
//! | `log/`, all of `FLOOR`, a state that nothing can replace, the whole shard | quarantine |

mod repair;
mod state;
#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) use self::state::{Create, number_of, point_to};
pub use self::state::{StateDb, StateHandle};
use crate::damage::{Damage, is_damage};
use crate::files;
pub use crate::floor::Identity;
use crate::floor::{self, FloorFile};
use crate::log_store::LogStore;
use crate::scrub::Scrub;
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
    /// Who opens it; another's data is refused. `None` does not ask.
    pub identity: Option<Identity>,
    /// Whether the data directory was in use before: then a missing shard is a loss and not a beginning.
    pub used: bool,
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
            identity: None,
            used: false,
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
    /// Reads everything again.
    pub scrub: Scrub,
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

/// Version of the layout above, of the log records and of the state's keys and values. Raise it when an
/// older version would misread what this one writes.
const FORMAT: &str = "agentpost shard 2";

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

    fn floor(&self) -> PathBuf {
        self.root.join("FLOOR")
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

    pub(crate) fn scrub(&self) -> PathBuf {
        self.root.join("scrub")
    }

    fn notes(&self) -> PathBuf {
        self.root.join("REPAIR")
    }

    fn damaged(&self) -> PathBuf {
        self.root.join("damaged")
    }
}

/// Whose a shard of this data directory is, if there is one that can tell.
pub fn identity(dir: &Path, shard: u32) -> Option<Identity> {
    floor::identity(&Layout::new(dir, shard).floor())
}

/// Begins a shard if there is nothing of it: whoever notes that the data directory is in use does so after this.
pub fn begin(dir: &Path, shard: u32, identity: Identity) -> Result<(), OpenError> {
    let options = Options {
        shard,
        identity: Some(identity),
        ..Options::default()
    };
    let floor = open_floor(&Layout::new(dir, shard), &options)?;
    if floor.is_new() {
        return Ok(());
    }
    Err(OpenError::quarantine(
        dir,
        "the note of its owner is missing beside a shard in use",
    ))
}

/// Opens, or creates, the databases of one shard under the data directory `dir`. Reads the whole log, and a small
/// state; repairs what can be repaired. Blocks.
pub fn open(dir: &Path, options: Options) -> Result<Stores, OpenError> {
    let layout = Layout::new(dir, options.shard);
    let floor = open_floor(&layout, &options)?;
    mark_format(&layout)?;
    let damage = Damage::new(dir, layout.notes());
    let log = LogStore::open(&layout.log(), floor, &options, damage.clone())?;
    let snapshots = Arc::new(Snapshots::open(&layout, log.purge_point())?);
    let state = repair::open_state(&layout, &options, &snapshots, log.purge_point().get(), damage.clone())?;
    let scrub = Scrub::new(&layout, state.clone(), snapshots.clone(), damage.clone())?;
    let machine = StateMachine::new(state.clone(), snapshots);
    Ok(Stores {
        log,
        machine,
        state,
        scrub,
    })
}

/// Opens the floor of a shard, or begins a shard with it if there is nothing else.
fn open_floor(layout: &Layout, options: &Options) -> Result<FloorFile, OpenError> {
    let path = layout.floor();
    let there = match files::names(&layout.root) {
        Ok(names) => names.iter().any(|name| name != "FLOOR.tmp"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(source) => return Err(OpenError::Io { path, source }),
    };
    if !path.exists() {
        // Formats before the second had no floor.
        if let Ok(found) = fs::read_to_string(layout.format())
            && found.trim_end() != FORMAT
            && found.starts_with("agentpost shard ")
        {
            return Err(OpenError::foreign(&layout.format(), found.trim_end()));
        }
        if options.used && !there {
            return Err(OpenError::quarantine(
                &layout.root,
                "it is missing from a data directory that was in use",
            ));
        }
        files::create_dir(&layout.root).map_err(OpenError::io(&layout.root))?;
    }
    FloorFile::open(&path, FORMAT, options.identity, !there)
}

/// Says the format where people look for it. The floor has said that it is this one.
fn mark_format(layout: &Layout) -> Result<(), OpenError> {
    let path = layout.format();
    let right = format!("{FORMAT}\n");
    match fs::read(&path) {
        Ok(found) if found == right.as_bytes() => return Ok(()),
        Ok(_) => tracing::warn!(path = %path.display(), "damaged, written again"),
        Err(_) => {}
    }
    files::replace_file(&path, right.as_bytes()).map_err(OpenError::io(&path))
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
