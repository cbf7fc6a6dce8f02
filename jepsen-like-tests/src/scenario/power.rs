//! P: power that goes away. The disks keep what was flushed, and nothing else; whoever acknowledged more loses it.

use std::time::{Duration, Instant};

use anyhow::Result;
use rand::RngExt as _;

use super::{Cover, Need, Scenario};
use crate::cluster::{Settings, disk, network};
use crate::faults::{Ongoing, State};
use crate::stage::Stage;
use crate::workload;

/// Snapshots and purges every few seconds, so that power goes away in the middle of them, too.
const BUSY_KEEPER: &str = "[raft]\nlog_entries_kept = 500\nsnapshot_log_bytes = 2_000_000\nsnapshot_interval_s = 5\n";
/// Of each node. Sparse.
const IMAGE_BYTES: u64 = 8 << 30;
/// How long clients send to a majority that will be split, in a run of full length.
const ALONE: Duration = Duration::from_secs(30);
/// How long a majority that never saw those messages at work may go on.
const ELSEWHERE: Duration = Duration::from_secs(3);

/// P1-P5.
pub fn scenarios() -> Vec<Scenario> {
    let power = Scenario {
        name: "P1",
        title: "one node loses its power, again and again",
        cluster: || on_images(3),
        loads: &[workload::Kind::Send],
        rate: 1_000,
        length: Duration::from_secs(60),
        smoke: None,
        needs: &[Need::LoopImages],
        cover: Cover {
            faults: &[("power", 3)],
            operations_inside: 100,
            leader_changes: 1,
        },
        script: |stage| Box::pin(one_at_a_time(stage)),
    };
    vec![
        power.clone(),
        Scenario {
            name: "P2",
            title: "all nodes lose their power at one instant, again and again",
            loads: &[workload::Kind::SendBatches],
            rate: 5_000,
            smoke: Some(Duration::from_secs(14)),
            cover: Cover {
                faults: &[("power", 3)],
                // Nobody acknowledges anything while all are away.
                operations_inside: 0,
                leader_changes: 1,
            },
            script: |stage| Box::pin(all_at_once(stage)),
            ..power.clone()
        },
        Scenario {
            name: "P3",
            title: "a minority stands still, one of the others loses its power, then only those two groups are there",
            cluster: || on_images(5),
            length: Duration::from_secs(180),
            cover: Cover {
                faults: &[("power", 3), ("pause", 6)],
                ..power.cover
            },
            script: |stage| Box::pin(split(stage, Apart::Frozen)),
            ..power.clone()
        },
        Scenario {
            name: "P4",
            title: "a minority is cut off, one of the others loses its power, then only those two groups hear each other",
            cluster: || Settings {
                network: network::Kind::cuttable(),
                ..on_images(5)
            },
            length: Duration::from_secs(180),
            cover: Cover {
                faults: &[("power", 3), ("partition", 6)],
                ..power.cover
            },
            script: |stage| Box::pin(split(stage, Apart::Cut)),
            ..power.clone()
        },
        Scenario {
            name: "P5",
            title: "a node loses its power while it takes entries back, slowly, and its state is flushed",
            cluster: || Settings {
                shim: true,
                ..on_images(3)
            },
            length: Duration::from_secs(90),
            cover: Cover {
                faults: &[("power", 3), ("pause", 6), ("slow fsync", 3)],
                ..power.cover
            },
            script: |stage| Box::pin(take_back(stage)),
            ..power
        },
    ]
}

fn on_images(nodes: usize) -> Settings {
    Settings {
        nodes,
        disk: disk::Kind::Images {
            bytes: IMAGE_BYTES,
            memory: true,
        },
        config: BUSY_KEEPER.to_owned(),
        ..Settings::default()
    }
}

async fn one_at_a_time(stage: &mut Stage) -> Result<()> {
    while !stage.over() {
        stage.pause(500..2_500).await;
        // Every other time the one whose flushes were waited for last.
        let node = match stage.random.random_bool(0.5) {
            true => stage.cluster.leader().await?,
            false => stage.random.random_range(1..=stage.cluster.nodes()),
        };
        stage.power_cut(&[node]).await?;
    }
    Ok(())
}

async fn all_at_once(stage: &mut Stage) -> Result<()> {
    let all: Vec<usize> = (1..=stage.cluster.nodes()).collect();
    while !stage.over() {
        stage.pause(2_000..4_500).await;
        if stage.random.random_bool(0.2) {
            // And again while they come back.
            stage.power_off(&all)?;
            stage.cluster.launch(&all)?;
            stage.pause(50..1_000).await;
        }
        stage.power_cut(&all).await?;
    }
    Ok(())
}

