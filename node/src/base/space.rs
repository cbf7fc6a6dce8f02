//! Free disk space: a node refuses writes before its disk is full, because RocksDB does not survive a full disk.
//!
//! - *The limit.* The node measures free space every second. Below the larger of `storage.min_free_bytes` and
//!   `storage.min_free_percent` it refuses client operations that store something, before they are proposed: 503 with
//!   `Retry-After`, nothing changed. Reads, operations that free space and the cluster's own operations continue
//!   ([`takes_room`]). Refusing ends when the free space exceeds the limit by an eighth.
//! - *Where it applies.* On the node that a client asks, and on the leader that proposes. A full follower refuses only
//!   its own clients, which fail over to another node; a full leader refuses the writes of all and keeps leading,
//!   because it does not hand leadership over yet.
//! - *The ballast.* A file that only occupies space. If a node starts with less free space than the ballast's size, it
//!   deletes the ballast, so that RocksDB can open and Raft's own entries fit. A running node never deletes it:
//!   whatever fills the disk would take that space too, and the next start would have none. A deleted ballast is
//!   written again once enough space beyond the limit is free.
//!
//! The decision is pure ([`Rule`]); the rest of the file measures the disk and writes the ballast.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use agentpost_proto::command::{Operation, operation};
use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::Errno;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::base::config::{Config, Storage};
use crate::base::metrics::{Metrics, gauge};
use crate::base::repeats::Repeats;

/// How often the free space is measured.
const LOOK: Duration = Duration::from_secs(1);
/// The name of the ballast in the data directory.
const BALLAST: &str = "BALLAST";
const MIB: u64 = 1024 * 1024;

/// A measurement of the disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Room {
    total: u64,
    free: u64,
    /// Bytes of the ballast that are allocated.
    ballast: u64,
}

/// The configured limits, and the decisions that follow from them.
#[derive(Debug, Clone, Copy)]
struct Rule {
    min_free_bytes: u64,
    min_free_percent: u64,
    ballast_bytes: u64,
}

impl Rule {
    /// Bytes that must be free beside a whole ballast; 0 switches the check off.
    fn limit(&self, total: u64) -> u64 {
        self.min_free_bytes.max(total / 100 * self.min_free_percent)
    }

    /// Bytes that must be free before writes are accepted again.
    fn enough(&self, room: Room) -> u64 {
        let limit = self.limit(room.total);
        let missing = self.ballast_bytes.saturating_sub(room.ballast);
        limit.saturating_add(limit / 8).saturating_add(missing)
    }

    /// Bytes that would be free beside a whole ballast.
    fn usable(&self, room: Room) -> u64 {
        (room.free + room.ballast).saturating_sub(self.ballast_bytes)
    }

    /// Whether writes are refused now. `refused` says whether they were at the last measurement.
    fn refuses(&self, room: Room, refused: bool) -> bool {
        let limit = self.limit(room.total);
        limit > 0
            && match refused {
                true => room.free < self.enough(room),
                false => self.usable(room) < limit,
            }
    }

    /// Whether a starting node deletes its ballast.
    fn gives_up_ballast(&self, room: Room) -> bool {
        room.ballast > 0 && room.free < self.ballast_bytes
    }

    /// Whether the ballast is written again: only with so much space that the next start would keep it.
    fn makes_ballast(&self, room: Room, refused: bool) -> bool {
        room.ballast < self.ballast_bytes && !refused && self.usable(room) >= self.ballast_bytes
    }
}

/// When the disk is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    /// Before the databases are opened.
    Start,
    /// While the node runs.
    Later,
}

/// Whether an operation stores more than it removes. Operations that free space, that are bounded, or that belong to
/// the cluster itself are accepted on a full disk.
pub fn takes_room(operation: &Operation) -> bool {
    use operation::Op;
    matches!(
        &operation.op,
        Some(
            Op::CreateTeam(_)
                | Op::UpdateTeam(_)
                | Op::CreateKey(_)
                | Op::RegisterAgent(_)
                | Op::StartLogin(_)
                | Op::DecideLogin(_)
                | Op::ClaimLogin(_)
                | Op::Send(_)
                | Op::SendBatch(_)
                | Op::Subscribe(_)
                | Op::RegisterWebhook(_)
                | Op::RotateSigningKeys(_)
                | Op::Redrive(_)
        )
    )
}

/// The free space of this node. Clones are cheap and share one measurement.
#[derive(Clone)]
pub struct Space {
    shared: Arc<Shared>,
}

struct Shared {
    node: u64,
    dir: PathBuf,
    rule: Rule,
    free: AtomicU64,
    /// Bytes free beyond the limit.
    spare: AtomicU64,
    refusing: AtomicBool,
    /// The error text while writes are refused.
    reason: Mutex<String>,
    /// Whether this process wrote a whole ballast. A compressing file system reports fewer blocks than its length, so
    /// without this flag the ballast would be written again every second.
    whole: AtomicBool,
    failures: Repeats<&'static str>,
}

impl Space {
    /// Measures the disk and deletes the ballast if the databases could not open beside it. The data directory must
    /// exist. Blocks the thread.
    pub fn open(config: &Config) -> Self {
        let Storage {
            min_free_bytes,
            min_free_percent,
            ballast_bytes,
            ..
        } = config.storage;
        let shared = Shared {
            node: config.node.id,
            dir: config.node.data_dir.clone(),
            rule: Rule {
                min_free_bytes,
                min_free_percent: u64::from(min_free_percent),
                ballast_bytes,
            },
            free: AtomicU64::new(0),
            spare: AtomicU64::new(0),
            refusing: AtomicBool::new(false),
            reason: Mutex::default(),
            whole: AtomicBool::new(false),
            failures: Repeats::default(),
        };
        let space = Space {
            shared: Arc::new(shared),
        };
        space.shared.look(Moment::Start);
        space
    }

