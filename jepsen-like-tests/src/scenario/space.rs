//! E: disks that are full, fail, are slow or read-only. A node ends when its disk fails and is started again, as a
//! supervisor would do it.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rand::RngExt;

use super::definition::{Cover, InSoak, Need, Scenario};
use crate::cluster::{Settings, disk};
use crate::record::faults::FaultState;
use crate::scenario::nemesis::Nemesis;
use crate::workload;

/// How long a node may run after its disk has failed. The promise is one second; an overloaded machine may be late.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// The path of a node's databases, and of nothing else.
const DATABASES: &str = "shards/";

/// A small disk for each node, and the free space that the node reserves.
const DISK_BYTES: u64 = 256 << 20;
const SMALL_DISK: &str = "[storage]\nmin_free_bytes = 25_165_824\nmin_free_percent = 0\nballast_bytes = 33_554_432\n";

pub fn scenarios() -> Vec<Scenario> {
    let of = |name, title, faults, script| Scenario {
        name,
        title,
        cluster: || Settings {
            nodes: 3,
            disk_shim: true,
            ..Settings::default()
        },
        loads: &[workload::Workload::Send],
        rate: 1_000,
        length: Duration::from_secs(60),
        smoke: None,
        in_soak: InSoak::Varied,
        steady_leader: false,
        needs: &[],
        cover: Cover {
            faults,
            operations_inside: 100,
            leader_changes: 0,
        },
        script,
    };
    let full = Scenario {
        cluster: || Settings {
            nodes: 3,
            disk: disk::DiskKind::Images {
                bytes: DISK_BYTES,
                memory: true,
            },
            disk_shim: true,
            config: SMALL_DISK.to_owned(),
            ..Settings::default()
        },
        rate: 300,
        needs: &[Need::LoopImages],
        ..of(
            "E1",
            "a disk is full and then has room again",
            &[("full", 3)],
            |nemesis| Box::pin(full(nemesis)),
        )
    };
    vec![
        full,
        of(
            "E2",
            "one flush or write fails, of the leader or of a follower",
            &[("eio", 3)],
            |nemesis| Box::pin(failing(nemesis)),
        ),
        of(
            "E3",
            "flushes take 1 to 5 s, on the leader or on a follower",
            &[("slow fsync", 3)],
            |nemesis| Box::pin(slow(nemesis)),
        ),
        of(
            "E4",
            "a disk becomes read-only and then writable again",
            &[("erofs", 3)],
            |nemesis| Box::pin(read_only(nemesis)),
        ),
    ]
}

impl Nemesis {
    /// The leader and a follower in turns.
    async fn next_disk(&mut self, round: usize) -> Result<usize> {
        let leader = self.cluster.leader().await?;
        let others = self.cluster.nodes() - 1;
        Ok(match round.is_multiple_of(2) {
            true => leader,
            false => (leader + self.random.random_range(0..others)) % self.cluster.nodes() + 1,
        })
    }

    /// Waits until a node whose disk fails has ended.
    async fn ends(&mut self, node: usize) -> Result<()> {
        let ended = tokio::time::timeout(END_PATIENCE, self.cluster.ended(node)).await;
        ended.with_context(|| format!("node {node} did not end within {END_PATIENCE:?} after its disk failed"))?
    }

    /// Fills a node's disk except for `left` bytes for a while. With 0 bytes left the node is killed and started on
    /// the full disk.
    async fn fill_disk(&mut self, node: usize, left: u64) -> Result<()> {
        let filler = self.cluster.disk().data_dir(node).with_file_name("filler");
        let fault = self.faults.begin("full", &[node], format!("{left} bytes left"));
        fill(&filler, left)?;
        self.pause(1_500..3_000).await;
        if left == 0 {
            // The node may have used the last byte before it checked the free space.
            self.cluster.kill(node)?;
            self.cluster.launch(&[node])?;
            self.cluster
                .await_ready(&[node])
                .await
                .context("starting on a full disk")?;
            self.pause(200..1_000).await;
        }
        std::fs::remove_file(&filler)?;
        self.faults.end(fault, FaultState::Installed)
    }