/// How nodes are kept from hearing of anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Apart {
    /// They stand still.
    Frozen,
    /// They are cut off from the other nodes.
    Cut,
}

impl Stage {
    /// Keeps these nodes apart from those, and nobody else.
    fn keep_apart(&mut self, how: Apart, these: &[usize], those: &[usize]) -> Result<Ongoing> {
        if how == Apart::Cut {
            let cut = network::Cut::between(these, those);
            let fault = self.faults.begin("partition", these, cut.to_string());
            self.cluster.network().cut(&cut)?;
            return Ok(fault);
        }
        let fault = self.faults.begin("pause", these, "");
        self.freeze(these)?;
        let others: Vec<usize> = self.cluster.running().filter(|node| !these.contains(node)).collect();
        self.thaw(&others)?;
        Ok(fault)
    }

    /// Lets all of them hear of each other again.
    fn reunite(&mut self, how: Apart) -> Result<()> {
        match how {
            Apart::Cut => self.cluster.network().cut(&network::Cut::default()),
            Apart::Frozen => self.thaw(&self.cluster.running().collect::<Vec<_>>()),
        }
    }
}

/// The order of events by which NATS lost acknowledged messages: a minority misses them, one of those who have them
/// loses its power, and with the minority it is a majority again, while the others, who know better, are away.
async fn split(stage: &mut Stage, how: Apart) -> Result<()> {
    let alone = ALONE.min(stage.until.saturating_duration_since(Instant::now()) / 6);
    while !stage.over() {
        let nodes = stage.shuffled();
        let (minority, majority) = nodes.split_at((nodes.len() - 1) / 2);
        let (victim, others) = majority.split_at(1);
        let first = stage.keep_apart(how, minority, majority)?;
        tokio::time::sleep(alone).await;
        stage.power_off(victim)?;
        let second = stage.keep_apart(how, others, &[minority, victim].concat())?;
        stage.faults.end(first, State::Installed)?;
        // Whoever serves now has a majority without the others.
        stage.recover_from_power(victim).await?;
        tokio::time::sleep(ELSEWHERE).await;
        stage.reunite(how)?;
        stage.faults.end(second, State::Installed)?;
        stage.cluster.await_ready(&nodes).await?;
        stage.pause(500..1_500).await;
    }
    Ok(())
}

/// A leader whose followers stand still appends what can never commit. While it stands still itself the others go on in
/// another term; when it wakes up it has to take its entries back, and just then, with its state being flushed, its
/// power goes. If its state became durable before the end of those entries did, it can never start again.
async fn take_back(stage: &mut Stage) -> Result<()> {
    while !stage.over() {
        let leader = stage.cluster.leader().await?;
        let others: Vec<usize> = (1..=stage.cluster.nodes()).filter(|node| *node != leader).collect();
        let alone = stage.faults.begin("pause", &others, "the leader appends alone");
        stage.freeze(&others)?;
        stage.pause(300..1_000).await;
        let behind = stage
            .faults
            .begin("pause", &[leader], "the others go on in another term");
        stage.freeze(&[leader])?;
        stage.thaw(&others)?;
        stage.faults.end(alone, State::Installed)?;
        stage.leader_besides(leader).await?;
        stage.pause(500..1_500).await;
        let ms = stage.random.random_range(100..1_000);
        let slow = stage.faults.begin("slow fsync", &[leader], format!("{ms} ms"));
        stage
            .cluster
            .spoil(leader, &format!("fsync shards/0/log/ delay-ms {ms}"))
            .await?;
        stage.thaw(&[leader])?;
        stage.faults.end(behind, State::Installed)?;
        let flush = flush_state(stage, leader)?;
        stage.pause(1..1_200).await;
        stage.power_off(&[leader])?;
        flush.abort();
        stage.cluster.spoil(leader, "").await?;
        stage.faults.end(slow, State::Installed)?;
        stage.recover_from_power(&[leader]).await?;
        stage.pause(200..800).await;
    }
    Ok(())
}

/// Asks a node for one snapshot after another: each flushes its state.
fn flush_state(stage: &Stage, node: usize) -> Result<tokio::task::JoinHandle<()>> {
    let admin = stage.world.node(node, &stage.world.admin_key, "")?;
    Ok(tokio::spawn(async move {
        loop {
            // Refused while it does not lead anybody to a state, and unheard when it has no power.
            let _ = admin.snapshot().await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }))
}
