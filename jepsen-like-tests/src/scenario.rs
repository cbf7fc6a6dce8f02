//! The table of scenarios. A scenario is a script of faults, the workloads that run meanwhile, and the coverage that
//! makes its verdict meaningful. The letters in the names are explained in the README.

pub mod clients;
pub mod damage;
pub mod definition;
pub mod dispatch;
pub mod long;
pub mod membership;
pub mod nemesis;
pub mod network;
pub mod peace;
pub mod power;
pub mod process;
pub mod snapshot;
pub mod space;
pub mod stream;
pub mod time;

pub use self::definition::Scenario;
use crate::workload;

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
        long::scenarios(),
    ]
    .concat()
}

/// Finds a workload by the name that [`workload::Workload::name`] gives it.
pub fn load_named(name: &str) -> Option<workload::Workload> {
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
            Some(workload::Workload::Webhooks(workload::webhooks::Mix::Quick))
        );
        assert_eq!(load_named("nothing"), None);
    }
}
