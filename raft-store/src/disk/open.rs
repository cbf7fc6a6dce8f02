//! Opens or creates a shard: its databases, their repair, and the cases in which it refuses.
//!
//! ```text
//! <data dir>/shards/<id>/
//!   FLOOR             lower bound of the log, and its owner; created first     (floor.rs)
//!   FORMAT            version of this layout, for people; FLOOR has it with a checksum
//!   log/<n>.log       entries and vote, in segments                    (log_store.rs, segments.rs)
//!   log/LOCK          keeps a second process out
//!   state/CURRENT     the name of the live directory beside it         (snapshot.rs)
//!   state/db-<n>/     RocksDB without a WAL: the replicated state; with the file PREPARED in it, one that was never live
//!   snapshots/        the newest checkpoint, files and manifest        (snapshot.rs)
//!   incoming/         snapshots that are being received; emptied at each start
//!   scrub/            a checkpoint that is being read; emptied at each start (scrub.rs)
//!   REPAIR            the names of directories that were found damaged (damage.rs)
//!   damaged/          the last damaged state                           (repair.rs)
//! ```
//!
//! What the next start does about damage:
//!
//! | damaged, missing or cut short | at the next start |
//! |---|---|
//! | `FORMAT`, `state/CURRENT`, one slot of `FLOOR` | is written again |
//! | `state/` | is moved aside and restored from the newest good snapshot that the log continues, or from a log that was never purged |
//! | a snapshot | is removed; a new one is taken |
//! | the last group of the newest segment of `log/`, incomplete as a power cut leaves it | is removed, if `FLOOR` does not know its entries |
//! | a newest segment of `log/` whose creation did not finish | is removed; the one before is then the newest |
//! | a newest segment of `log/` that has its last record but is not cut behind it | is completed |
//! | anything else in `log/`: a record before another group, the beginning or the end of a complete segment, a missing segment | the node goes into quarantine |
//! | a record inside a complete segment of `log/` | the start does not read it; the scrubber or the first read of it finds it, and the node goes into quarantine |
//! | both slots of `FLOOR`, a state that cannot be restored, the whole shard | the node goes into quarantine |

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

/// The stores of a shard, ready for openraft.
pub struct Stores {
    /// The log.
    pub log: LogStore,
    /// Applies log entries to the state.
    pub machine: StateMachine,
    /// Reads the state.
    pub state: StateHandle,
    /// Receives the snapshots of other nodes.
    pub snapshots: Arc<Snapshots>,
    /// Reads all data again to find damage.
    pub scrub: Scrub,
}

/// The owner of a shard of this data directory, or `None` if there is no shard or its floor cannot be read.
pub fn identity(dir: &Path, shard: u32) -> Option<Identity> {
    floor::identity(&Layout::new(dir, shard).floor())
}

/// Creates the first file of a shard, `FLOOR`, if there is nothing of the shard. Call it before the file `OWNER` marks
/// the data directory as used: then an interrupted first start is not mistaken for a loss of data.
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
        "the file OWNER is missing, but the shard has been in use",
    ))
}

/// Opens or creates a shard of the data directory `dir`. It reads the newest segment of the log, reads the state if it
/// is small, and repairs what it can. Blocks.
pub fn shard(dir: &Path, options: Options) -> Result<Stores, OpenError> {
    let layout = Layout::new(dir, options.shard);
    let floor = open_floor(&layout, &options)?;
    mark_format(&layout)?;
    let damage = Damage::new(dir, layout.notes());
    let log = LogStore::open(&layout.log(), floor, &options, damage.clone())?;
    let snapshots = Snapshots::open(&layout, &options, damage.clone(), log.purge_point())?;
    let snapshots = Arc::new(snapshots);
    let state = repair::open_state(&layout, &options, &snapshots, log.purge_point().get(), damage.clone())?;
    let scrub = Scrub::new(&layout, state.clone(), snapshots.clone(), log.scrub(), damage.clone())?;
    let machine = StateMachine::new(state.clone(), snapshots.clone()).map_err(OpenError::io(layout.root()))?;
    Ok(Stores {
        log,
        machine,
        state,
        snapshots,
        scrub,
    })
}

/// Opens the floor of a shard, or creates it if there is nothing of the shard.
fn open_floor(layout: &Layout, options: &Options) -> Result<FloorFile, OpenError> {
    let path = layout.floor();
    let there = match files::names(layout.root()) {
        Ok(names) => names.iter().any(|name| name != "FLOOR.tmp"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(source) => return Err(OpenError::Io { path, source }),
    };
    if !path.exists() {
        // Format 1 had no floor.
        if let Ok(found) = fs::read_to_string(layout.format())
            && found.trim_end() != FORMAT
            && found.starts_with("agentpost shard ")
        {
            return Err(OpenError::foreign(&layout.format(), found.trim_end()));
        }
        if options.used && !there {
            return Err(OpenError::quarantine(
                layout.root(),
                "it is missing, but the data directory has been in use",
            ));
        }
        files::create_dir(layout.root()).map_err(OpenError::io(layout.root()))?;
    }
    FloorFile::open(&path, FORMAT, options.identity, !there)
}

/// Writes the file FORMAT for people. The floor has already been checked for the same format.
fn mark_format(layout: &Layout) -> Result<(), OpenError> {
    let path = layout.format();
    let right = format!("{FORMAT}\n");
    match fs::read(&path) {
        Ok(found) if found == right.as_bytes() => return Ok(()),
        Ok(_) => tracing::warn!(path = %path.display(), "FORMAT is damaged; writing it again"),
        Err(_) => {}
    }
    files::replace_file(&path, right.as_bytes()).map_err(OpenError::io(&path))
}
