//! Finds the live state at a start, checks it, and replaces it if it is damaged.
//!
//! The state is derived data: the log applied to an empty database. It is kept only because the log is purged. So a
//! damaged state may be replaced by any state that the log continues without a hole: a snapshot that ends at or after
//! the purge point, or an empty database if the log was never purged. openraft applies the later entries again. Entries
//! that the old state had applied beyond this node's log are committed, and come from the other nodes.
//!
//! A database counts as damaged if it does not open, if reading all its blocks fails (small databases are read here,
//! large ones while the node runs), if it ends before the log begins, or if damage was recorded while the node ran. A
//! snapshot shares files with the state by hard links, so one bad block may be in both, and its checksums are compared
//! before it is used. Conversely, the snapshot manifest also checksums bytes that RocksDB never reads, such as the
//! properties of a table, so a state sharing a bad file with it is treated as damaged too.
//!
//! The order of the steps makes a crash harmless: the new database is built and opened; `CURRENT` names it; the old one
//! is moved to `damaged/`, replacing the one before; the record of the damage is removed.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use super::damage::{Damage, noted};
use super::error::OpenError;
use super::files;
use super::layout::Layout;
use super::options::Options;
use super::progress::Step;
use super::read_all::Pace;
use super::snapshot::install::{self, is_prepared};
use super::snapshot::{SnapshotData, Snapshots};
use super::state::{Create, StateDb, StateHandle, number_of, point_to};
use super::types::LogId;

/// A state or snapshot of up to this many bytes is read completely before it is used. Larger ones are read while the
/// node runs.
const READ_FIRST_BYTES: u64 = 64 << 20;

/// Opens the live state of a shard whose log begins after `purged`.
pub(super) fn open_state(
    layout: &Layout,
    options: &Options,
    snapshots: &Snapshots,
    purged: Option<LogId>,
    damage: Damage,
) -> Result<StateHandle, OpenError> {
    let dir = layout.state();
    files::create_dir(&dir).map_err(OpenError::io(&dir))?;
    let notes = noted(&layout.notes()).map_err(OpenError::io(&layout.notes()))?;
    options.progress.begin(Step::Snapshot);
    let bad_files = check_snapshot(snapshots, &notes)?;
    options.progress.begin(Step::State);
    let opening = Opening {
        layout,
        options,
        snapshots,
        purged: purged.map(|purged| purged.index),
        notes,
        bad_files,
        damage: damage.clone(),
    };
    let (db, name, damaged) = opening.run()?;
    if read_pointer(layout).as_deref() != Some(name.as_str()) {
        point_to(layout, &name).map_err(OpenError::io(&dir))?;
    }
    if let Some(damaged) = damaged {
        keep_one(layout, &damaged).map_err(OpenError::io(&dir))?;
    }
    remove_all_but(&dir, &name).map_err(OpenError::io(&dir))?;
    forget_notes(layout)?;
    Ok(StateHandle::new(layout, db, damage))
}

/// Removes the newest snapshot if damage was recorded for it, or if it is small enough to be read here and does not
/// match its manifest. Returns the inode numbers of its damaged files.
fn check_snapshot(snapshots: &Snapshots, notes: &BTreeSet<String>) -> Result<BTreeSet<u64>, OpenError> {
    let Some(newest) = snapshots.kept() else {
        return Ok(BTreeSet::new());
    };
    let wrong = if notes.contains(&newest.name()) {
        Some("it was found damaged".to_owned())
    } else if newest.bytes() <= READ_FIRST_BYTES {
        check(&newest)?
    } else {
        None
    };
    let Some(reason) = wrong else {
        return Ok(BTreeSet::new());
    };
    tracing::warn!(
        snapshot = newest.name(),
        reason,
        "removing a damaged snapshot; a new one will be taken"
    );
    let bad_files = newest.damaged_tables().map_err(OpenError::io(newest.dir()))?;
    snapshots.discard();
    Ok(bad_files)
}

/// Compares a snapshot with its manifest. Returns what is wrong, or `None`.
fn check(data: &SnapshotData) -> Result<Option<String>, OpenError> {
    let never = AtomicBool::new(false);
    match data.verify(&mut Pace::free(&never)) {
        Ok(()) => Ok(None),
        Err(error) if matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::NotFound) => {
            Ok(Some(error.to_string()))
        }
        Err(source) => Err(OpenError::Io {
            path: data.dir().to_owned(),
            source,
        }),
    }
}

struct Opening<'a> {
    layout: &'a Layout,
    options: &'a Options,
    snapshots: &'a Snapshots,
    purged: Option<u64>,
    notes: BTreeSet<String>,
    /// The inode numbers of files that must not be used.
    bad_files: BTreeSet<u64>,
    damage: Damage,
}

