//! Replacing the state by a snapshot. `snapshot.rs` describes the steps and what a crash between them leaves. Each step
//! is a function, so that a test can stop after it.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::manifest::{self, invalid};
use super::{Checked, SnapshotData, Snapshots};
use crate::disk::damage::Damage;
use crate::disk::files;
use crate::disk::layout::Layout;
use crate::disk::options::Options;
use crate::disk::state::{Create, StateDb, StateHandle, number_of, point_to};

/// The file that marks a state directory which was prepared and never live.
const PREPARED: &str = "PREPARED";

/// Builds states from snapshots, beside the live one.
pub(super) struct States {
    pub(super) layout: Layout,
    pub(super) options: Options,
    pub(super) damage: Damage,
    /// One is built at a time, because they are built under the same name.
    pub(super) turn: Mutex<()>,
}

/// The state that was prepared from a snapshot. It is removed when this is dropped, unless it is taken.
#[derive(Clone, Default)]
pub(super) struct Prepared(Arc<Mutex<Option<StateDb>>>);

impl Prepared {
    pub(super) fn new(db: StateDb) -> Self {
        Prepared(Arc::new(Mutex::new(Some(db))))
    }

    pub(super) fn take(&self) -> Option<StateDb> {
        self.0.lock().take()
    }
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Prepared")
    }
}

impl States {
    /// Builds the state of a snapshot and opens it. It is removed when it is dropped, unless it is spared. Blocks.
    pub(super) fn prepare(&self, data: &SnapshotData) -> io::Result<StateDb> {
        let _turn = self.turn.lock();
        let name = next_name(&self.layout)?;
        let staged = stage(&self.layout, data)?;
        File::create_new(staged.join(PREPARED))?.sync_all()?;
        publish(&self.layout, &staged, &name)?;
        let opened = open(&self.layout, &self.options, data, &name, self.damage.clone());
        match &opened {
            Ok(db) => db.doom(),
            Err(_) => files::remove_dir(&self.layout.state().join(&name))?,
        }
        opened
    }
}

/// Replaces the state by a snapshot. If the state was prepared, this does not read, link or open its files, and it never
/// waits until the files of the old one are removed. Blocks.
pub(crate) fn install(state: &StateHandle, snapshots: &Snapshots, data: SnapshotData) -> io::Result<()> {
    let prepared = data.prepared.take();
    if data.checked == Checked::Length {
        let verified = manifest::verify(data.dir(), data.meta(), |_| true);
        verified.inspect_err(|error| state.damage().directory(data.dir(), &error.to_string()))?;
    }
    let wanted = data.last_log_id();
    let data = snapshots.place(data)?;
    if data.last_log_id() != wanted {
        return Err(invalid(format!("{} is newer than the one to install", data.name())));
    }
    let db = match prepared {
        Some(db) => db,
        None => snapshots.states.prepare(&data)?,
    };
    make_live(db.dir())?;
    let name = db.name();
    point_to(state.layout(), &name)?;
    db.spare();
    state.replace(db);
    tracing::info!(snapshot = data.name(), state = name, "snapshot installed");
    Ok(())
}

/// Whether a state directory was prepared and never live. A start must not use it: the log may not fit to it.
pub(crate) fn is_prepared(dir: &Path) -> bool {
    dir.join(PREPARED).exists()
}

/// Removes the mark of a prepared state, durably.
pub(super) fn make_live(dir: &Path) -> io::Result<()> {
    fs::remove_file(dir.join(PREPARED))?;
    files::sync_dir(dir)
}

/// A name for the new state directory, different from all directories that may still be in use.
pub(crate) fn next_name(layout: &Layout) -> io::Result<String> {
    let taken = files::names(&layout.state())?;
    let highest = taken.iter().filter_map(|name| number_of(name)).max();
    Ok(format!("db-{}", highest.unwrap_or(0) + 1))
}

/// Builds the new state directory beside the live one.
pub(crate) fn build(layout: &Layout, data: &SnapshotData, name: &str) -> io::Result<()> {
    publish(layout, &stage(layout, data)?, name)
}

/// Collects the files of the new state.
fn stage(layout: &Layout, data: &SnapshotData) -> io::Result<PathBuf> {
    let staged = layout.state().join("staged");
    files::remove_dir(&staged)?;
    files::create_dir(&staged)?;
    for file in &data.meta().files {
        link_or_copy(&data.dir().join(&file.name), &staged.join(&file.name))?;
    }
    Ok(staged)
}

/// Gives the new state its name, durably.
fn publish(layout: &Layout, staged: &Path, name: &str) -> io::Result<()> {
    files::sync_dir(staged)?;
    files::rename(staged, &layout.state().join(name))
}

/// Links a table file, which never changes, so that the snapshot and the state share it. Copies any other file, because
/// RocksDB may write to it.
fn link_or_copy(from: &Path, to: &Path) -> io::Result<()> {
    if manifest::is_table(from) {
        return fs::hard_link(from, to);
    }
    fs::copy(from, to)?;
    files::sync_file(to)
}

/// Opens the new state, and checks that it ends where the manifest says.
pub(crate) fn open(
    layout: &Layout,
    options: &Options,
    data: &SnapshotData,
    name: &str,
    damage: Damage,
) -> io::Result<StateDb> {
    let dir = layout.state().join(name);
    let db = StateDb::open_dir(&dir, options, Create::Never, damage).map_err(io::Error::other)?;
    let applied = db.applied().map_err(io::Error::other)?;
    if applied.last != data.meta().last_log_id {
        return Err(invalid(format!(
            "it ends at {:?}, not at {:?}",
            applied.last,
            data.meta().last_log_id
        )));
    }
    Ok(db)
}
