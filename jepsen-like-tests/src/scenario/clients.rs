//! B, Q, G: what clients do besides sending and reading, while leaders die and stand still. H2: the same in peace.

use std::time::Duration;

use anyhow::Result;
use rand::RngExt;

use super::{Cover, Scenario, three};
use crate::stage::Stage;
use crate::workload::Kind;

/// H2, B1, Q1, G1.
pub fn scenarios() -> Vec<Scenario> {
    let calm = Scenario {
        name: "H2",
        title: "no fault: topics, quotas, keys",
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
            title: "topics with one and with hundreds of subscribers while leaders die and stand still",
            loads: &[Kind::Topics],
            ..stormy.clone()
        },
        Scenario {
            name: "Q1",
            title: "clients race for the last units of a quota while leaders die and stand still",
            loads: &[Kind::Quota],
            rate: 300,
            ..stormy.clone()
        },
        Scenario {
            name: "G1",
            title: "keys are made, used and revoked, teams probe each other, leaders die and stand still",
            loads: &[Kind::Keys],
            rate: 300,
            ..stormy
        },
    ]
}

/// Kills and stops in turn whoever leads, and now and then another one.
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
            // Often for so long that the others elect somebody; then it goes on as if nothing had been.
            stage.pause_for(&[node], 200..2_500).await?;
        }
        kills = !kills;
    }
    Ok(())
}
