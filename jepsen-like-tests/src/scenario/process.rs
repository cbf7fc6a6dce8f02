//! K: processes that die. F: processes that stand still.

use std::time::Duration;

use super::{Cover, Scenario};
use crate::cluster::Settings;
use crate::stage::Stage;
use crate::workload;

/// K1.
pub fn scenarios() -> Vec<Scenario> {
    vec![Scenario {
        name: "K1",
        title: "kill -9 of the leader, again and again",
        cluster: || Settings {
            nodes: 3,
            ..Settings::default()
        },
        loads: &[workload::Kind::Send, workload::Kind::Read],
        rate: 1_000,
        length: Duration::from_secs(60),
        smoke: Some(Duration::from_secs(10)),
        needs: &[],
        cover: Cover {
            faults: &[("kill", 3)],
            operations_inside: 100,
            leader_changes: 3,
        },
        script: |stage| Box::pin(kill_leaders(stage)),
    }]
}

async fn kill_leaders(stage: &mut Stage) -> anyhow::Result<()> {
    while !stage.over() {
        stage.pause(200..1_500).await;
        let leader = stage.cluster.leader().await?;
        stage.kill_for(&[leader], 200..1_500).await?;
    }
    Ok(())
}
