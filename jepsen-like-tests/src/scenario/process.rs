//! K: processes are killed. F: processes are stopped. U: processes are restarted in order.

use std::time::Duration;

use anyhow::Result;

use super::{Cover, Scenario, five, three};
use crate::cluster::Settings;
use crate::cluster::network::{self, Cut};
use crate::faults::State;
use crate::stage::Stage;
use crate::workload;

const LOADS: &[workload::Kind] = &[workload::Kind::Send, workload::Kind::Read];
/// The longest time that a process is stopped.
const PAUSE_MAX: Duration = Duration::from_secs(30);

pub fn scenarios() -> Vec<Scenario> {
    [kills(), pauses()].concat()
}

fn kills() -> Vec<Scenario> {
    let killed = |times, leader_changes| Cover {
        faults: match times {
            3 => &[("kill", 3)],
            _ => &[("kill", 2)],
        },
        operations_inside: 100,
        leader_changes,
    };
    let k1 = Scenario {
        name: "K1",
        title: "kill -9 of the leader, again and again",
        cluster: three,
        loads: LOADS,
        rate: 1_000,
        length: Duration::from_secs(60),
        smoke: Some(Duration::from_secs(10)),
        needs: &[],
        cover: killed(3, 3),
        script: |stage| Box::pin(kill_leaders(stage)),
    };
    vec![
        k1.clone(),
        Scenario {
            name: "K2",
            title: "kill -9 of a follower, again and again",
            loads: &[workload::Kind::Mixed],
            smoke: None,
            cover: killed(3, 0),
            script: |stage| Box::pin(kill_followers(stage)),
            ..k1.clone()
        },
        Scenario {
            name: "K3",
            title: "kill -9 of a majority at once",
            cluster: five,
            smoke: None,
            cover: killed(2, 1),
            script: |stage| Box::pin(kill_majorities(stage)),
            ..k1.clone()
        },
        Scenario {
            name: "K4",
            title: "kill -9 of all nodes at once",
            loads: &[workload::Kind::SendBatches, workload::Kind::Read],
            smoke: None,
            cover: killed(2, 1),
            script: |stage| Box::pin(kill_all(stage)),
            ..k1
        },
    ]
}

fn pauses() -> Vec<Scenario> {
    let paused = |leader_changes| Cover {
        faults: &[("pause", 3)],
        operations_inside: 100,
        leader_changes,
    };
    let f1 = Scenario {
        name: "F1",
        title: "the leader is stopped (SIGSTOP) for 0.2 to 30 s and continues",
        cluster: three,
        loads: LOADS,
        rate: 1_000,
        length: Duration::from_secs(90),
        smoke: None,
        needs: &[],
        cover: paused(1),
        script: |stage| Box::pin(pause_leaders(stage)),
    };
    vec![
        f1.clone(),
        Scenario {
            name: "F2",
            title: "a follower is stopped for 0.2 to 30 s and continues",
            cover: paused(0),
            script: |stage| Box::pin(pause_followers(stage)),
            ..f1.clone()
        },
        Scenario {
            name: "F3",
            title: "the leader is stopped while requests to it queue up, and continues when another node leads",
            rate: 1_000,
            smoke: Some(Duration::from_secs(10)),
            cover: paused(3),
            script: |stage| Box::pin(wake_old_leaders(stage)),
            ..f1.clone()
        },
        Scenario {
            name: "F4",
            title: "a busy leader that is cut off reconnects while it believes to be the leader",
            cluster: cut_three,
            loads: &[workload::Kind::SendBatches],
            rate: 5_000,
            cover: Cover {
                faults: &[("partition", 3)],
                operations_inside: 20,
                leader_changes: 3,
            },
            script: |stage| Box::pin(heal_busy_leaders(stage)),
            ..f1.clone()
        },
        Scenario {
            name: "U1",
            title: "rolling restart (SIGTERM) of one node after the other",
            cover: Cover {
                faults: &[("restart", 3)],
                operations_inside: 100,
                leader_changes: 1,
            },
            script: |stage| Box::pin(restart_in_turn(stage)),
            ..f1
        },
    ]
}

fn cut_three() -> Settings {
    Settings {
        network: network::Kind::cuttable(),
        ..three()
    }
}

async fn kill_leaders(stage: &mut Stage) -> Result<()> {
    while !stage.over() {
        stage.pause(200..1_500).await;
        let leader = stage.leader().await?;
        stage.kill_for(&[leader], 200..1_500).await?;
    }
    Ok(())
}

async fn kill_followers(stage: &mut Stage) -> Result<()> {
    while !stage.over() {
        stage.pause(200..1_000).await;
        let leader = stage.leader().await?;
        let follower = stage.others(leader)[0];
        stage.kill_for(&[follower], 200..1_500).await?;
    }
    Ok(())
}

async fn kill_majorities(stage: &mut Stage) -> Result<()> {
    while !stage.over() {
        stage.pause(500..1_500).await;
        let nodes = stage.shuffled();
        stage.kill_for(&nodes[..nodes.len() / 2 + 1], 200..1_500).await?;
    }
    Ok(())
}

async fn kill_all(stage: &mut Stage) -> Result<()> {
    while !stage.over() {
        stage.pause(500..1_500).await;
        let nodes = stage.shuffled();
        stage.kill_for(&nodes, 100..500).await?;
    }
    Ok(())
}

async fn pause_leaders(stage: &mut Stage) -> Result<()> {
    while !stage.over() {
        stage.pause(300..1_500).await;
        let leader = stage.leader().await?;
        let ms = stage.some_ms(PAUSE_MAX);
        stage.pause_for(&[leader], ms).await?;
    }
    Ok(())
}

async fn pause_followers(stage: &mut Stage) -> Result<()> {
    while !stage.over() {
        stage.pause(200..1_000).await;
        let leader = stage.leader().await?;
        let follower = stage.others(leader)[0];
        let ms = stage.some_ms(PAUSE_MAX);
        stage.pause_for(&[follower], ms).await?;
    }
    Ok(())
}

async fn wake_old_leaders(stage: &mut Stage) -> Result<()> {
    while !stage.over() {
        stage.pause(300..1_000).await;
        let leader = stage.leader().await?;
        let fault = stage.faults.begin("pause", &[leader], "until another leads");
        stage.cluster.pause(leader)?;
        stage.leader_besides(leader).await?;
        stage.pause(0..500).await;
        stage.cluster.resume(leader)?;
        stage.faults.end(fault, State::Installed)?;
    }
    Ok(())
}

/// Clients reach the leader all the time. It is stopped at the moment at which it could hear of the new leader, so
/// that all messages arrive at once.
async fn heal_busy_leaders(stage: &mut Stage) -> Result<()> {
    while !stage.over() {
        stage.pause(500..1_500).await;
        let leader = stage.leader().await?;
        let cut = Cut::between(&[leader], &stage.others(leader));
        let fault = stage.faults.begin("partition", &cut.nodes(), cut.to_string());
        stage.cluster.network().cut(&cut)?;
        stage.leader_besides(leader).await?;
        stage.pause(0..1_000).await;
        stage.cluster.pause(leader)?;
        stage.cluster.network().cut(&Cut::default())?;
        stage.pause(50..400).await;
        stage.cluster.resume(leader)?;
        stage.faults.end(fault, State::Installed)?;
    }
    Ok(())
}

async fn restart_in_turn(stage: &mut Stage) -> Result<()> {
    while !stage.over() {
        for node in stage.shuffled() {
            stage.pause(300..1_000).await;
            stage.restart(node).await?;
        }
    }
    Ok(())
}
