//! P: power loss. The disks keep only what was flushed, so a node that acknowledges before a flush loses data.

use std::time::Duration;

use anyhow::Result;
use rand::RngExt as _;

use super::definition::{Cover, InSoak, Need, Scenario};
use crate::cluster::{Settings, disk, network};
use crate::record::faults::{FaultState, OngoingFault};
use crate::scenario::nemesis::Nemesis;
use crate::workload;

/// Snapshots and purges every few seconds, so that power is lost in the middle of them, too.
const BUSY_KEEPER: &str = "[raft]\nlog_bytes_kept = 200_000\nsnapshot_log_bytes = 2_000_000\nsnapshot_interval_s = 5\n";
/// The size of each node's image, which is sparse.
const IMAGE_BYTES: u64 = 8 << 30;
/// How long clients send to a majority before it is split, in a run of full length.
const ALONE: Duration = Duration::from_secs(30);
/// The same in a short run.
const ALONE_MIN: Duration = Duration::from_secs(1);
/// How long a majority that includes nodes without those messages may work.
const ELSEWHERE: Duration = Duration::from_secs(3);

pub fn scenarios() -> Vec<Scenario> {
    let power = Scenario {
        name: "P1",
        title: "one node loses its power again and again",
        cluster: || on_images(3),
        loads: &[workload::Workload::Send],
        rate: 1_000,
        length: Duration::from_secs(60),
        smoke: None,
        in_soak: InSoak::Varied,
        steady_leader: false,
        needs: &[Need::LoopImages],
        cover: Cover {
            faults: &[("power", 3)],
            operations_inside: 100,
            leader_changes: 1,
        },
        script: |nemesis| Box::pin(one_at_a_time(nemesis)),
    };
    vec![
        power.clone(),
        Scenario {
            name: "P2",
            title: "all nodes lose their power at the same instant, again and again",
            loads: &[workload::Workload::SendBatches],
            rate: 5_000,
            smoke: Some(Duration::from_secs(14)),
            cover: Cover {
                faults: &[("power", 3)],
                // No write is acknowledged while all nodes are down.
                operations_inside: 0,
                leader_changes: 1,
            },
            script: |nemesis| Box::pin(all_at_once(nemesis)),
            ..power.clone()
        },
        Scenario {
            name: "P3",
            title: "a minority is stopped, one of the others loses its power, and only those nodes form the next majority",
            cluster: || on_images(5),
            length: Duration::from_secs(180),
            cover: Cover {
                faults: &[("power", 3), ("pause", 6)],
                ..power.cover
            },
            script: |nemesis| Box::pin(split(nemesis, Apart::Frozen)),
            ..power.clone()
        },
        Scenario {
            name: "P4",
            title: "a minority is cut off, one of the others loses its power, and only those nodes form the next majority",
            cluster: || Settings {
                network: network::NetworkKind::cuttable(),
                ..on_images(5)
            },
            length: Duration::from_secs(180),
            cover: Cover {
                faults: &[("power", 3), ("partition", 6)],
                ..power.cover
            },
            script: |nemesis| Box::pin(split(nemesis, Apart::Cut)),
            ..power.clone()
        },
        Scenario {
            name: "P5",
            title: "a node loses its power while it truncates its log, with slow flushes, and flushes its state",
            cluster: || Settings {
                disk_shim: true,
                ..on_images(3)
            },
            length: Duration::from_secs(90),
            cover: Cover {
                faults: &[("power", 3), ("pause", 6), ("slow fsync", 3)],
                ..power.cover
            },
            script: |nemesis| Box::pin(take_back(nemesis)),
            ..power
        },
    ]
}

fn on_images(nodes: usize) -> Settings {
    Settings {
        nodes,
        disk: disk::DiskKind::Images {
            bytes: IMAGE_BYTES,
            memory: true,
        },
        config: BUSY_KEEPER.to_owned(),
        ..Settings::default()
    }
}

async fn one_at_a_time(nemesis: &mut Nemesis) -> Result<()> {
    while !nemesis.over() {
        nemesis.pause(500..2_500).await;
        // Half of the time the leader.
        let node = match nemesis.random.random_bool(0.5) {
            true => nemesis.cluster.leader().await?,
            false => nemesis.random.random_range(1..=nemesis.cluster.nodes()),
        };
        nemesis.power_cut(&[node]).await?;
    }
    Ok(())
}

async fn all_at_once(nemesis: &mut Nemesis) -> Result<()> {
    let all: Vec<usize> = (1..=nemesis.cluster.nodes()).collect();
    while !nemesis.over() {
        nemesis.pause(1_500..4_000).await;
        if nemesis.random.random_bool(0.2) {
            // A second power cut while the nodes start.
            nemesis.power_off(&all)?;
            nemesis.cluster.launch(&all)?;
            nemesis.pause(50..1_000).await;
        }
        nemesis.power_cut(&all).await?;
    }
    Ok(())
}

