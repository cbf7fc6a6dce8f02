//! H: no faults. Systems have lost messages without any fault, too.

use std::time::Duration;

use super::definition::{Cover, InSoak, Scenario};
use crate::cluster::Settings;
use crate::workload;

pub fn scenarios() -> Vec<Scenario> {
    vec![Scenario {
        name: "H1",
        title: "no faults, at full rate",
        cluster: || Settings {
            nodes: 3,
            ..Settings::default()
        },
        loads: &[workload::Workload::Send, workload::Workload::Read],
        rate: 0,
        length: Duration::from_secs(30),
        smoke: Some(Duration::from_secs(5)),
        in_soak: InSoak::Varied,
        steady_leader: false,
        needs: &[],
        cover: Cover {
            faults: &[],
            operations_inside: 0,
            leader_changes: 0,
        },
        script: |nemesis| Box::pin(async move { nemesis.rest().await }),
    }]
}
