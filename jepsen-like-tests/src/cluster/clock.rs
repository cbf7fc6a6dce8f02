//! The wall clocks of the nodes. The library of `clock-shim/` is loaded into each node and adds an offset, which a
//! file contains, to every wall time that the node reads. Monotonic time does not change.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// The library is in the same directory as the binaries of the build.
const LIBRARY: &str = "libclock_shim.so";

/// The clocks of a cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ClockKind {
    /// Every node uses the machine's clock.
    #[default]
    Real,
    /// Every node has a clock of its own, which can be set.
    Steered,
}

pub struct Clocks {
    dir: PathBuf,
    library: Option<PathBuf>,
    /// The offset file of each node, if the clocks can be set.
    files: Vec<File>,
    /// How many seconds a correct clock is ahead of the machine's.
    base_s: f64,
}

/// Why [`ClockKind::Steered`] is not available; `None` if it is.
pub fn why_no_steered_clocks() -> Option<String> {
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
    /// Creates a clock for each node, with its file in a directory.
    pub fn create(kind: ClockKind, dir: &Path, nodes: usize) -> Result<Self> {
        let mut clocks = Clocks {
            dir: dir.to_owned(),
            library: None,
            files: Vec::new(),
            base_s: 0.0,
        };
        if kind == ClockKind::Steered {
            clocks.library = Some(library()?);
            let files = (1..=nodes).map(|node| File::create_new(clocks.file(node)));
            clocks.files = files.collect::<std::io::Result<_>>()?;
        }
        clocks.heal()?;
        Ok(clocks)
    }

    /// The environment variables that a node's process needs.
    pub fn env(&self, node: usize) -> Vec<(&'static str, OsString)> {
        match &self.library {
            Some(library) => vec![
                ("LD_PRELOAD", library.into()),
                ("CLOCK_SHIM_FILE", self.file(node).into()),
            ],
            None => Vec::new(),
        }
    }

    /// Sets a node's clock this many seconds ahead of a correct one.
    pub fn set(&self, node: usize, ahead_s: f64) -> Result<()> {
        let file = self.files.get(node - 1).context("the machine's clock cannot be set")?;
        let ahead_ns = ((self.base_s + ahead_s) * 1e9) as i64;
        Ok(file.write_all_at(&ahead_ns.to_ne_bytes(), 0)?)
    }

    /// Moves the correct time this many seconds ahead of the machine's, and sets all clocks to it.
    pub fn move_all(&mut self, ahead_s: f64) -> Result<()> {
        self.base_s = ahead_s;
        self.heal()
    }

    /// Sets all clocks to the correct time.
    pub fn heal(&self) -> Result<()> {
        (1..=self.files.len()).try_for_each(|node| self.set(node, 0.0))
    }

    fn file(&self, node: usize) -> PathBuf {
        self.dir.join(format!("node{node}.clock"))
    }
}
