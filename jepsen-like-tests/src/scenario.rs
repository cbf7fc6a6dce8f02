//! The table of scenarios. A scenario is a script of faults, the clients that run beside it, and what it must have met
//! for its verdict to mean anything. The letters are those of the test plan.

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

/// A named scenario.
#[derive(Clone)]
pub struct Scenario {
    /// Short: `K1`.
    pub name: &'static str,
    /// One line for people.
    pub title: &'static str,
    /// The cluster it needs.
    pub cluster: fn() -> Settings,
    /// What clients do meanwhile.
    pub loads: &'static [workload::Kind],
    /// Messages a second of all clients together; 0 = as fast as they can.
    pub rate: u64,
    /// How long the faults go on, unless the command says otherwise.
    pub length: Duration,
    /// How long in `faults.sh smoke`; none if it is not part of that.
    pub smoke: Option<Duration>,
    /// What the machine must be able to do.
    pub needs: &'static [Need],
    /// What must have happened.
    pub cover: Cover,
    /// Does the faults, until `stage.over()`; leaves nothing behind that [`Stage::heal`] cannot mend.
    pub script: Script,
}

/// Does the faults of a scenario.
pub type Script = for<'a> fn(&'a mut Stage) -> BoxFuture<'a, Result<()>>;

/// What a machine may lack. A scenario that lacks something is `skipped`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Network namespaces and nftables: root.
    Namespaces,
    /// Loop devices with ext4: root.
    LoopImages,
    /// A wall clock for each node: the library of `clock-shim/`.
    Clocks,
    /// A binary with the feature `failpoints`.
    Failpoints,
}

impl Need {
    /// Why this machine cannot do it; none if it can. Found out by trying.
    pub fn lacking(self) -> Option<String> {
        match self {
            Need::Namespaces => net::without_namespaces().map(str::to_owned),
            Need::Clocks => clock::lacking(),
            Need::LoopImages => Disk::lacks_images(),
            Need::Failpoints => None,
        }
    }
}

/// What a run must have met; see [`crate::verdict::Coverage`].
#[derive(Debug, Clone, Copy)]
pub struct Cover {
    /// Kinds of faults, and how often each at least; [`crate::checker::coverage::SNAPSHOT_INSTALL`] may be among them.
    pub faults: &'static [(&'static str, u64)],
    /// Acknowledged operations that began inside a fault.
    pub operations_inside: u64,
    /// Changes of the leader.
    pub leader_changes: u64,
}

/// All of them, in the order of the test plan.
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

/// Nodes on loopback, as most scenarios have it.
fn three() -> Settings {
    Settings {
        nodes: 3,
        ..Settings::default()
    }
}

/// For scenarios in which some see what others do not.
fn five() -> Settings {
    Settings {
        nodes: 5,
        ..Settings::default()
    }
}

/// The clients of a name, as [`workload::Kind::name`] has it.
pub fn load_named(name: &str) -> Option<workload::Kind> {
    let used = all().into_iter().flat_map(|scenario| scenario.loads);
    used.copied().chain(workload::ALL).find(|kind| kind.name() == name)
}

/// The one of a name.
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
