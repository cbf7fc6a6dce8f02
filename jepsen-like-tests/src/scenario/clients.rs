//! B, Q, G: topics, quotas and keys while leaders are killed and stopped. H2: the same workloads without faults.

use std::time::Duration;

use anyhow::Result;
use rand::RngExt;

use super::definition::{Cover, InSoak, Scenario, three};
use crate::scenario::nemesis::Nemesis;
use crate::workload::Workload;

pub fn scenarios() -> Vec<Scenario> {
    let calm = Scenario {
        name: "H2",
        title: "no faults: topics, quotas and keys",
        cluster: three,
        loads: &[Workload::Topics, Workload::Quota, Workload::Keys],
        rate: 100,
        length: Duration::from_secs(20),
        smoke: None,
        in_soak: InSoak::Varied,
        steady_leader: false,
        needs: &[],
        cover: Cover {
            faults: &[],
            operations_inside: 0,
            leader_changes: 0,
        },
        script: |nemesis| Box::pin(async move { nemesis.rest().await }),
    };
    let stormy = Scenario {
        length: Duration::from_secs(60),
        cover: Cover {
            faults: &[("kill", 3), ("pause", 3)],
            operations_inside: 100,
            leader_changes: 3,
        },
        script: |nemesis| Box::pin(kill_and_pause(nemesis)),
        ..calm.clone()
    };
    vec![
        calm,
        Scenario {
            name: "B1",
            title: "topics with one and with hundreds of subscribers while leaders are killed and stopped",
            loads: &[Workload::Topics],
            ..stormy.clone()
        },
        Scenario {
            name: "Q1",
            title: "clients compete for the last units of a quota while leaders are killed and stopped",
            loads: &[Workload::Quota],
            rate: 300,
            ..stormy.clone()
        },
        Scenario {
            name: "G1",
            title: "keys are created, used and revoked, and teams probe each other, while leaders are killed and stopped",
            loads: &[Workload::Keys],
            rate: 300,
            ..stormy
        },
    ]
}

/// Kills and stops the leader in turns, and sometimes another node.
async fn kill_and_pause(nemesis: &mut Nemesis) -> Result<()> {
    let mut kills = true;
    while !nemesis.over() {
        nemesis.pause(200..1_000).await;
        let leader = nemesis.leader().await?;
        let node = match nemesis.random.random_range(0..4) {
            0 => leader % nemesis.cluster.nodes() + 1,
            _ => leader,
        };
        if kills {
            nemesis.kill_for(&[node], 200..1_200).await?;
        } else {
            // Often long enough for the others to elect a new leader before the old one continues.
            nemesis.pause_for(&[node], 200..2_500).await?;
        }
        kills = !kills;
    }
    Ok(())
}
