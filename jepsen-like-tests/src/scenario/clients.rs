//! B, Q, G: topics, quotas and keys while leaders are killed and stopped. H2: the same workloads without faults.

use std::time::Duration;

use anyhow::Result;
use rand::RngExt;

use super::{Cover, Scenario, three};
use crate::stage::Stage;
use crate::workload::Kind;

pub fn scenarios() -> Vec<Scenario> {
    let calm = Scenario {
        name: "H2",
        title: "no faults: topics, quotas and keys",
        cluster: three,
        loads: &[Kind::Topics, Kind::Quota, Kind::Keys],
        rate: 100,
        length: Duration::from_secs(20),
        smoke: None,
        needs: &[],
        cover: Cover {
            faults: &[],
            operations_inside: 0,
            leader_changes: 0,
        },
        script: |stage| Box::pin(async move { stage.rest().await }),
    };
    let stormy = Scenario {
        length: Duration::from_secs(60),
        cover: Cover {
            faults: &[("kill", 3), ("pause", 3)],
            operations_inside: 100,
            leader_changes: 3,
        },
        script: |stage| Box::pin(kill_and_pause(stage)),
        ..calm.clone()
    };
    vec![
        calm,
        Scenario {
            name: "B1",
            title: "topics with one and with hundreds of subscribers while leaders are killed and stopped",
            loads: &[Kind::Topics],
            ..stormy.clone()
        },
        Scenario {
            name: "Q1",
            title: "clients compete for the last units of a quota while leaders are killed and stopped",
            loads: &[Kind::Quota],
            rate: 300,
            ..stormy.clone()
        },
        Scenario {
            name: "G1",
            title: "keys are created, used and revoked, and teams probe each other, while leaders are killed and stopped",
            loads: &[Kind::Keys],
            rate: 300,
            ..stormy
        },
    ]
}

/// Kills and stops the leader in turns, and sometimes another node.
async fn kill_and_pause(stage: &mut Stage) -> Result<()> {
    let mut kills = true;
    while !stage.over() {
        stage.pause(200..1_000).await;
        let leader = stage.leader().await?;
        let node = match stage.random.random_range(0..4) {
            0 => leader % stage.cluster.nodes() + 1,
            _ => leader,
        };
        if kills {
            stage.kill_for(&[node], 200..1_200).await?;
        } else {
            // Often long enough for the others to elect a new leader before the old one continues.
            stage.pause_for(&[node], 200..2_500).await?;
        }
        kills = !kills;
    }
    Ok(())
}
