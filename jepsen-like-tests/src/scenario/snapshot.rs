//! S: nodes that were down for longer than the log reaches back and catch up with a snapshot.

use std::time::{Duration, Instant};

use anyhow::Result;
use rand::RngExt as _;

use super::{Cover, Scenario, three};
use crate::cluster::Settings;
use crate::cluster::network::{self, Cut};
use crate::faults::{Ongoing, State};
use crate::stage::Stage;
use crate::workload;

const LOADS: &[workload::Kind] = &[workload::Kind::Send, workload::Kind::Read];
/// Time limit for nodes to purge their logs, or for a node to report that it has a snapshot.
const PATIENCE: Duration = Duration::from_secs(10);

pub fn scenarios() -> Vec<Scenario> {
    let s1 = Scenario {
        name: "S1",
        title: "a node is down for longer than the log reaches back",
        cluster: || Settings {
            config: "[raft]\nlog_entries_kept = 20\n".to_owned(),
            ..three()
        },
        loads: LOADS,
        rate: 1_000,
        length: Duration::from_secs(60),
        smoke: None,
        needs: &[],
        cover: Cover {
            faults: &[("lag", 3)],
            operations_inside: 100,
            leader_changes: 0,
        },
        script: |stage| Box::pin(fall_behind(stage)),
    };
    vec![
        s1.clone(),
        Scenario {
            name: "S2",
            title: "kill -9 while a snapshot is taken, sent and installed",
            // Slow enough for a kill in the middle.
            cluster: || Settings {
                config: "[raft]\nlog_entries_kept = 20\nsnapshot_send_bytes_per_s = 400_000\n".to_owned(),
                ..three()
            },
            cover: Cover {
                faults: &[("kill", 6)],
                ..s1.cover
            },
            script: |stage| Box::pin(kill_in_the_middle(stage)),
            ..s1.clone()
        },
        Scenario {
            name: "S3",
            title: "an idle leader whose log is purged to its end, and a node that is behind",
            cluster: || Settings {
                config: "[raft]\nlog_entries_kept = 0\n".to_owned(),
                ..three()
            },
            // Each client sends once and then nothing for a quarter of a minute.
            rate: 1,
            cover: Cover {
                faults: &[("lag", 2)],
                operations_inside: 0,
                leader_changes: 0,
            },
            script: |stage| Box::pin(idle_leader(stage)),
            ..s1.clone()
        },
        Scenario {
            name: "S4",
            title: "snapshots on both sides of a partition",
            cluster: || Settings {
                network: network::Kind::cuttable(),
                config: "[raft]\nlog_entries_kept = 20\n".to_owned(),
                ..three()
            },
            script: |stage| Box::pin(part_and_snapshot(stage)),
            ..s1
        },
    ]
}

async fn fall_behind(stage: &mut Stage) -> Result<()> {
    while !stage.over() {
        stage.pause(300..1_000).await;
        let node = stage.shuffled()[0];
        let fault = stage.faults.begin("lag", &[node], "");
        let purged = leave_behind(stage, node).await?;
        stage.cluster.restart(node).await?;
        end(stage, fault, node, 0, purged).await?;
    }
    Ok(())
}

/// Kills a node and takes snapshots on the others until their logs begin after its last entry. Returns false if they
/// never did.
async fn leave_behind(stage: &mut Stage, node: usize) -> Result<bool> {
    stage.cluster.kill(node)?;
    purge_without(stage, node).await
}

/// Takes snapshots on all nodes but one that is away, until their logs begin after its last entry.
async fn purge_without(stage: &mut Stage, away: usize) -> Result<bool> {
    stage.leader_besides(away).await?;
    // After this the reports of the others are younger than the moment at which the node went away.
    stage.pause(250..400).await;
    let others = stage.others(away);
    let lasts = others.iter().filter_map(|node| Some(stage.watch.sample(*node)?.last));
    let last = lasts.max().unwrap_or(0);
    purge_past(stage, &others, last).await
}

