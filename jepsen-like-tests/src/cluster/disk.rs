//! What nodes store on, and how that is taken from them or spoilt.

use std::path::{Path, PathBuf};

use anyhow::Result;

/// Which disks a run asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Kind {
    /// Directories of the machine's own disk: no power to cut.
    #[default]
    Plain,
}

/// The disks of a cluster.
pub struct Disk {
    dir: PathBuf,
}

impl Disk {
    /// A disk for each of so many nodes, under a directory.
    pub fn create(kind: Kind, dir: &Path, _nodes: usize) -> Result<Self> {
        let Kind::Plain = kind;
        Ok(Disk { dir: dir.to_owned() })
    }

    /// A node's data directory.
    pub fn data_dir(&self, node: usize) -> PathBuf {
        self.dir.join(format!("node{node}"))
    }
}
