//! The nodes' wall clocks, and how they go wrong: libfaketime is loaded into the node, reads a file of its own whenever
//! the node asks for the time, and leaves monotonic time alone.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

/// Where Debian has the library, below a directory of the machine's kind.
const LIBRARY: &str = "faketime/libfaketimeMT.so.1";

/// Whose clocks a run asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Kind {
    /// The machine's.
    #[default]
    Real,
    /// One for each node that can be set. Needs libfaketime.
    Steered,
}

/// The clocks of a cluster.
pub struct Clocks {
    dir: PathBuf,
    library: Option<PathBuf>,
    nodes: usize,
    /// How far a right clock is ahead of the machine's.
    base_s: f64,
}

/// Why this machine has no [`Kind::Steered`]; none if it has.
pub fn lacking() -> Option<String> {
    library()
        .is_none()
        .then(|| "no libfaketime: Debian has it in the package faketime".to_owned())
}

fn library() -> Option<PathBuf> {
    let kinds = std::fs::read_dir("/usr/lib").ok()?.flatten();
    kinds.map(|kind| kind.path().join(LIBRARY)).find(|path| path.exists())
}

impl Clocks {
    /// A clock for each of so many nodes, steered by files in a directory.
    pub fn create(kind: Kind, dir: &Path, nodes: usize) -> Result<Self> {
        let library = match kind {
            Kind::Real => None,
            Kind::Steered => Some(library().context("no libfaketime")?),
        };
        let clocks = Clocks {
            dir: dir.to_owned(),
            library,
            nodes,
            base_s: 0.0,
        };
        clocks.heal()?;
        Ok(clocks)
    }

    /// What a node's process needs in its environment.
    pub fn env(&self, node: usize) -> Vec<(&'static str, OsString)> {
        let Some(library) = &self.library else {
            return Vec::new();
        };
        vec![
            ("LD_PRELOAD", library.into()),
            ("FAKETIME_TIMESTAMP_FILE", self.file(node).into()),
            ("FAKETIME_NO_CACHE", "1".into()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
        ]
    }

    /// Sets a node's clock so many seconds ahead of a right one, to go so fast from the start of its process on.
    pub fn set(&self, node: usize, ahead_s: f64, rate: f64) -> Result<()> {
        ensure!(self.library.is_some(), "the machine's clock cannot be set");
        let ahead_s = self.base_s + ahead_s;
        // Renamed into place: the node never reads half a line.
        let (file, new) = (self.file(node), self.file(node).with_extension("new"));
        std::fs::write(&new, format!("{ahead_s:+.3} x{rate:.4}\n"))?;
        Ok(std::fs::rename(new, file)?)
    }

    /// From now on a right clock is so far ahead of the machine's; sets all of them.
    pub fn move_all(&mut self, ahead_s: f64) -> Result<()> {
        self.base_s = ahead_s;
        self.heal()
    }

    /// Sets all clocks right.
    pub fn heal(&self) -> Result<()> {
        match self.library {
            Some(_) => (1..=self.nodes).try_for_each(|node| self.set(node, 0.0, 1.0)),
            None => Ok(()),
        }
    }

    fn file(&self, node: usize) -> PathBuf {
        self.dir.join(format!("node{node}.clock"))
    }
}