    /// Injects a disk fault until the node has ended. If it lasts, another start of the node must fail, too.
    async fn fail_disk(&mut self, node: usize, kind: &str, rules: &str, lasting: bool) -> Result<()> {
        let fault = self.faults.begin(kind, &[node], rules);
        self.cluster.set_disk_faults(node, rules).await?;
        self.ends(node).await?;
        if lasting {
            self.cluster.launch(&[node])?;
            self.ends(node).await?;
            self.pause(200..1_000).await;
        }
        self.cluster.set_disk_faults(node, "").await?;
        self.cluster.launch(&[node])?;
        self.cluster.await_ready(&[node]).await?;
        self.faults.end(fault, FaultState::Installed)
    }
}

/// In turns: a nearly full disk, on which writes are refused and the node goes on; a full disk, on which the node is
/// killed and starts with nothing but its ballast; and errors without a warning.
async fn full(nemesis: &mut Nemesis) -> Result<()> {
    for round in 0.. {
        if nemesis.over() {
            break;
        }
        nemesis.pause(200..1_500).await;
        let node = nemesis.next_disk(round).await?;
        match round % 3 {
            0 => nemesis.fill_disk(node, 12 << 20).await?,
            1 => nemesis.fill_disk(node, 0).await?,
            _ => {
                let rules = format!("write {DATABASES} enospc\nallocate {DATABASES} enospc\nopen {DATABASES} enospc");
                nemesis.fail_disk(node, "full", &rules, true).await?;
            }
        }
    }
    Ok(())
}

/// Writes a file until this many bytes are left on the disk.
fn fill(path: &Path, left: u64) -> Result<()> {
    let mut file = File::create(path)?;
    let piece = vec![7; 1 << 16];
    let full = loop {
        if let Err(error) = file.write_all(&piece) {
            break error;
        }
    };
    ensure!(
        full.kind() == ErrorKind::StorageFull,
        "filling {}: {full}",
        path.display()
    );
    let length = file.metadata()?.len();
    file.set_len(length.saturating_sub(left))?;
    Ok(file.sync_all()?)
}

async fn failing(nemesis: &mut Nemesis) -> Result<()> {
    for round in 0.. {
        if nemesis.over() {
            break;
        }
        nemesis.pause(200..1_500).await;
        let node = nemesis.next_disk(round).await?;
        let what = ["fsync", "fsync", "write"][nemesis.random.random_range(0..3)];
        let rules = format!("{what} {DATABASES}0/log/ eio-once");
        nemesis.fail_disk(node, "eio", &rules, false).await?;
    }
    Ok(())
}

async fn slow(nemesis: &mut Nemesis) -> Result<()> {
    for round in 0.. {
        if nemesis.over() {
            break;
        }
        nemesis.pause(200..1_500).await;
        let node = nemesis.next_disk(round).await?;
        let ms = nemesis.random.random_range(1_000..5_000);
        let rules = format!("fsync {DATABASES}0/log/ delay-ms {ms}");
        let fault = nemesis.faults.begin("slow fsync", &[node], rules.as_str());
        nemesis.cluster.set_disk_faults(node, &rules).await?;
        nemesis.pause(1_000..4_000).await;
        nemesis.cluster.set_disk_faults(node, "").await?;
        nemesis.faults.end(fault, FaultState::Installed)?;
    }
    Ok(())
}

async fn read_only(nemesis: &mut Nemesis) -> Result<()> {
    for round in 0.. {
        if nemesis.over() {
            break;
        }
        nemesis.pause(200..1_500).await;
        let node = nemesis.next_disk(round).await?;
        nemesis
            .fail_disk(node, "erofs", &format!("* {DATABASES} erofs"), true)
            .await?;
    }
    Ok(())
}
