//! K: processes are killed. F: processes are stopped. U: processes are restarted in order.

use std::time::Duration;

use anyhow::Result;

use super::definition::{Cover, InSoak, Scenario, five, three};
use crate::cluster::Settings;
use crate::cluster::network::{self, Cut};
use crate::record::faults::FaultState;
use crate::scenario::nemesis::Nemesis;
use crate::workload;

const LOADS: &[workload::Workload] = &[workload::Workload::Send, workload::Workload::Read];
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
        in_soak: InSoak::Varied,
        steady_leader: false,
        needs: &[],
        cover: killed(3, 3),
        script: |nemesis| Box::pin(kill_leaders(nemesis)),
    };
    vec![
        k1.clone(),
        Scenario {
            name: "K2",
            title: "kill -9 of a follower, again and again",
            loads: &[workload::Workload::Mixed],
            smoke: None,
            cover: killed(3, 0),
            script: |nemesis| Box::pin(kill_followers(nemesis)),
            ..k1.clone()
        },
        Scenario {
            name: "K3",
            title: "kill -9 of a majority at once",
            cluster: five,
            smoke: None,
            cover: killed(2, 1),
            script: |nemesis| Box::pin(kill_majorities(nemesis)),
            ..k1.clone()
        },
        Scenario {
            name: "K4",
            title: "kill -9 of all nodes at once",
            loads: &[workload::Workload::SendBatches, workload::Workload::Read],
            smoke: None,
            cover: killed(2, 1),
            script: |nemesis| Box::pin(kill_all(nemesis)),
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
        in_soak: InSoak::Varied,
        steady_leader: false,
        needs: &[],
        cover: paused(1),
        script: |nemesis| Box::pin(pause_leaders(nemesis)),
    };
    vec![
        f1.clone(),
        Scenario {
            name: "F2",
            title: "a follower is stopped for 0.2 to 30 s and continues",
            cover: paused(0),
            script: |nemesis| Box::pin(pause_followers(nemesis)),
            ..f1.clone()
        },
        Scenario {
            name: "F3",
            title: "the leader is stopped while requests to it queue up, and continues when another node leads",
            rate: 1_000,
            smoke: Some(Duration::from_secs(10)),
            cover: paused(3),
            script: |nemesis| Box::pin(wake_old_leaders(nemesis)),
            ..f1.clone()
        },
        Scenario {
            name: "F4",
            title: "a busy leader that is cut off reconnects while it believes to be the leader",
            cluster: cut_three,
            loads: &[workload::Workload::SendBatches],
            rate: 5_000,
            cover: Cover {
                faults: &[("partition", 3)],
                operations_inside: 20,
                leader_changes: 3,
            },
            script: |nemesis| Box::pin(heal_busy_leaders(nemesis)),
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
            script: |nemesis| Box::pin(restart_in_turn(nemesis)),
            ..f1
        },
    ]
}

fn cut_three() -> Settings {
    Settings {
        network: network::NetworkKind::cuttable(),
        ..three()
    }
}

async fn kill_leaders(nemesis: &mut Nemesis) -> Result<()> {
    while !nemesis.over() {
        nemesis.pause(200..1_500).await;
        let leader = nemesis.leader().await?;
        nemesis.kill_for(&[leader], 200..1_500).await?;
    }
    Ok(())
}

async fn kill_followers(nemesis: &mut Nemesis) -> Result<()> {
    while !nemesis.over() {
        nemesis.pause(200..1_000).await;
        let leader = nemesis.leader().await?;
        let follower = nemesis.others(leader)[0];
        nemesis.kill_for(&[follower], 200..1_500).await?;
    }
    Ok(())
}

async fn kill_majorities(nemesis: &mut Nemesis) -> Result<()> {
    while !nemesis.over() {
        nemesis.pause(500..1_500).await;
        let nodes = nemesis.shuffled();
        nemesis.kill_for(&nodes[..nodes.len() / 2 + 1], 200..1_500).await?;
    }
    Ok(())
}

async fn kill_all(nemesis: &mut Nemesis) -> Result<()> {
    while !nemesis.over() {
        nemesis.pause(500..1_500).await;
        let nodes = nemesis.shuffled();
        nemesis.kill_for(&nodes, 100..500).await?;
    }
    Ok(())
}

async fn pause_leaders(nemesis: &mut Nemesis) -> Result<()> {
    while !nemesis.over() {
        nemesis.pause(300..1_500).await;
        let leader = nemesis.leader().await?;
        let ms = nemesis.random_duration(PAUSE_MAX);
        nemesis.pause_for(&[leader], ms).await?;
    }
    Ok(())
}

async fn pause_followers(nemesis: &mut Nemesis) -> Result<()> {
    while !nemesis.over() {
        nemesis.pause(200..1_000).await;
        let leader = nemesis.leader().await?;
        let follower = nemesis.others(leader)[0];
        let ms = nemesis.random_duration(PAUSE_MAX);
        nemesis.pause_for(&[follower], ms).await?;
    }
    Ok(())
}

async fn wake_old_leaders(nemesis: &mut Nemesis) -> Result<()> {
    while !nemesis.over() {
        nemesis.pause(300..1_000).await;
        let leader = nemesis.leader().await?;
        let fault = nemesis.faults.begin("pause", &[leader], "until another leads");
        nemesis.cluster.pause(leader)?;
        nemesis.leader_other_than(leader).await?;
        nemesis.pause(0..500).await;
        nemesis.cluster.resume(leader)?;
        nemesis.faults.end(fault, FaultState::Installed)?;
    }
    Ok(())
}

/// Clients reach the leader all the time. It is stopped at the moment at which it could hear of the new leader, so
/// that all messages arrive at once.
async fn heal_busy_leaders(nemesis: &mut Nemesis) -> Result<()> {
    while !nemesis.over() {
        nemesis.pause(500..1_500).await;
        let leader = nemesis.leader().await?;
        let cut = Cut::between(&[leader], &nemesis.others(leader));
        let fault = nemesis.begin_partition(&cut, &cut.nodes());
        nemesis.cluster.network().cut(&cut)?;
        nemesis.leader_other_than(leader).await?;
        nemesis.pause(0..1_000).await;
        nemesis.cluster.pause(leader)?;
        nemesis.cluster.network().cut(&Cut::default())?;
        nemesis.pause(50..400).await;
        nemesis.cluster.resume(leader)?;
        nemesis.faults.end(fault, FaultState::Installed)?;
    }
    Ok(())
}

async fn restart_in_turn(nemesis: &mut Nemesis) -> Result<()> {
    while !nemesis.over() {
        for node in nemesis.shuffled() {
            nemesis.pause(300..1_000).await;
            nemesis.restart(node).await?;
        }
    }
    Ok(())
}
