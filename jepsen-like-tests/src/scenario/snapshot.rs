//! S: nodes that were down for longer than the log reaches back and catch up with a snapshot.

use std::time::{Duration, Instant};

use anyhow::Result;
use rand::RngExt as _;

use super::definition::{Cover, InSoak, Scenario, three};
use crate::cluster::Settings;
use crate::cluster::network::{self, Cut};
use crate::record::faults::{FaultState, OngoingFault};
use crate::scenario::nemesis::Nemesis;
use crate::workload;

const LOADS: &[workload::Workload] = &[workload::Workload::Send, workload::Workload::Read];
/// Time limit for nodes to purge their logs, or for a node to report that it has a snapshot.
const PATIENCE: Duration = Duration::from_secs(10);

pub fn scenarios() -> Vec<Scenario> {
    let s1 = Scenario {
        name: "S1",
        title: "a node is down for longer than the log reaches back",
        cluster: || Settings {
            config: "[raft]\nlog_bytes_kept = 20_000\n".to_owned(),
            ..three()
        },
        loads: LOADS,
        rate: 1_000,
        length: Duration::from_secs(60),
        smoke: None,
        in_soak: InSoak::Varied,
        steady_leader: false,
        needs: &[],
        cover: Cover {
            faults: &[("lag", 3)],
            operations_inside: 100,
            leader_changes: 0,
        },
        script: |nemesis| Box::pin(fall_behind(nemesis)),
    };
    vec![
        s1.clone(),
        Scenario {
            name: "S2",
            title: "kill -9 while a snapshot is taken, sent and installed",
            // Slow enough for a kill in the middle.
            cluster: || Settings {
                config: "[raft]\nlog_bytes_kept = 20_000\nsnapshot_send_bytes_per_s = 400_000\n".to_owned(),
                ..three()
            },
            cover: Cover {
                faults: &[("kill", 6)],
                ..s1.cover
            },
            script: |nemesis| Box::pin(kill_in_the_middle(nemesis)),
            ..s1.clone()
        },
        Scenario {
            name: "S3",
            title: "an idle leader whose log is purged to its end, and a node that is behind",
            cluster: || Settings {
                config: "[raft]\nlog_bytes_kept = 0\n".to_owned(),
                ..three()
            },
            // Each client sends once and then nothing for a quarter of a minute.
            rate: 1,
            cover: Cover {
                faults: &[("lag", 2)],
                operations_inside: 0,
                leader_changes: 0,
            },
            script: |nemesis| Box::pin(idle_leader(nemesis)),
            ..s1.clone()
        },
        Scenario {
            name: "S4",
            title: "snapshots on both sides of a partition",
            cluster: || Settings {
                network: network::NetworkKind::cuttable(),
                config: "[raft]\nlog_bytes_kept = 20_000\n".to_owned(),
                ..three()
            },
            script: |nemesis| Box::pin(part_and_snapshot(nemesis)),
            ..s1
        },
    ]
}

async fn fall_behind(nemesis: &mut Nemesis) -> Result<()> {
    while !nemesis.over() {
        nemesis.pause(300..1_000).await;
        let node = nemesis.shuffled()[0];
        let fault = nemesis.faults.begin("lag", &[node], "");
        let purged = leave_behind(nemesis, node).await?;
        nemesis.cluster.restart(node).await?;
        end(nemesis, fault, node, 0, purged).await?;
    }
    Ok(())
}

/// Kills a node and takes snapshots on the others until their logs begin after its last entry. Returns false if they
/// never did.
async fn leave_behind(nemesis: &mut Nemesis, node: usize) -> Result<bool> {
    nemesis.cluster.kill(node)?;
    purge_without(nemesis, node).await
}

/// Takes snapshots on all nodes but one that is away, until their logs begin after its last entry.
async fn purge_without(nemesis: &mut Nemesis, away: usize) -> Result<bool> {
    nemesis.leader_other_than(away).await?;
    // After this the reports of the others are younger than the moment at which the node went away.
    nemesis.pause(250..400).await;
    let others = nemesis.others(away);
    let lasts = others
        .iter()
        .filter_map(|node| Some(nemesis.monitor.sample(*node)?.last));
    let last = lasts.max().unwrap_or(0);
    purge_past(nemesis, &others, last).await
}

