//! E: disks that are full, fail, are slow, or take nothing. A node ends when its disk fails and is started again, as a
//! supervisor would do it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rand::RngExt;

use super::{Cover, Scenario};
use crate::cluster::Settings;
use crate::faults::State;
use crate::stage::Stage;
use crate::workload;

/// How long a node may live on after its disk has failed. The promise is a second; a machine with other things to do
/// may be late with anything.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// The databases of a node, and nothing beside them.
const DATABASES: &str = "shards/";

/// E1 to E4.
pub fn scenarios() -> Vec<Scenario> {
    let of = |name, title, faults, script| Scenario {
        name,
        title,
        cluster: || Settings {
            nodes: 3,
            shim: true,
            ..Settings::default()
        },
        loads: &[workload::Kind::Send],
        rate: 1_000,
        length: Duration::from_secs(60),
        smoke: None,
        needs: &[],
        cover: Cover {
            faults,
            operations_inside: 100,
            leader_changes: 0,
        },
        script,
    };
    vec![
        of(
            "E1",
            "a disk takes no byte more, and then does again",
            &[("enospc", 3)],
            |stage| Box::pin(full(stage)),
        ),
        of(
            "E2",
            "one flush or write fails: of the leader, of a follower",
            &[("eio", 3)],
            |stage| Box::pin(failing(stage)),
        ),
        of(
            "E3",
            "flushes take 1 to 5 s: of the leader, of a follower",
            &[("slow fsync", 3)],
            |stage| Box::pin(slow(stage)),
        ),
        of(
            "E4",
            "a disk becomes read-only, and then is writable again",
            &[("erofs", 3)],
            |stage| Box::pin(read_only(stage)),
        ),
    ]
}

impl Stage {
    /// Leader and follower in turns.
    async fn next_disk(&mut self, round: usize) -> Result<usize> {
        let leader = self.cluster.leader().await?;
        let others = self.cluster.nodes() - 1;
        Ok(match round.is_multiple_of(2) {
            true => leader,
            false => (leader + self.random.random_range(0..others)) % self.cluster.nodes() + 1,
        })
    }

    /// Waits until a node whose disk fails has ended; says after how long.
    async fn ends(&mut self, node: usize) -> Result<Duration> {
        let began = Instant::now();
        let ended = tokio::time::timeout(END_PATIENCE, self.cluster.ended(node)).await;
        ensure!(
            ended.is_ok(),
            "node {node} lives on {END_PATIENCE:?} after its disk failed"
        );
        ended.unwrap_or(Ok(()))?;
        Ok(began.elapsed())
    }

    /// A disk fails until its node has ended, and for some milliseconds more, in which it is started in vain.
    async fn fail_disk(&mut self, node: usize, kind: &str, rules: &str, lasting: bool) -> Result<()> {
        let fault = self.faults.begin(kind, &[node], rules);
        self.cluster.spoil(node, rules).await?;
        let after = self.ends(node).await?;
        eprintln!("{kind}: node {node} ended after {after:.1?}");
        if lasting {
            self.cluster.launch(&[node])?;
            self.ends(node).await?;
            self.pause(200..1_000).await;
        }
        self.cluster.spoil(node, "").await?;
        self.cluster.launch(&[node])?;
        self.cluster.await_ready(&[node]).await?;
        self.faults.end(fault, State::Installed)
    }
}

async fn full(stage: &mut Stage) -> Result<()> {
    for round in 0.. {
        if stage.over() {
            break;
        }
        stage.pause(200..1_500).await;
        let node = stage.next_disk(round).await?;
        let rules = format!("write {DATABASES} enospc\nallocate {DATABASES} enospc\nopen {DATABASES} enospc");
        stage.fail_disk(node, "enospc", &rules, true).await?;
    }
    Ok(())
}

async fn failing(stage: &mut Stage) -> Result<()> {
    for round in 0.. {
        if stage.over() {
            break;
        }
        stage.pause(200..1_500).await;
        let node = stage.next_disk(round).await?;
        let what = ["fsync", "fsync", "write"][stage.random.random_range(0..3)];
        let rules = format!("{what} {DATABASES}0/log/ eio-once");
        stage.fail_disk(node, "eio", &rules, false).await?;
    }
    Ok(())
}

async fn slow(stage: &mut Stage) -> Result<()> {
    for round in 0.. {
        if stage.over() {
            break;
        }
        stage.pause(200..1_500).await;
        let node = stage.next_disk(round).await?;
        let ms = stage.random.random_range(1_000..5_000);
        let rules = format!("fsync {DATABASES}0/log/ delay-ms {ms}");
        let fault = stage.faults.begin("slow fsync", &[node], rules.as_str());
        stage.cluster.spoil(node, &rules).await?;
        stage.pause(1_000..4_000).await;
        stage.cluster.spoil(node, "").await?;
        stage.faults.end(fault, State::Installed)?;
    }
    Ok(())
}

async fn read_only(stage: &mut Stage) -> Result<()> {
    for round in 0.. {
        if stage.over() {
            break;
        }
        stage.pause(200..1_500).await;
        let node = stage.next_disk(round).await?;
        stage
            .fail_disk(node, "erofs", &format!("* {DATABASES} erofs"), true)
            .await?;
    }
    Ok(())
}
