//! N: network faults between nodes: lost, late or one-way traffic. The kernel injects them if it permits, otherwise
//! proxies do.

use std::time::Duration;

use anyhow::Result;
use rand::RngExt as _;

use super::definition::{Cover, InSoak, Need, Scenario, five, three};
use crate::cluster::Settings;
use crate::cluster::network::{self, Cut, Quality};
use crate::scenario::nemesis::Nemesis;
use crate::workload;

const LOADS: &[workload::Workload] = &[workload::Workload::Send, workload::Workload::Read];

pub fn scenarios() -> Vec<Scenario> {
    [cuts(), qualities()].concat()
}

fn cuts() -> Vec<Scenario> {
    let covered = |leader_changes| Cover {
        faults: &[("partition", 3)],
        operations_inside: 100,
        leader_changes,
    };
    let n1 = Scenario {
        name: "N1",
        title: "a partition into two halves",
        cluster: cut_five,
        loads: LOADS,
        rate: 500,
        length: Duration::from_secs(60),
        smoke: None,
        in_soak: InSoak::Varied,
        steady_leader: false,
        needs: &[],
        cover: covered(1),
        script: |nemesis| Box::pin(halves(nemesis)),
    };
    vec![
        n1.clone(),
        Scenario {
            name: "N2",
            title: "the leader is cut off from the other nodes, but not from its clients",
            cluster: cut_three,
            smoke: Some(Duration::from_secs(12)),
            cover: covered(3),
            script: |nemesis| Box::pin(leader_alone(nemesis)),
            ..n1.clone()
        },
        Scenario {
            name: "N3",
            title: "two halves that only one node can reach",
            cover: covered(0),
            script: |nemesis| Box::pin(bridge(nemesis)),
            ..n1.clone()
        },
        Scenario {
            name: "N4",
            title: "open connections between nodes go silent while new ones work",
            cluster: cut_three,
            smoke: Some(Duration::from_secs(14)),
            cover: Cover {
                faults: &[("partition", 2)],
                ..covered(0)
            },
            script: |nemesis| Box::pin(silent_connections(nemesis)),
            ..n1.clone()
        },
        Scenario {
            name: "N5",
            title: "one-way cuts: a node that receives but cannot send, or the reverse",
            cluster: cut_three,
            cover: covered(0),
            script: |nemesis| Box::pin(one_way(nemesis)),
            ..n1.clone()
        },
        Scenario {
            name: "N6",
            title: "a ring: each node reaches only its two neighbours",
            cover: covered(0),
            script: |nemesis| Box::pin(ring(nemesis)),
            ..n1.clone()
        },
        Scenario {
            name: "N7",
            title: "links that go down and up every 0.1 to 2 s",
            cluster: cut_three,
            cover: covered(1),
            script: |nemesis| Box::pin(flapping(nemesis)),
            ..n1
        },
    ]
}

fn qualities() -> Vec<Scenario> {
    let n8 = Scenario {
        name: "N8",
        title: "latency of 100 ± 50 ms, and of 1 s",
        cluster: || Settings {
            network: network::NetworkKind::Proxied,
            ..three()
        },
        loads: LOADS,
        rate: 200,
        length: Duration::from_secs(60),
        smoke: None,
        in_soak: InSoak::Varied,
        steady_leader: false,
        needs: &[],
        cover: Cover {
            faults: &[("latency", 3)],
            operations_inside: 100,
            leader_changes: 0,
        },
        script: |nemesis| Box::pin(latency(nemesis)),
    };
    vec![
        n8.clone(),
        Scenario {
            name: "N9",
            title: "1 to 20 % of all packets are lost",
            cluster: || Settings {
                network: network::NetworkKind::Namespaces,
                ..three()
            },
            needs: &[Need::Namespaces],
            cover: Cover {
                faults: &[("loss", 3)],
                ..n8.cover
            },
            script: |nemesis| Box::pin(loss(nemesis)),
            ..n8.clone()
        },
        Scenario {
            name: "N10",
            title: "nodes that send at most 1 Mbit/s",
            cluster: cut_three,
            rate: 1_000,
            cover: Cover {
                faults: &[("bandwidth", 3)],
                ..n8.cover
            },
            script: |nemesis| Box::pin(bandwidth(nemesis)),
            ..n8
        },
    ]
}

fn cut_three() -> Settings {
    Settings {
        network: network::NetworkKind::cuttable(),
        ..three()
    }
}

fn cut_five() -> Settings {
    Settings {
        network: network::NetworkKind::cuttable(),
        ..five()
    }
}

/// The pause between two faults.
async fn breathe(nemesis: &mut Nemesis) {
    nemesis.pause(500..1_500).await;
}

