//! M: nodes join and leave while clients send.

use std::time::Duration;

use agentpost::api::admin::AddMember;
use agentpost::operator::Operator;
use anyhow::Result;

use super::definition::{Cover, InSoak, Scenario, Script, three};
use crate::cluster::members::{add, remove};
use crate::cluster::{Cluster, Settings};
use crate::record::faults::FaultState;
use crate::record::members::{self, ObservedMembers};
use crate::scenario::nemesis::Nemesis;
use crate::workload;

pub fn scenarios() -> Vec<Scenario> {
    vec![
        row(
            "M1",
            "a fourth node joins and leaves again and again",
            &[("join", 2), ("leave", 2)],
            0,
            |nemesis| Box::pin(come_and_go(nemesis)),
        ),
        row(
            "M2",
            "the leader is removed and a new node takes its place",
            &[("leave", 2), ("join", 2)],
            2,
            |nemesis| Box::pin(remove_leaders(nemesis)),
        ),
        Scenario {
            cluster: short_logs,
            ..row(
                "M3",
                "nodes join by snapshot and leave while all nodes take snapshots",
                &[("join", 2), ("leave", 2), ("snapshot", 3)],
                0,
                |nemesis| Box::pin(churn_and_snapshot(nemesis)),
            )
        },
        row(
            "M4",
            "a node loses its disk and joins again under a new id",
            &[("wipe", 2)],
            0,
            |nemesis| Box::pin(replace_the_dead(nemesis)),
        ),
        row(
            "M5",
            "two operators change the members concurrently",
            &[("operators", 2)],
            0,
            |nemesis| Box::pin(two_operators(nemesis)),
        ),
        row(
            "M6",
            "a new node joins at the address of one that was removed",
            &[("leave", 2), ("join", 2)],
            0,
            |nemesis| Box::pin(same_address(nemesis)),
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
        loads: &[workload::Workload::Send],
        rate: 500,
        length: Duration::from_secs(60),
        smoke: None,
        in_soak: InSoak::Varied,
        steady_leader: false,
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
        config: "[raft]\nlog_bytes_kept = 50_000\n".to_owned(),
        ..three()
    }
}

async fn join(nemesis: &mut Nemesis, node: usize) -> Result<()> {
    let fault = nemesis.faults.begin("join", &[node], "");
    nemesis.cluster.join(node).await?;
    nemesis.faults.end(fault, FaultState::Installed)
}

async fn leave(nemesis: &mut Nemesis, node: usize) -> Result<()> {
    let fault = nemesis.faults.begin("leave", &[node], "");
    nemesis.cluster.leave(node).await?;
    nemesis.faults.end(fault, FaultState::Installed)
}

async fn come_and_go(nemesis: &mut Nemesis) -> Result<()> {
    let fourth = nemesis.cluster.grow()?;
    while !nemesis.over() {
        join(nemesis, fourth).await?;
        nemesis.pause(100..800).await;
        leave(nemesis, fourth).await?;
        nemesis.pause(100..800).await;
    }
    Ok(())
}

async fn remove_leaders(nemesis: &mut Nemesis) -> Result<()> {
    while !nemesis.over() {
        let leader = nemesis.cluster.leader().await?;
        leave(nemesis, leader).await?;
        nemesis.pause(100..800).await;
        join(nemesis, leader).await?;
        nemesis.pause(100..800).await;
    }
    Ok(())
}

async fn churn_and_snapshot(nemesis: &mut Nemesis) -> Result<()> {
    let fourth = nemesis.cluster.grow()?;
    while !nemesis.over() {
        snapshot_all(nemesis).await?;
        join(nemesis, fourth).await?;
        snapshot_all(nemesis).await?;
        let leader = nemesis.cluster.leader().await?;
        let other = nemesis.others(leader)[0];
        leave(nemesis, other).await?;
        snapshot_all(nemesis).await?;
        if other != fourth {
            join(nemesis, other).await?;
            leave(nemesis, fourth).await?;
        }
    }
    Ok(())
}

async fn snapshot_all(nemesis: &mut Nemesis) -> Result<()> {
    let nodes: Vec<usize> = nemesis.cluster.running().collect();
    let fault = nemesis.faults.begin("snapshot", &nodes, "");
    for node in nodes {
        nemesis.cluster.snapshot(node).await?;
    }
    nemesis.faults.end(fault, FaultState::Installed)
}

async fn replace_the_dead(nemesis: &mut Nemesis) -> Result<()> {
    while !nemesis.over() {
        let nodes = nemesis.shuffled();
        let fault = nemesis.faults.begin("wipe", &nodes[..1], "");
        nemesis.cluster.kill(nodes[0])?;
        nemesis.pause(100..1_500).await;
        nemesis.cluster.wipe(nodes[0])?;
        nemesis.cluster.rejoin(nodes[0]).await?;
        nemesis.faults.end(fault, FaultState::Installed)?;
        nemesis.pause(100..800).await;
    }
    Ok(())
}

async fn same_address(nemesis: &mut Nemesis) -> Result<()> {
    while !nemesis.over() {
        let leader = nemesis.cluster.leader().await?;
        let node = nemesis.others(leader)[0];
        leave(nemesis, node).await?;
        // At once, while the others still have connections to the removed node.
        join(nemesis, node).await?;
        nemesis.pause(100..800).await;
    }
    Ok(())
}

/// One operator makes a fourth node a voter and removes it again; the other adds and removes learners that never
/// start. The responses to both must agree with the final members.
async fn two_operators(nemesis: &mut Nemesis) -> Result<()> {
    let fourth = nemesis.cluster.grow()?;
    let mut ports = 1..;
    while !nemesis.over() {
        let fault = nemesis.faults.begin("operators", &[fourth], "");
        let other = nemesis.cluster.operator()?;
        let ghosts: Vec<AddMember> = ports.by_ref().take(8).map(ghost).collect();
        let before = ids(&nemesis.cluster).await?;
        let (joined, haunted) = tokio::try_join!(
            async {
                nemesis.cluster.join(fourth).await?;
                let id = nemesis.cluster.id(fourth);
                nemesis.cluster.leave(fourth).await?;
                anyhow::Ok(id)
            },
            haunt(&other, &ghosts)
        )?;
        let members = ObservedMembers {
            observed: ids(&nemesis.cluster).await?,
            expected: before,
            assigned: [&[joined][..], &haunted].concat(),
        };
        nemesis.faults.end(fault, FaultState::Installed)?;
        let mut observation = nemesis.faults.begin(members::KIND, &[], "");
        observation.set_members(members);
        nemesis.faults.end(observation, FaultState::Installed)?;
        nemesis.pause(100..500).await;
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
async fn haunt(operator: &Operator, ghosts: &[AddMember]) -> Result<Vec<u64>> {
    let mut removed = Vec::new();
    for ghost in ghosts {
        let id = add(operator, ghost).await?;
        remove(operator, id).await?;
        removed.push(id);
    }
    Ok(removed)
}
