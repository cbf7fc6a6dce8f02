//! C: damaged files on a minority of the nodes. No acknowledged message is lost and no node serves wrong data: a node
//! repairs itself, or goes into quarantine and rejoins empty and under a new id.

use std::time::Duration;

use anyhow::Result;
use rand::seq::IndexedRandom as _;

use super::definition::{Cover, InSoak, Scenario};
use crate::cluster::Settings;
use crate::record::recoveries::FileKind;
use crate::scenario::nemesis::Nemesis;
use crate::scenario::nemesis::damage::{DamageKind, FileDamager};
use crate::workload;

/// Snapshots and purges every few seconds, so that every kind of file exists and changes. A nearly full disk of the
/// machine must not disturb these scenarios.
const BUSY_KEEPER: &str = "[raft]\nlog_bytes_kept = 200_000\nsnapshot_log_bytes = 200_000\nsnapshot_interval_s = 5\n\
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
        loads: &[workload::Workload::Send],
        rate: 500,
        length: Duration::from_secs(120),
        smoke: Some(Duration::from_secs(14)),
        in_soak: InSoak::Varied,
        steady_leader: false,
        needs: &[],
        cover: Cover {
            faults: &[("flip", 3)],
            operations_inside: 100,
            leader_changes: 0,
        },
        script: |nemesis| Box::pin(minority(nemesis, DamageKind::Flip, &[])),
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
        like("C2", "files of a minority are truncated", &[("cut", 3)], |nemesis| {
            Box::pin(minority(nemesis, DamageKind::Cut, &[]))
        }),
        like(
            "C3",
            "blocks of files of a minority revert to an earlier state",
            &[("rollback", 3)],
            |nemesis| Box::pin(minority(nemesis, DamageKind::RollBack, &[])),
        ),
        like(
            "C4",
            "snapshots of a minority are damaged",
            &[("flip", 1), ("cut", 1)],
            |nemesis| Box::pin(snapshots(nemesis)),
        ),
        like("C5", "a node loses all its data", &[("wipe", 3)], |nemesis| {
            Box::pin(minority(nemesis, DamageKind::Wipe, &[]))
        }),
        like(
            "C6",
            "files of one node after the other are damaged",
            &[("flip", 1), ("cut", 1)],
            |nemesis| Box::pin(one_after_another(nemesis)),
        ),
    ]
}

/// The nodes whose files may be damaged at the same time; the others are a majority.
fn choose_minority(nemesis: &mut Nemesis) -> Vec<usize> {
    let mut nodes = nemesis.shuffled();
    nodes.truncate((nodes.len() - 1) / 2);
    nodes
}

/// Damages files of the same minority again and again.
async fn minority(nemesis: &mut Nemesis, damage: DamageKind, only: &'static [FileKind]) -> Result<()> {
    let (nodes, mut damager) = (choose_minority(nemesis), FileDamager::new(only));
    while !nemesis.over() {
        nemesis.remember(&nodes, &mut damager)?;
        nemesis.pause(300..1_500).await;
        nemesis.damage(&nodes, damage, &mut damager).await?;
    }
    Ok(())
}

async fn snapshots(nemesis: &mut Nemesis) -> Result<()> {
    let (nodes, mut damager) = (choose_minority(nemesis), FileDamager::new(&[FileKind::Snapshot]));
    while !nemesis.over() {
        nemesis.pause(300..1_500).await;
        for node in &nodes {
            let admin = nemesis.ctx.node_operator(*node)?;
            // The node refuses if nothing was applied since the last snapshot; then there is one.
            let _ = admin.snapshot().await;
        }
        let damage = [DamageKind::Flip, DamageKind::Cut]
            .choose(&mut nemesis.random)
            .copied()
            .unwrap_or(DamageKind::Flip);
        nemesis.damage(&nodes, damage, &mut damager).await?;
    }
    Ok(())
}

/// Each node is ready again before the next one is damaged: at most one node at a time has no data.
async fn one_after_another(nemesis: &mut Nemesis) -> Result<()> {
    let mut damager = FileDamager::new(&[]);
    let mut node = 0;
    while !nemesis.over() {
        node = node % nemesis.cluster.nodes() + 1;
        nemesis.remember(&[node], &mut damager)?;
        nemesis.pause(300..1_500).await;
        let kinds = [
            DamageKind::Flip,
            DamageKind::Flip,
            DamageKind::Cut,
            DamageKind::Cut,
            DamageKind::RollBack,
            DamageKind::Wipe,
        ];
        let damage = kinds.choose(&mut nemesis.random).copied().unwrap_or(DamageKind::Flip);
        nemesis.damage(&[node], damage, &mut damager).await?;
    }
    Ok(())
}
