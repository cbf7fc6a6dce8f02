//! What a scenario consists of.

use std::time::Duration;

use anyhow::Result;
use futures::future::BoxFuture;

use super::nemesis::Nemesis;
use crate::cluster::disk::Disk;
use crate::cluster::{Settings, clock, network as net};
use crate::record::run::RequiredCoverage;
use crate::workload;

/// A scenario.
#[derive(Clone)]
pub struct Scenario {
    /// The short name: `K1`.
    pub name: &'static str,
    /// A description in one line.
    pub title: &'static str,
    /// The settings of its cluster.
    pub cluster: fn() -> Settings,
    /// The workloads that run meanwhile.
    pub loads: &'static [workload::Workload],
    /// Messages per second of each workload; 0 means no limit.
    pub rate: u64,
    /// How long faults are injected unless the command says otherwise. A run whose required faults have not all happened
    /// by then takes up to a minute more.
    pub length: Duration,
    /// The length in `faults.sh smoke`; `None` if the scenario is not part of it.
    pub smoke: Option<Duration>,
    /// How it runs in `faults.sh soak`.
    pub in_soak: InSoak,
    /// Whether a leader change is a violation.
    pub steady_leader: bool,
    /// What the machine must provide.
    pub needs: &'static [Need],
    /// The required coverage.
    pub cover: Cover,
    /// Injects faults until `nemesis.over()`; it leaves nothing behind that [`Nemesis::heal`] cannot undo.
    pub script: Script,
}

/// How a scenario runs in a soak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InSoak {
    /// For its own length, at a random rate and with one more workload.
    Varied,
    /// With its own workloads and rate, because others would defeat it, for this long.
    AsItIs(Duration),
}

/// The function that injects the faults of a scenario.
pub type Script = for<'a> fn(&'a mut Nemesis) -> BoxFuture<'a, Result<()>>;

/// A capability that a machine may lack. A scenario is `skipped` if one that it needs is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Network namespaces and nftables, which need root.
    Namespaces,
    /// Loop devices with ext4, which need root.
    LoopImages,
    /// A wall clock per node, provided by the library of `clock-shim/`.
    Clocks,
    /// A node binary with the feature `failpoints`.
    Failpoints,
}

impl Need {
    /// Why this machine lacks the capability, found out by trying; `None` if it has it.
    pub fn missing(self) -> Option<String> {
        match self {
            Need::Namespaces => net::why_no_namespaces().map(str::to_owned),
            Need::Clocks => clock::why_no_steered_clocks(),
            Need::LoopImages => Disk::why_no_images(),
            Need::Failpoints => None,
        }
    }
}

/// The coverage that a run must reach, as a constant; see [`RequiredCoverage`].
#[derive(Debug, Clone, Copy)]
pub struct Cover {
    /// The required number of faults of each kind.
    pub faults: &'static [(&'static str, u64)],
    /// The required number of acknowledged operations that began during a fault.
    pub operations_inside: u64,
    /// The required number of leader changes.
    pub leader_changes: u64,
}

impl Scenario {
    /// What the record of a run says about its requirements.
    pub fn required(&self) -> RequiredCoverage {
        let cover = &self.cover;
        let faults = cover.faults.iter().map(|(kind, count)| ((*kind).to_owned(), *count));
        RequiredCoverage {
            faults: faults.collect(),
            operations_inside: cover.operations_inside,
            leader_changes: cover.leader_changes,
            steady_leader: self.steady_leader,
        }
    }
}

/// Three nodes on loopback.
pub fn three() -> Settings {
    Settings {
        nodes: 3,
        ..Settings::default()
    }
}

/// Five nodes on loopback, for partial partitions and for minorities of two.
pub fn five() -> Settings {
    Settings {
        nodes: 5,
        ..Settings::default()
    }
}