impl Opening<'_> {
    /// The state, its name, and the name of the damaged state that it replaces.
    fn run(&self) -> Result<(StateDb, String, Option<String>), OpenError> {
        let dir = self.layout.state();
        let candidates = candidates(self.layout).map_err(OpenError::io(&dir))?;
        let mut damaged: Option<(String, OpenError)> = None;
        for name in candidates {
            match self.try_open(&name) {
                Ok(db) => return Ok((db, name, damaged.map(|(name, _)| name))),
                Err(error @ OpenError::Quarantine { .. }) => {
                    tracing::warn!(%error, "a state directory is damaged; trying another one");
                    damaged.get_or_insert((name, error));
                }
                Err(error) => return Err(error),
            }
        }
        let (name, error) = damaged.unzip();
        let (db, fresh) = self.replace(error)?;
        if let Some(name) = &name {
            tracing::warn!(
                damaged = name,
                state = fresh,
                "replaced the damaged state; it was moved to damaged/"
            );
        }
        Ok((db, fresh, name))
    }

    fn try_open(&self, name: &str) -> Result<StateDb, OpenError> {
        let dir = self.layout.state().join(name);
        if self.notes.contains(name) {
            return Err(OpenError::quarantine(&dir, "it was found damaged while the node ran"));
        }
        if shares(&dir, &self.bad_files).map_err(OpenError::io(&dir))? {
            return Err(OpenError::quarantine(&dir, "it shares a damaged file with a snapshot"));
        }
        // Measured before it is opened, because RocksDB then removes files that it does not need.
        let size = size_of(&dir).map_err(OpenError::io(&dir))?;
        let db = StateDb::open_dir(&dir, self.options, Create::Never, self.damage.clone())?;
        if size <= READ_FIRST_BYTES {
            let never = AtomicBool::new(false);
            db.read_all(&mut Pace::free(&never))
                .map_err(OpenError::database(&dir))?;
        }
        let applied = db.applied().map_err(|fatal| OpenError::quarantine(&dir, fatal))?;
        // openraft will install a snapshot that is newer than the state.
        let reached = applied.last.map(|last| last.index).max(self.snapshots.newest_index());
        if reached < self.purged {
            let reason = format!("it ends at {reached:?}, but the log begins after {:?}", self.purged);
            return Err(OpenError::quarantine(&dir, reason));
        }
        Ok(db)
    }

    /// A new state from the newest snapshot, or an empty one if the log was never purged.
    fn replace(&self, error: Option<OpenError>) -> Result<(StateDb, String), OpenError> {
        self.options.progress.begin(Step::Restore);
        let dir = self.layout.state();
        let name = install::next_name(self.layout).map_err(OpenError::io(&dir))?;
        if let Some(data) = self.snapshots.newest() {
            match check(&data)? {
                None => {
                    let db = install::build(self.layout, &data, &name)
                        .and_then(|()| install::open(self.layout, self.options, &data, &name, self.damage.clone()))
                        .map_err(OpenError::io(&dir))?;
                    tracing::warn!(
                        snapshot = data.name(),
                        state = name,
                        "restored the state from a snapshot"
                    );
                    return Ok((db, name));
                }
                Some(reason) => {
                    tracing::warn!(
                        snapshot = data.name(),
                        reason,
                        "removing a damaged snapshot; a new one will be taken"
                    );
                    self.snapshots.discard();
                }
            }
        }
        if self.purged.is_none() {
            let db = StateDb::open_dir(&dir.join(&name), self.options, Create::IfMissing, self.damage.clone())?;
            return Ok((db, name));
        }
        let missing = || OpenError::quarantine(&dir, "there is no database in it and no snapshot to restore");
        Err(error.unwrap_or_else(missing))
    }
}

/// The names of the databases to try: the one that `CURRENT` names, then the others that were live once, newest first.
fn candidates(layout: &Layout) -> io::Result<Vec<String>> {
    let mut names = files::names(&layout.state())?;
    names.retain(|name| number_of(name).is_some() && !is_prepared(&layout.state().join(name)));
    names.sort_by_key(|name| std::cmp::Reverse(number_of(name)));
    if let Some(live) = read_pointer(layout)
        && let Some(at) = names.iter().position(|name| *name == live)
    {
        names[..=at].rotate_right(1);
    }
    Ok(names)
}

/// The name in `CURRENT`, or `None` if it cannot be read.
fn read_pointer(layout: &Layout) -> Option<String> {
    let text = fs::read_to_string(layout.pointer()).ok()?;
    let name = text.strip_suffix('\n')?;
    number_of(name)?;
    Some(name.to_owned())
}

/// Whether the directory contains a file with one of these inode numbers.
fn shares(dir: &Path, inodes: &BTreeSet<u64>) -> io::Result<bool> {
    for item in fs::read_dir(dir)? {
        if inodes.contains(&item?.metadata()?.ino()) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn size_of(dir: &Path) -> io::Result<u64> {
    let mut size = 0;
    for item in fs::read_dir(dir)? {
        size += item?.metadata()?.len();
    }
    Ok(size)
}

/// Moves a damaged database to `damaged/`, replacing the one before.
fn keep_one(layout: &Layout, name: &str) -> io::Result<()> {
    let aside = layout.damaged();
    files::remove_dir(&aside)?;
    fs::rename(layout.state().join(name), &aside)?;
    files::sync_dir(layout.root())?;
    files::sync_dir(&layout.state())
}

/// Removes all directories beside the live one.
fn remove_all_but(state: &Path, live: &str) -> io::Result<()> {
    for name in files::names(state)? {
        let path = state.join(&name);
        if name != live && path.is_dir() {
            files::remove_dir(&path)?;
        }
    }
    Ok(())
}

fn forget_notes(layout: &Layout) -> Result<(), OpenError> {
    match fs::remove_file(layout.notes()) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(OpenError::Io {
            path: layout.notes(),
            source: error,
        }),
        _ => Ok(()),
    }
}