/// How nodes are separated from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Apart {
    /// They are stopped.
    Frozen,
    /// They are cut off from the others.
    Cut,
}

impl Nemesis {
    /// Separates these nodes from those, and from no others.
    fn separate(&mut self, how: Apart, these: &[usize], those: &[usize]) -> Result<OngoingFault> {
        if how == Apart::Cut {
            let cut = network::Cut::between(these, those);
            let fault = self.begin_partition(&cut, these);
            self.cluster.network().cut(&cut)?;
            return Ok(fault);
        }
        let fault = self.faults.begin("pause", these, "");
        self.freeze(these)?;
        let others: Vec<usize> = self.cluster.running().filter(|node| !these.contains(node)).collect();
        self.thaw(&others)?;
        Ok(fault)
    }

    /// Reconnects all nodes.
    fn reconnect(&mut self, how: Apart) -> Result<()> {
        match how {
            Apart::Cut => self.cluster.network().cut(&network::Cut::default()),
            Apart::Frozen => self.thaw(&self.cluster.running().collect::<Vec<_>>()),
        }
    }
}

/// The sequence of events in which NATS lost acknowledged messages: a minority misses them, one of the nodes that
/// have them loses its power and forms a majority with the minority, while the other nodes, which have the messages,
/// are away.
async fn split(nemesis: &mut Nemesis, how: Apart) -> Result<()> {
    let alone = (nemesis.left() / 6).clamp(ALONE_MIN, ALONE);
    while !nemesis.over() {
        let nodes = nemesis.shuffled();
        let (minority, majority) = nodes.split_at((nodes.len() - 1) / 2);
        let (victim, others) = majority.split_at(1);
        let first = nemesis.separate(how, minority, majority)?;
        tokio::time::sleep(alone).await;
        nemesis.power_off(victim)?;
        let second = nemesis.separate(how, others, &[minority, victim].concat())?;
        nemesis.faults.end(first, FaultState::Installed)?;
        // The nodes that serve now are a majority without the others.
        nemesis.recover_from_power(victim).await?;
        tokio::time::sleep(ELSEWHERE).await;
        nemesis.reconnect(how)?;
        nemesis.faults.end(second, FaultState::Installed)?;
        nemesis.cluster.await_ready(&nodes).await?;
        nemesis.pause(500..1_500).await;
    }
    Ok(())
}

/// A leader whose followers are stopped appends entries that can never commit. While the leader itself is stopped,
/// the others continue in a new term. When it continues it must truncate its log, and at that moment, while its state
/// is being flushed, it loses its power. If its state became durable before the truncation did, the node could never
/// start again.
async fn take_back(nemesis: &mut Nemesis) -> Result<()> {
    while !nemesis.over() {
        let leader = nemesis.cluster.leader().await?;
        let others: Vec<usize> = (1..=nemesis.cluster.nodes()).filter(|node| *node != leader).collect();
        let alone = nemesis.faults.begin("pause", &others, "the leader appends alone");
        nemesis.freeze(&others)?;
        nemesis.pause(300..1_000).await;
        let behind = nemesis
            .faults
            .begin("pause", &[leader], "the others continue in a new term");
        nemesis.freeze(&[leader])?;
        nemesis.thaw(&others)?;
        nemesis.faults.end(alone, FaultState::Installed)?;
        nemesis.leader_other_than(leader).await?;
        nemesis.pause(500..1_500).await;
        let ms = nemesis.random.random_range(100..1_000);
        let slow = nemesis.faults.begin("slow fsync", &[leader], format!("{ms} ms"));
        nemesis
            .cluster
            .set_disk_faults(leader, &format!("fsync shards/0/log/ delay-ms {ms}"))
            .await?;
        nemesis.thaw(&[leader])?;
        nemesis.faults.end(behind, FaultState::Installed)?;
        let flush = flush_state(nemesis, leader)?;
        nemesis.pause(1..1_200).await;
        nemesis.power_off(&[leader])?;
        flush.abort();
        nemesis.cluster.set_disk_faults(leader, "").await?;
        nemesis.faults.end(slow, FaultState::Installed)?;
        nemesis.recover_from_power(&[leader]).await?;
        nemesis.pause(200..800).await;
    }
    Ok(())
}

/// Requests one snapshot after the other from a node; each flushes its state.
fn flush_state(nemesis: &Nemesis, node: usize) -> Result<tokio::task::JoinHandle<()>> {
    let admin = nemesis.ctx.node_operator(node)?;
    Ok(tokio::spawn(async move {
        loop {
            // Errors are ignored: the node refuses while it installs a snapshot, and does not answer without power.
            let _ = admin.snapshot().await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }))
}