async fn halves(nemesis: &mut Nemesis) -> Result<()> {
    while !nemesis.over() {
        breathe(nemesis).await;
        let nodes = nemesis.shuffled();
        let (some, others) = nodes.split_at(nodes.len() / 2);
        nemesis.cut_for(&Cut::between(some, others), 1_500..4_000).await?;
    }
    Ok(())
}

async fn leader_alone(nemesis: &mut Nemesis) -> Result<()> {
    while !nemesis.over() {
        breathe(nemesis).await;
        let leader = nemesis.leader().await?;
        let cut = Cut::between(&[leader], &nemesis.others(leader));
        nemesis.cut_for(&cut, 2_000..3_500).await?;
    }
    Ok(())
}

async fn bridge(nemesis: &mut Nemesis) -> Result<()> {
    while !nemesis.over() {
        breathe(nemesis).await;
        let nodes = nemesis.shuffled();
        let middle = nodes.len() / 2;
        let cut = Cut::between(&nodes[..middle], &nodes[middle + 1..]);
        nemesis.cut_for(&cut, 1_500..4_000).await?;
    }
    Ok(())
}

/// Cuts connections for longer than the nodes' HTTP/2 keep-alive needs to detect it.
async fn silent_connections(nemesis: &mut Nemesis) -> Result<()> {
    while !nemesis.over() {
        breathe(nemesis).await;
        let leader = nemesis.leader().await?;
        let others = nemesis.others(leader);
        // The connections of one follower, or all of the leader's.
        let silent = nemesis.random.random_range(1..=others.len());
        let cut = Cut::between(&[leader], &others[..silent]).of_open_connections();
        nemesis.cut_for(&cut, 4_500..6_000).await?;
    }
    Ok(())
}

async fn one_way(nemesis: &mut Nemesis) -> Result<()> {
    while !nemesis.over() {
        breathe(nemesis).await;
        let leader = nemesis.leader().await?;
        let node = match nemesis.random.random_bool(0.7) {
            true => leader,
            false => nemesis.others(leader)[0],
        };
        let others = nemesis.others(node);
        let cut = match nemesis.random.random_bool(0.5) {
            true => Cut::one_way(&[node], &others),
            false => Cut::one_way(&others, &[node]),
        };
        nemesis.cut_for(&cut, 1_500..4_000).await?;
    }
    Ok(())
}

async fn ring(nemesis: &mut Nemesis) -> Result<()> {
    while !nemesis.over() {
        breathe(nemesis).await;
        let nodes = nemesis.shuffled();
        let mut cut = Cut::default();
        for place in 0..nodes.len() {
            // Cuts the links to all nodes after its neighbour, up to the one before it.
            let far: Vec<usize> = (2..nodes.len() - 1).map(|n| nodes[(place + n) % nodes.len()]).collect();
            cut = cut.and(Cut::between(&[nodes[place]], &far));
        }
        nemesis.cut_for(&cut, 1_500..4_000).await?;
    }
    Ok(())
}

async fn flapping(nemesis: &mut Nemesis) -> Result<()> {
    while !nemesis.over() {
        let node = nemesis.shuffled()[0];
        let cut = Cut::between(&[node], &nemesis.others(node));
        let cut = match nemesis.random.random_bool(0.5) {
            true => cut,
            false => cut.with_resets(),
        };
        nemesis.cut_for(&cut, 100..2_000).await?;
        nemesis.pause(100..2_000).await;
    }
    Ok(())
}

/// A second is longer than an election timeout: no node can lead, and the cluster must recover afterwards.
async fn latency(nemesis: &mut Nemesis) -> Result<()> {
    let (some, much) = (
        Quality {
            delay_ms: 100,
            jitter_ms: 50,
            ..Quality::default()
        },
        Quality {
            delay_ms: 1_000,
            ..Quality::default()
        },
    );
    while !nemesis.over() {
        nemesis.degrade_for("latency", &some, 2_000..4_000).await?;
        breathe(nemesis).await;
        nemesis.degrade_for("latency", &much, 1_000..3_000).await?;
        breathe(nemesis).await;
    }
    Ok(())
}

async fn loss(nemesis: &mut Nemesis) -> Result<()> {
    while !nemesis.over() {
        let quality = Quality {
            loss_percent: nemesis.random.random_range(1..=20),
            ..Quality::default()
        };
        nemesis.degrade_for("loss", &quality, 2_000..5_000).await?;
        breathe(nemesis).await;
    }
    Ok(())
}

async fn bandwidth(nemesis: &mut Nemesis) -> Result<()> {
    let quality = Quality {
        bits_per_s: 1_000_000,
        ..Quality::default()
    };
    while !nemesis.over() {
        nemesis.degrade_for("bandwidth", &quality, 2_000..5_000).await?;
        breathe(nemesis).await;
    }
    Ok(())
}
