//! The nodes' wall clocks, and how they go wrong: the library of `clock-shim/` is loaded into the node and adds a number, which
//! a file holds, to every wall time that the node is told. Monotonic time is left alone.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Beside the binaries of the same build.
const LIBRARY: &str = "libclock_shim.so";

/// Whose clocks a run asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Kind {
    /// The machine's.
    #[default]
    Real,
    /// One for each node that can be set.
    Steered,
}

/// The clocks of a cluster.
pub struct Clocks {
    dir: PathBuf,
    library: Option<PathBuf>,
    /// Of each node, if they are steered.
    files: Vec<File>,
    /// How far a right clock is ahead of the machine's.
    base_s: f64,
}

/// Why there is no [`Kind::Steered`]; none if there is.
pub fn lacking() -> Option<String> {
    library().err().map(|error| format!("{error:#}"))
}

fn library() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    // <target>/<profile>/faults, or <target>/<profile>/deps/<test>.
    let mut beside = program.ancestors().skip(1).take(2).map(|dir| dir.join(LIBRARY));
    let found = beside.find(|path| path.exists());
    found.with_context(|| format!("{LIBRARY} is missing: run `cargo build -p clock-shim`"))
}

impl Clocks {
    /// A clock for each of so many nodes, steered by files in a directory.
    pub fn create(kind: Kind, dir: &Path, nodes: usize) -> Result<Self> {
        let mut clocks = Clocks {
            dir: dir.to_owned(),
            library: None,
            files: Vec::new(),
            base_s: 0.0,
        };
        if kind == Kind::Steered {
            clocks.library = Some(library()?);
            let files = (1..=nodes).map(|node| File::create_new(clocks.file(node)));
            clocks.files = files.collect::<std::io::Result<_>>()?;
        }
        clocks.heal()?;
        Ok(clocks)
    }

    /// What a node's process needs in its environment.
    pub fn env(&self, node: usize) -> Vec<(&'static str, OsString)> {
        match &self.library {
            Some(library) => vec![
                ("LD_PRELOAD", library.into()),
                ("CLOCK_SHIM_FILE", self.file(node).into()),
            ],
            None => Vec::new(),
        }
    }

    /// Sets a node's clock so many seconds ahead of a right one.
    pub fn set(&self, node: usize, ahead_s: f64) -> Result<()> {
        let file = self.files.get(node - 1).context("the machine's clock cannot be set")?;
        let ahead_ns = ((self.base_s + ahead_s) * 1e9) as i64;
        Ok(file.write_all_at(&ahead_ns.to_ne_bytes(), 0)?)
    }

    /// From now on a right clock is so far ahead of the machine's; sets all of them.
    pub fn move_all(&mut self, ahead_s: f64) -> Result<()> {
        self.base_s = ahead_s;
        self.heal()
    }

    /// Sets all clocks right.
    pub fn heal(&self) -> Result<()> {
        (1..=self.files.len()).try_for_each(|node| self.set(node, 0.0))
    }

    fn file(&self, node: usize) -> PathBuf {
        self.dir.join(format!("node{node}.clock"))
    }
}