    /// `None` while there is room; otherwise why writes are refused, and what the operator can do.
    pub fn refusal(&self) -> Option<String> {
        let shared = &self.shared;
        if !shared.refusing.load(Ordering::Relaxed) {
            return None;
        }
        Some(shared.reason.lock().clone())
    }

    /// Bytes that may still be written before writes are refused, as of the last measurement.
    pub fn spare(&self) -> u64 {
        self.shared.spare.load(Ordering::Relaxed)
    }

    /// Measures the disk and keeps the ballast until `shutdown`.
    pub async fn run(self, metrics: Metrics, shutdown: CancellationToken) {
        let looking = async {
            loop {
                let shared = Arc::clone(&self.shared);
                if let Err(error) = tokio::task::spawn_blocking(move || shared.look(Moment::Later)).await {
                    tracing::error!(%error, "measuring the disk panicked; the measurement is repeated in a second; please report this");
                }
                self.measure(&metrics);
                sleep(LOOK).await;
            }
        };
        shutdown.run_until_cancelled(looking).await;
    }

    fn measure(&self, metrics: &Metrics) {
        let shared = &self.shared;
        metrics
            .storage
            .free_bytes
            .set(gauge(shared.free.load(Ordering::Relaxed)));
        let refusing = shared.refusing.load(Ordering::Relaxed);
        metrics.storage.refusing.set(i64::from(refusing));
    }
}

impl Shared {
    fn look(&self, moment: Moment) {
        let room = match self.room() {
            Ok(room) => room,
            Err(error) => {
                if let Some(left_out) = self.failures.due("measure") {
                    tracing::warn!(%error, left_out, dir = %self.dir.display(), "statvfs failed; the last measurement stays in force; check the file system");
                }
                return;
            }
        };
        self.free.store(room.free, Ordering::Relaxed);
        let spare = self.rule.usable(room).saturating_sub(self.rule.limit(room.total));
        self.spare.store(spare, Ordering::Relaxed);
        self.judge(room);
        let refused = self.refusing.load(Ordering::Relaxed);
        match moment {
            Moment::Start if room.ballast > self.rule.ballast_bytes || self.rule.gives_up_ballast(room) => {
                self.give_up_ballast(room);
            }
            Moment::Later if self.rule.makes_ballast(room, refused) => match self.make_ballast() {
                Ok(()) => self.whole.store(true, Ordering::Relaxed),
                Err(error) => {
                    if let Some(left_out) = self.failures.due("ballast") {
                        tracing::warn!(%error, left_out, "the ballast could not be written; trying again in a second; check the file system");
                    }
                }
            },
            _ => {}
        }
    }

    fn judge(&self, room: Room) {
        let refused = self.refusing.load(Ordering::Relaxed);
        let refuses = self.rule.refuses(room, refused);
        if refuses {
            let reason = format!(
                "node {} takes no writes: {} has {} MiB free and {} MiB are needed; free space there, lower \
                 storage.min_free_bytes and storage.min_free_percent, or use another node; nothing was changed",
                self.node,
                self.dir.display(),
                room.free / MIB,
                self.rule.enough(room).div_ceil(MIB),
            );
            if !refused {
                tracing::error!(reason, "the disk is nearly full; free space or lower the limits");
            }
            *self.reason.lock() = reason;
        } else if refused {
            tracing::info!(free_bytes = room.free, "the disk has room again; writes are taken");
        }
        self.refusing.store(refuses, Ordering::Relaxed);
    }

    fn ballast(&self) -> PathBuf {
        self.dir.join(BALLAST)
    }

    fn room(&self) -> io::Result<Room> {
        let disk = statvfs(&self.dir)?;
        let ballast = match fs::metadata(self.ballast()) {
            Ok(found) if self.whole.load(Ordering::Relaxed) => found.len(),
            // `st_blocks` counts units of 512 bytes on every file system.
            Ok(found) => found.len().min(found.blocks() * 512),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        Ok(Room {
            total: disk.f_blocks * disk.f_frsize,
            free: disk.f_bavail * disk.f_frsize,
            ballast,
        })
    }

    fn give_up_ballast(&self, room: Room) {
        match fs::remove_file(self.ballast()) {
            Ok(()) => tracing::warn!(
                free_bytes = room.free,
                ballast_bytes = room.ballast,
                "the ballast was deleted so that the node can start; free space on this disk"
            ),
            Err(error) => tracing::warn!(%error, "the ballast could not be deleted; free space on this disk"),
        }
    }

    /// Writes the ballast with allocated blocks: deleting a sparse file would free nothing.
    fn make_ballast(&self) -> io::Result<()> {
        let path = self.ballast();
        gone(fs::remove_file(&path))?;
        let file = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
        let made = match fallocate(&file, FallocateFlags::empty(), 0, self.rule.ballast_bytes) {
            Err(Errno::OPNOTSUPP) => write_zeros(&file, self.rule.ballast_bytes),
            allocated => allocated.map_err(io::Error::from),
        };
        made.and_then(|()| file.sync_all()).inspect_err(|_| {
            // A partial ballast is useless. If it cannot be removed, the next measurement finds it.
            drop(fs::remove_file(&path));
        })
    }
}

/// Accepts that the file did not exist.
fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

fn write_zeros(mut file: &File, bytes: u64) -> io::Result<()> {
    let zeros = vec![0; MIB as usize];
    let mut left = bytes;
    while left > 0 {
        let piece = left.min(MIB);
        file.write_all(&zeros[..piece as usize])?;
        left -= piece;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