/// Takes snapshots on these nodes until their logs begin after an entry.
async fn purge_past(nemesis: &mut Nemesis, nodes: &[usize], index: u64) -> Result<bool> {
    let deadline = Instant::now() + PATIENCE;
    let purged = |nemesis: &Nemesis, node: usize| nemesis.monitor.sample(node).is_some_and(|s| s.purged > index);
    while Instant::now() < deadline {
        for node in nodes {
            // Refused while another snapshot is taken.
            let _ = nemesis.ctx.node_operator(*node)?.snapshot().await;
        }
        nemesis.pause(150..300).await;
        if nodes.iter().all(|node| purged(nemesis, *node)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Ends a fault, which happened if the node has received more snapshots than `before`.
async fn end(nemesis: &mut Nemesis, fault: OngoingFault, node: usize, before: u64, purged: bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let got = |nemesis: &Nemesis| nemesis.monitor.sample(node).is_some_and(|s| s.installed > before);
    while !got(nemesis) && Instant::now() < deadline {
        nemesis.pause(50..100).await;
    }
    let state = match purged && got(nemesis) {
        true => FaultState::Installed,
        false => FaultState::Indeterminate,
    };
    nemesis.faults.end(fault, state)
}

async fn kill_in_the_middle(nemesis: &mut Nemesis) -> Result<()> {
    while !nemesis.over() {
        nemesis.pause(300..800).await;
        kill_taking(nemesis).await?;
        let node = nemesis.shuffled()[0];
        leave_behind(nemesis, node).await?;
        nemesis.cluster.launch(&[node])?;
        // A start takes some hundred milliseconds, the transfer after it some more.
        nemesis.pause(100..1_200).await;
        let victim = match nemesis.random.random_bool(0.7) {
            true => node,
            false => nemesis.leader_other_than(node).await?,
        };
        nemesis.kill_for(&[victim], 0..500).await?;
        nemesis.cluster.await_ready(&[node]).await?;
    }
    Ok(())
}

/// Kills a node while it takes a snapshot.
async fn kill_taking(nemesis: &mut Nemesis) -> Result<()> {
    let node = nemesis.shuffled()[0];
    let client = nemesis.ctx.node_operator(node)?;
    let taking = tokio::spawn(async move { client.snapshot().await });
    nemesis.pause(0..40).await;
    nemesis.kill_for(&[node], 0..500).await?;
    // The outcome is unknown and does not matter.
    let _ = taking.await;
    Ok(())
}

async fn idle_leader(nemesis: &mut Nemesis) -> Result<()> {
    for turn in 0.. {
        if nemesis.over() {
            break;
        }
        nemesis.pause(300..1_000).await;
        let leader = nemesis.leader().await?;
        let node = nemesis.others(leader)[0];
        let fault = nemesis.faults.begin("lag", &[node], "all purged");
        nemesis.cluster.kill(node)?;
        // The node does not have this entry.
        nemesis.ctx.team(&format!("turn-{turn}"), None).await?;
        nemesis.pause(300..500).await;
        let last = nemesis.monitor.sample(leader).map_or(0, |sample| sample.last);
        let others = nemesis.others(node);
        let purged = purge_past(nemesis, &others, last.saturating_sub(1)).await?;
        nemesis.cluster.restart(node).await?;
        end(nemesis, fault, node, 0, purged).await?;
    }
    Ok(())
}

async fn part_and_snapshot(nemesis: &mut Nemesis) -> Result<()> {
    while !nemesis.over() {
        nemesis.pause(500..1_500).await;
        let node = match nemesis.random.random_bool(0.5) {
            true => nemesis.leader().await?,
            false => nemesis.shuffled()[0],
        };
        let before = nemesis.monitor.sample(node).map_or(0, |sample| sample.installed);
        let others = nemesis.others(node);
        let fault = nemesis.faults.begin("lag", &[node], "cut off");
        nemesis.cluster.network().cut(&Cut::between(&[node], &others))?;
        let alone = nemesis.ctx.node_operator(node)?;
        // The node may refuse to take a snapshot of what it has.
        let _ = alone.snapshot().await;
        let purged = purge_without(nemesis, node).await?;
        nemesis.cluster.network().cut(&Cut::default())?;
        end(nemesis, fault, node, before, purged).await?;
    }
    Ok(())
}
