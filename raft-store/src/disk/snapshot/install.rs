//! Replacing the state by a snapshot. `snapshot.rs` describes the steps and what a crash between them leaves. Each step
//! is a function, so that a test can stop after it.

use std::fs;
use std::io;
use std::path::Path;

use super::manifest::{self, invalid};
use super::{Checked, SnapshotData, Snapshots};
use crate::disk::damage::Damage;
use crate::disk::files;
use crate::disk::layout::Layout;
use crate::disk::options::Options;
use crate::disk::state::{Create, StateDb, StateHandle, number_of, point_to};

/// Replaces the state by a snapshot. Blocks.
pub(crate) fn install(state: &StateHandle, snapshots: &Snapshots, data: SnapshotData) -> io::Result<()> {
    if data.checked == Checked::Length {
        let verified = manifest::verify(data.dir(), data.meta(), |_| true);
        verified.inspect_err(|error| state.damage().directory(data.dir(), &error.to_string()))?;
    }
    let wanted = data.last_log_id();
    let data = snapshots.place(data)?;
    if data.last_log_id() != wanted {
        return Err(invalid(format!("{} is newer than the one to install", data.name())));
    }
    let layout = state.layout();
    let name = next_name(layout)?;
    build(layout, &data, &name)?;
    let db = open(layout, state.options(), &data, &name, state.damage().clone())?;
    point_to(layout, &name)?;
    state.replace(db);
    tracing::info!(snapshot = data.name(), state = name, "snapshot installed");
    Ok(())
}

/// A name for the new state directory, different from all directories that may still be in use.
pub(crate) fn next_name(layout: &Layout) -> io::Result<String> {
    let taken = files::names(&layout.state())?;
    let highest = taken.iter().filter_map(|name| number_of(name)).max();
    Ok(format!("db-{}", highest.unwrap_or(0) + 1))
}

/// Builds the new state directory beside the live one.
pub(crate) fn build(layout: &Layout, data: &SnapshotData, name: &str) -> io::Result<()> {
    let staged = layout.state().join("staged");
    files::remove_dir(&staged)?;
    files::create_dir(&staged)?;
    for file in &data.meta().files {
        adopt(&data.dir().join(&file.name), &staged.join(&file.name))?;
    }
    files::sync_dir(&staged)?;
    files::rename(&staged, &layout.state().join(name))
}

/// Links a table file, which never changes, so that the snapshot and the state share it. Copies any other file, because
/// RocksDB may write to it.
fn adopt(from: &Path, to: &Path) -> io::Result<()> {
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
