//! The paths of a shard's files. `open.rs` shows them as a tree.

use std::path::{Path, PathBuf};

/// The version of the layout in `open.rs`, of the log's files, and of the state's keys and values. Raise it when an
/// older version of the program would misread what this one writes.
pub(crate) const FORMAT: &str = "agentpost shard 5";

/// The paths of a shard.
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

    /// The directory of the shard.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn floor(&self) -> PathBuf {
        self.root.join("FLOOR")
    }

    pub(crate) fn format(&self) -> PathBuf {
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

    pub(crate) fn notes(&self) -> PathBuf {
        self.root.join("REPAIR")
    }

    pub(crate) fn damaged(&self) -> PathBuf {
        self.root.join("damaged")
    }
}
