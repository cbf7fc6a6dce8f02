//! The table of scenarios. A scenario is a script of faults, the workloads that run meanwhile, and the coverage that
//! makes its verdict meaningful. The letters in the names are explained in the README.

pub mod clients;
pub mod damage;
pub mod dispatch;
pub mod membership;
pub mod network;
pub mod peace;
pub mod power;
pub mod process;
pub mod snapshot;
pub mod space;
pub mod stream;
pub mod time;

use std::time::Duration;

use anyhow::Result;
use futures::future::BoxFuture;

use crate::cluster::disk::Disk;
use crate::cluster::{Settings, clock, network as net};
use crate::stage::Stage;
use crate::workload;

#[derive(Clone)]
pub struct Scenario {
    /// The short name: `K1`.
    pub name: &'static str,
    /// A description in one line.
    pub title: &'static str,
    /// The settings of its cluster.
    pub cluster: fn() -> Settings,
    /// The workloads that run meanwhile.
    pub loads: &'static [workload::Kind],
    /// Messages per second of each workload; 0 means no limit.
    pub rate: u64,
    /// How long faults are injected unless the command says otherwise.
    pub length: Duration,
    /// The length in `faults.sh smoke`; `None` if the scenario is not part of it.
    pub smoke: Option<Duration>,
    /// What the machine must provide.
    pub needs: &'static [Need],
    /// The required coverage.
    pub cover: Cover,
    /// Injects faults until `stage.over()`; it leaves nothing behind that [`Stage::heal`] cannot undo.
    pub script: Script,
}

/// The function that injects the faults of a scenario.
pub type Script = for<'a> fn(&'a mut Stage) -> BoxFuture<'a, Result<()>>;

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
    pub fn lacking(self) -> Option<String> {
        match self {
            Need::Namespaces => net::without_namespaces().map(str::to_owned),
            Need::Clocks => clock::lacking(),
            Need::LoopImages => Disk::lacks_images(),
            Need::Failpoints => None,
        }
    }
}

/// The coverage that a run must reach; see [`crate::verdict::Coverage`].
#[derive(Debug, Clone, Copy)]
pub struct Cover {
    /// The required number of faults of each kind; [`crate::checker::coverage::SNAPSHOT_INSTALL`] may be one of them.
    pub faults: &'static [(&'static str, u64)],
    /// The required number of acknowledged operations that began during a fault.
    pub operations_inside: u64,
    /// The required number of leader changes.
    pub leader_changes: u64,
}

/// All scenarios, in the order of the README.
pub fn all() -> Vec<Scenario> {
    [
        peace::scenarios(),
        process::scenarios(),
        network::scenarios(),
        power::scenarios(),
        damage::scenarios(),
        time::scenarios(),
        snapshot::scenarios(),
        space::scenarios(),
        membership::scenarios(),
        dispatch::scenarios(),
        stream::scenarios(),
        clients::scenarios(),
    ]
    .concat()
}

/// Three nodes on loopback.
fn three() -> Settings {
    Settings {
        nodes: 3,
        ..Settings::default()
    }
}

/// Five nodes on loopback, for partial partitions and for minorities of two.
fn five() -> Settings {
    Settings {
        nodes: 5,
        ..Settings::default()
    }
}

/// Finds a workload by the name that [`workload::Kind::name`] gives it.
pub fn load_named(name: &str) -> Option<workload::Kind> {
    let used = all().into_iter().flat_map(|scenario| scenario.loads);
    used.copied().chain(workload::ALL).find(|kind| kind.name() == name)
}

/// Finds a scenario by its name.
pub fn named(name: &str) -> Option<Scenario> {
    all().into_iter().find(|s| s.name.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_what_they_name() {
        let mut names: Vec<&str> = all().iter().map(|scenario| scenario.name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count, "a name is used twice");
        for scenario in all() {
            for kind in scenario.loads {
                assert_eq!(load_named(&kind.name()), Some(*kind));
            }
        }
        assert_eq!(
            load_named("webhooks-quick"),
            Some(workload::Kind::Webhooks(workload::webhooks::Mix::Quick))
        );
        assert_eq!(load_named("nothing"), None);
    }
}
