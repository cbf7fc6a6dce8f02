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

#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::damage::Damage;
use super::error::OpenError;
use super::files;
use super::floor::{self, FloorFile, Identity};
use super::layout::{FORMAT, Layout};
use super::log_store::LogStore;
use super::options::Options;
use super::repair;
use super::scrub::Scrub;
use super::snapshot::Snapshots;
use super::state::StateHandle;
use super::state_machine::StateMachine;

/// The databases of a shard, ready for openraft.
pub struct Stores {
    /// Entries and vote.
    pub log: LogStore,
    /// Applies entries to the state.
    pub machine: StateMachine,
    /// Reads of the state, for everybody else.
    pub state: StateHandle,
    /// Receives the snapshots of other nodes.
    pub snapshots: Arc<Snapshots>,
    /// Reads everything again.
    pub scrub: Scrub,
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
pub fn shard(dir: &Path, options: Options) -> Result<Stores, OpenError> {
    let layout = Layout::new(dir, options.shard);
    let floor = open_floor(&layout, &options)?;
    mark_format(&layout)?;
    let damage = Damage::new(dir, layout.notes());
    let log = LogStore::open(&layout.log(), floor, &options, damage.clone())?;
    let snapshots = Arc::new(Snapshots::open(&layout, log.purge_point())?);
    let state = repair::open_state(&layout, &options, &snapshots, log.purge_point().get(), damage.clone())?;
    let scrub = Scrub::new(&layout, state.clone(), snapshots.clone(), damage.clone())?;
    let machine = StateMachine::new(state.clone(), snapshots.clone());
    Ok(Stores {
        log,
        machine,
        state,
        snapshots,
        scrub,
    })
}

/// Opens the floor of a shard, or begins a shard with it if there is nothing else.
fn open_floor(layout: &Layout, options: &Options) -> Result<FloorFile, OpenError> {
    let path = layout.floor();
    let there = match files::names(layout.root()) {
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
                layout.root(),
                "it is missing from a data directory that was in use",
            ));
        }
        files::create_dir(layout.root()).map_err(OpenError::io(layout.root()))?;
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