/// Takes snapshots on these nodes until their logs begin after an entry.
async fn purge_past(stage: &mut Stage, nodes: &[usize], index: u64) -> Result<bool> {
    let deadline = Instant::now() + PATIENCE;
    let purged = |stage: &Stage, node: usize| stage.watch.sample(node).is_some_and(|s| s.purged > index);
    while Instant::now() < deadline {
        for node in nodes {
            // Refused while another snapshot is taken.
            let _ = stage.world.node(*node, &stage.world.admin_key, "")?.snapshot().await;
        }
        stage.pause(150..300).await;
        if nodes.iter().all(|node| purged(stage, *node)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Ends a fault, which happened if the node has received more snapshots than `before`.
async fn end(stage: &mut Stage, fault: Ongoing, node: usize, before: u64, purged: bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let got = |stage: &Stage| stage.watch.sample(node).is_some_and(|s| s.installed > before);
    while !got(stage) && Instant::now() < deadline {
        stage.pause(50..100).await;
    }
    let state = match purged && got(stage) {
        true => State::Installed,
        false => State::Indeterminate,
    };
    stage.faults.end(fault, state)
}

async fn kill_in_the_middle(stage: &mut Stage) -> Result<()> {
    while !stage.over() {
        stage.pause(300..800).await;
        kill_taking(stage).await?;
        let node = stage.shuffled()[0];
        leave_behind(stage, node).await?;
        stage.cluster.launch(&[node])?;
        // A start takes some hundred milliseconds, the transfer after it some more.
        stage.pause(100..1_200).await;
        let victim = match stage.random.random_bool(0.7) {
            true => node,
            false => stage.leader_besides(node).await?,
        };
        stage.kill_for(&[victim], 0..500).await?;
        stage.cluster.await_ready(&[node]).await?;
    }
    Ok(())
}

/// Kills a node while it takes a snapshot.
async fn kill_taking(stage: &mut Stage) -> Result<()> {
    let node = stage.shuffled()[0];
    let client = stage.world.node(node, &stage.world.admin_key, "")?;
    let taking = tokio::spawn(async move { client.snapshot().await });
    stage.pause(0..40).await;
    stage.kill_for(&[node], 0..500).await?;
    // The outcome is unknown and does not matter.
    let _ = taking.await;
    Ok(())
}

async fn idle_leader(stage: &mut Stage) -> Result<()> {
    for turn in 0.. {
        if stage.over() {
            break;
        }
        stage.pause(300..1_000).await;
        let leader = stage.leader().await?;
        let node = stage.others(leader)[0];
        let fault = stage.faults.begin("lag", &[node], "all purged");
        stage.cluster.kill(node)?;
        // The node does not have this entry.
        stage.world.team(&format!("turn-{turn}"), None).await?;
        stage.pause(300..500).await;
        let last = stage.watch.sample(leader).map_or(0, |sample| sample.last);
        let others = stage.others(node);
        let purged = purge_past(stage, &others, last.saturating_sub(1)).await?;
        stage.cluster.restart(node).await?;
        end(stage, fault, node, 0, purged).await?;
    }
    Ok(())
}

async fn part_and_snapshot(stage: &mut Stage) -> Result<()> {
    while !stage.over() {
        stage.pause(500..1_500).await;
        let node = match stage.random.random_bool(0.5) {
            true => stage.leader().await?,
            false => stage.shuffled()[0],
        };
        let before = stage.watch.sample(node).map_or(0, |sample| sample.installed);
        let others = stage.others(node);
        let fault = stage.faults.begin("lag", &[node], "cut off");
        stage.cluster.network().cut(&Cut::between(&[node], &others))?;
        let alone = stage.world.node(node, &stage.world.admin_key, "")?;
        // The node may refuse to take a snapshot of what it has.
        let _ = alone.snapshot().await;
        let purged = purge_without(stage, node).await?;
        stage.cluster.network().cut(&Cut::default())?;
        end(stage, fault, node, before, purged).await?;
    }
    Ok(())
}
