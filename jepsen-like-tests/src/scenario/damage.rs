//! C: damaged files on a minority of the nodes. No acknowledged message is lost and no node serves wrong data: a node
//! repairs itself, or goes into quarantine and rejoins empty and under a new id.

use std::time::Duration;

use anyhow::Result;
use rand::seq::IndexedRandom as _;

use super::{Cover, Scenario};
use crate::cluster::Settings;
use crate::recovery::Part;
use crate::stage::Stage;
use crate::stage::damage::{Damager, Way};
use crate::workload;

/// Snapshots and purges every few seconds, so that every kind of file exists and changes. A nearly full disk of the
/// machine must not disturb these scenarios.
const BUSY_KEEPER: &str = "[raft]\nlog_entries_kept = 500\nsnapshot_log_bytes = 200_000\nsnapshot_interval_s = 5\n\
                           [storage]\nmin_free_percent = 1\n";

pub fn scenarios() -> Vec<Scenario> {
    let flips = Scenario {
        name: "C1",
        title: "bits flip in files of a minority",
        cluster: || Settings {
            nodes: 3,
            config: BUSY_KEEPER.to_owned(),
            ..Settings::default()
        },
        loads: &[workload::Kind::Send],
        rate: 500,
        length: Duration::from_secs(120),
        smoke: Some(Duration::from_secs(14)),
        needs: &[],
        cover: Cover {
            faults: &[("flip", 3)],
            operations_inside: 100,
            leader_changes: 0,
        },
        script: |stage| Box::pin(minority(stage, Way::Flip, &[])),
    };
    let like = |name, title, faults, script| Scenario {
        name,
        title,
        smoke: None,
        cover: Cover { faults, ..flips.cover },
        script,
        ..flips.clone()
    };
    vec![
        flips.clone(),
        like("C2", "files of a minority are truncated", &[("cut", 3)], |stage| {
            Box::pin(minority(stage, Way::Cut, &[]))
        }),
        like(
            "C3",
            "blocks of files of a minority revert to an earlier state",
            &[("rollback", 3)],
            |stage| Box::pin(minority(stage, Way::RollBack, &[])),
        ),
        like(
            "C4",
            "snapshots of a minority are damaged",
            &[("flip", 1), ("cut", 1)],
            |stage| Box::pin(snapshots(stage)),
        ),
        like("C5", "a node loses all its data", &[("wipe", 3)], |stage| {
            Box::pin(minority(stage, Way::Wipe, &[]))
        }),
        like(
            "C6",
            "files of one node after the other are damaged",
            &[("flip", 1), ("cut", 1)],
            |stage| Box::pin(one_after_another(stage)),
        ),
    ]
}

/// The nodes whose files may be damaged at the same time; the others are a majority.
fn choose_minority(stage: &mut Stage) -> Vec<usize> {
    let mut nodes = stage.shuffled();
    nodes.truncate((nodes.len() - 1) / 2);
    nodes
}

/// Damages files of the same minority again and again.
async fn minority(stage: &mut Stage, way: Way, only: &'static [Part]) -> Result<()> {
    let (nodes, mut damager) = (choose_minority(stage), Damager::new(only));
    while !stage.over() {
        stage.remember(&nodes, &mut damager)?;
        stage.pause(300..1_500).await;
        stage.damage(&nodes, way, &mut damager).await?;
    }
    Ok(())
}

async fn snapshots(stage: &mut Stage) -> Result<()> {
    let (nodes, mut damager) = (choose_minority(stage), Damager::new(&[Part::Snapshot]));
    while !stage.over() {
        stage.pause(300..1_500).await;
        for node in &nodes {
            let admin = stage.world.node(*node, &stage.world.admin_key, "")?;
            // The node refuses if nothing was applied since the last snapshot; then there is one.
            let _ = admin.snapshot().await;
        }
        let way = [Way::Flip, Way::Cut]
            .choose(&mut stage.random)
            .copied()
            .unwrap_or(Way::Flip);
        stage.damage(&nodes, way, &mut damager).await?;
    }
    Ok(())
}

/// Each node is ready again before the next one is damaged: at most one node at a time has no data.
async fn one_after_another(stage: &mut Stage) -> Result<()> {
    let mut damager = Damager::new(&[]);
    let mut node = 0;
    while !stage.over() {
        node = node % stage.cluster.nodes() + 1;
        stage.remember(&[node], &mut damager)?;
        stage.pause(300..1_500).await;
        let ways = [Way::Flip, Way::Flip, Way::Cut, Way::Cut, Way::RollBack, Way::Wipe];
        let way = ways.choose(&mut stage.random).copied().unwrap_or(Way::Flip);
        stage.damage(&[node], way, &mut damager).await?;
    }
    Ok(())
}
