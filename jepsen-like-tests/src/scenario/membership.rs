//! M: nodes join and leave while clients send.

use std::time::Duration;

use agentpost::Client;
use agentpost::api::admin::AddMember;
use anyhow::Result;

use super::{Cover, Scenario, Script, three};
use crate::checker::members::{self, Look};
use crate::cluster::members::{add, remove};
use crate::cluster::{Cluster, Settings};
use crate::faults::State;
use crate::stage::Stage;
use crate::workload;

pub fn scenarios() -> Vec<Scenario> {
    vec![
        row(
            "M1",
            "a fourth node joins and leaves again and again",
            &[("join", 2), ("leave", 2)],
            0,
            |stage| Box::pin(come_and_go(stage)),
        ),
        row(
            "M2",
            "the leader is removed and a new node takes its place",
            &[("leave", 2), ("join", 2)],
            2,
            |stage| Box::pin(remove_leaders(stage)),
        ),
        Scenario {
            cluster: short_logs,
            ..row(
                "M3",
                "nodes join by snapshot and leave while all nodes take snapshots",
                &[("join", 2), ("leave", 2), ("snapshot", 3)],
                0,
                |stage| Box::pin(churn_and_snapshot(stage)),
            )
        },
        row(
            "M4",
            "a node loses its disk and joins again under a new id",
            &[("wipe", 2)],
            0,
            |stage| Box::pin(replace_the_dead(stage)),
        ),
        row(
            "M5",
            "two operators change the members concurrently",
            &[("operators", 2)],
            0,
            |stage| Box::pin(two_operators(stage)),
        ),
        row(
            "M6",
            "a new node joins at the address of one that was removed",
            &[("leave", 2), ("join", 2)],
            0,
            |stage| Box::pin(same_address(stage)),
        ),
    ]
}

fn row(
    name: &'static str,
    title: &'static str,
    faults: &'static [(&'static str, u64)],
    leader_changes: u64,
    script: Script,
) -> Scenario {
    Scenario {
        name,
        title,
        cluster: three,
        loads: &[workload::Kind::Send],
        rate: 500,
        length: Duration::from_secs(60),
        smoke: None,
        needs: &[],
        cover: Cover {
            faults,
            operations_inside: 100,
            leader_changes,
        },
        script,
    }
}

/// Short logs, so that a node that joins needs a snapshot.
fn short_logs() -> Settings {
    Settings {
        config: "[raft]\nlog_entries_kept = 100\n".to_owned(),
        ..three()
    }
}

async fn join(stage: &mut Stage, node: usize) -> Result<()> {
    let fault = stage.faults.begin("join", &[node], "");
    stage.cluster.join(node).await?;
    stage.faults.end(fault, State::Installed)
}

async fn leave(stage: &mut Stage, node: usize) -> Result<()> {
    let fault = stage.faults.begin("leave", &[node], "");
    stage.cluster.leave(node).await?;
    stage.faults.end(fault, State::Installed)
}

async fn come_and_go(stage: &mut Stage) -> Result<()> {
    let fourth = stage.cluster.grow()?;
    while !stage.over() {
        join(stage, fourth).await?;
        stage.pause(100..800).await;
        leave(stage, fourth).await?;
        stage.pause(100..800).await;
    }
    Ok(())
}

async fn remove_leaders(stage: &mut Stage) -> Result<()> {
    while !stage.over() {
        let leader = stage.cluster.leader().await?;
        leave(stage, leader).await?;
        stage.pause(100..800).await;
        join(stage, leader).await?;
        stage.pause(100..800).await;
    }
    Ok(())
}

async fn churn_and_snapshot(stage: &mut Stage) -> Result<()> {
    let fourth = stage.cluster.grow()?;
    while !stage.over() {
        snapshot_all(stage).await?;
        join(stage, fourth).await?;
        snapshot_all(stage).await?;
        let leader = stage.cluster.leader().await?;
        let other = stage.others(leader)[0];
        leave(stage, other).await?;
        snapshot_all(stage).await?;
        if other != fourth {
            join(stage, other).await?;
            leave(stage, fourth).await?;
        }
    }
    Ok(())
}

async fn snapshot_all(stage: &mut Stage) -> Result<()> {
    let nodes: Vec<usize> = stage.cluster.running().collect();
    let fault = stage.faults.begin("snapshot", &nodes, "");
    for node in nodes {
        stage.cluster.snapshot(node).await?;
    }
    stage.faults.end(fault, State::Installed)
}

async fn replace_the_dead(stage: &mut Stage) -> Result<()> {
    while !stage.over() {
        let nodes = stage.shuffled();
        let fault = stage.faults.begin("wipe", &nodes[..1], "");
        stage.cluster.kill(nodes[0])?;
        stage.pause(100..1_500).await;
        stage.cluster.wipe(nodes[0])?;
        stage.cluster.rejoin(nodes[0]).await?;
        stage.faults.end(fault, State::Installed)?;
        stage.pause(100..800).await;
    }
    Ok(())
}

async fn same_address(stage: &mut Stage) -> Result<()> {
    while !stage.over() {
        let leader = stage.cluster.leader().await?;
        let node = stage.others(leader)[0];
        leave(stage, node).await?;
        // At once, while the others still have connections to the removed node.
        join(stage, node).await?;
        stage.pause(100..800).await;
    }
    Ok(())
}

/// One operator makes a fourth node a voter and removes it again; the other adds and removes learners that never
/// start. The responses to both must agree with the final members.
async fn two_operators(stage: &mut Stage) -> Result<()> {
    let fourth = stage.cluster.grow()?;
    let mut ports = 1..;
    while !stage.over() {
        let fault = stage.faults.begin("operators", &[fourth], "");
        let other = stage.cluster.operator()?;
        let ghosts: Vec<AddMember> = ports.by_ref().take(8).map(ghost).collect();
        let before = ids(&stage.cluster).await?;
        let (joined, haunted) = tokio::try_join!(
            async {
                stage.cluster.join(fourth).await?;
                let id = stage.cluster.id(fourth);
                stage.cluster.leave(fourth).await?;
                anyhow::Ok(id)
            },
            haunt(&other, &ghosts)
        )?;
        let look = Look {
            seen: ids(&stage.cluster).await?,
            told: before,
            given: [&[joined][..], &haunted].concat(),
        };
        stage.faults.end(fault, State::Installed)?;
        let seen = stage.faults.begin(members::KIND, &[], look.note());
        stage.faults.end(seen, State::Installed)?;
        stage.pause(100..500).await;
    }
    Ok(())
}

/// The ids of the members.
async fn ids(cluster: &Cluster) -> Result<Vec<u64>> {
    let status = cluster.operator()?.cluster().await?;
    Ok(status.nodes.iter().map(|node| node.id).collect())
}

/// A learner at an address where no node listens.
fn ghost(port: u16) -> AddMember {
    AddMember {
        id: None,
        peer_addr: format!("127.0.0.1:{port}"),
        url: format!("http://127.0.0.1:{port}"),
    }
}

/// Adds learners and removes them; returns their ids.
async fn haunt(operator: &Client, ghosts: &[AddMember]) -> Result<Vec<u64>> {
    let mut removed = Vec::new();
    for ghost in ghosts {
        let id = add(operator, ghost).await?;
        remove(operator, id).await?;
        removed.push(id);
    }
    Ok(removed)
}
