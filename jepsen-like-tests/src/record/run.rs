//! The facts about a run: what ran (`run.json`), and whether the replicas agreed at the end (`replicas.json`).

use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// The file with the [`Run`].
pub const RUN: &str = "run.json";
/// The file with the [`Replicas`].
pub const REPLICAS: &str = "replicas.json";
/// A pseudo fault in [`RequiredCoverage::faults`]: a node that received a snapshot from another one, as the nodes
/// reported.
pub const SNAPSHOT_INSTALL: &str = "snapshot install";

/// A pseudo fault in [`RequiredCoverage::faults`]: an aged row that a sweep removed, as the nodes reported.
pub const SWEPT_ROWS: &str = "rows swept";

/// What ran; the content of `run.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    pub scenario: String,
    /// The description of the scenario in one line.
    pub title: String,
    /// The coverage that the scenario requires.
    pub required: RequiredCoverage,
    pub seed: u64,
    /// How long faults were to be injected.
    pub length_s: f64,
    pub nodes: usize,
    /// The command that repeats the run.
    pub command: String,
    /// The commit that the harness was built from; empty if unknown.
    pub git: String,
    /// Unix time of the begin in milliseconds.
    pub wall_ms: i64,
    /// When the faults began, nanoseconds since the start of the run.
    pub faults_began: u64,
    /// When the cluster was healed, nanoseconds since the start of the run.
    pub healed: u64,
    /// Processes that ended unexpectedly: the node and the exit status.
    pub crashes: Vec<(usize, String)>,
}

/// Whether the states of all replicas were equal at the end; the content of `replicas.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Replicas {
    pub same: bool,
    /// The difference, for people.
    pub difference: String,
}

/// The coverage that a run must reach for its verdict to mean anything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequiredCoverage {
    /// The required number of faults of each kind; [`SNAPSHOT_INSTALL`] and [`SWEPT_ROWS`] may be among them.
    pub faults: Vec<(String, u64)>,
    /// The required number of acknowledged operations that began during a fault.
    pub operations_inside: u64,
    /// The required number of leader changes.
    pub leader_changes: u64,
    /// Whether a leader change is a violation.
    #[serde(default)]
    pub steady_leader: bool,
}

/// Writes a JSON file in a readable form.
pub fn write<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let text = serde_json::to_vec_pretty(value)?;
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Reads a JSON file.
pub fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| path.display().to_string())
}
