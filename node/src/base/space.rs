//! Room on the disk: a node stops taking writes before its disk is full, because RocksDB does not survive a full one.
//!
//! - *The limit.* Free space is looked at every second. Below the larger of `storage.min_free_bytes` and
//!   `storage.min_free_percent`, operations of clients that leave something behind are refused before they are proposed:
//!   503 with `Retry-After`, and nothing was changed. Reads, whatever makes room and the cluster's own operations go on
//!   ([`takes_room`]). It ends by itself when an eighth more than the limit is free again.
//! - *Where it applies.* Twice: where a client's operation arrives, and on the leader, where it is proposed. So one full
//!   follower turns its own clients away, who find another node; a full leader stops the writes of all.
//! - *The ballast.* A file that does nothing but occupy space. If a node starts with less than that free, it is given up,
//!   so that RocksDB can open and Raft's own entries fit. Not before: whatever fills the disk would take it, too, and stops
//!   when the disk is full. It counts as missing until there is room to make it again, above the limit.
//!
//! The rule is pure ([`Rule`]); the rest of the file asks the disk and makes the file.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agentpost_proto::command::{Operation, operation};
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::Errno;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::base::config::{Config, Storage};
use crate::base::metrics::{Metrics, gauge};

/// How often the disk is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// The file in the data directory.
const BALLAST: &str = "BALLAST";
const MIB: u64 = 1024 * 1024;

/// What a disk has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Room {
    total: u64,
    free: u64,
    /// Of the ballast, what is there.
    ballast: u64,
}

/// What is decided by it.
#[derive(Debug, Clone, Copy)]
struct Rule {
    min_free_bytes: u64,
    min_free_percent: u64,
    ballast_bytes: u64,
}

impl Rule {
    /// What shall be free beside a whole ballast; 0 = nothing is asked for.
    fn limit(&self, total: u64) -> u64 {
        self.min_free_bytes.max(total / 100 * self.min_free_percent)
    }

    /// What must be free for writes to be taken again.
    fn enough(&self, room: Room) -> u64 {
        let limit = self.limit(room.total);
        let missing = self.ballast_bytes.saturating_sub(room.ballast);
        limit.saturating_add(limit / 8).saturating_add(missing)
    }

    /// What would be free if the ballast were whole.
    fn usable(&self, room: Room) -> u64 {
        (room.free + room.ballast).saturating_sub(self.ballast_bytes)
    }

    /// Whether writes are refused, given whether they were before.
    fn refuses(&self, room: Room, refused: bool) -> bool {
        let limit = self.limit(room.total);
        limit > 0
            && match refused {
                true => room.free < self.enough(room),
                false => self.usable(room) < limit,
            }
    }

    /// Asked at the start.
    fn gives_up_ballast(&self, room: Room) -> bool {
        room.ballast > 0 && room.free < self.ballast_bytes
    }

    /// Never so that the next start would give it up.
    fn makes_ballast(&self, room: Room, refused: bool) -> bool {
        room.ballast < self.ballast_bytes && !refused && self.usable(room) >= self.ballast_bytes
    }
}

/// When the disk is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    /// Before the databases are opened.
    Start,
    /// Beside them.
    Later,
}

/// Whether an operation leaves more behind than it takes away. What makes room, what is bounded and what is the cluster's
/// own goes on while others are refused.
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

/// The room of this node. Cheap to clone.
#[derive(Clone)]
pub struct Space {
    shared: Arc<Shared>,
}

struct Shared {
    node: u64,
    dir: PathBuf,
    rule: Rule,
    free: AtomicU64,
    refusing: AtomicBool,
    /// What is told while writes are refused.
    reason: Mutex<String>,
    /// Whether a ballast of the right length has been found or made whole by this process: a file system that packs
    /// zeros would have it made again at every look.
    whole: AtomicBool,
}

impl Space {
    /// Looks at the disk, and gives the ballast up if the databases could not open beside it. The data directory is there.
    /// Blocks.
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
            refusing: AtomicBool::new(false),
            reason: Mutex::default(),
            whole: AtomicBool::new(false),
        };
        let space = Space {
            shared: Arc::new(shared),
        };
        space.shared.look(Moment::Start);
        space
    }

    /// Nothing while there is room; otherwise why writes are refused, and what to do about it.
    pub fn refusal(&self) -> Option<String> {
        let shared = &self.shared;
        if !shared.refusing.load(Ordering::Relaxed) {
            return None;
        }
        Some(shared.reason.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Looks after disk and ballast until `shutdown`.
    pub async fn run(self, metrics: Metrics, shutdown: CancellationToken) {
        let looking = async {
            loop {
                let shared = Arc::clone(&self.shared);
                if let Err(error) = tokio::task::spawn_blocking(move || shared.look(Moment::Later)).await {
                    tracing::error!(%error, "looking at the disk panicked");
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
                return tracing::warn!(%error, dir = %self.dir.display(), "the free space cannot be found out");
            }
        };
        self.free.store(room.free, Ordering::Relaxed);
        self.judge(room);
        let refused = self.refusing.load(Ordering::Relaxed);
        match moment {
            Moment::Start if room.ballast > self.rule.ballast_bytes || self.rule.gives_up_ballast(room) => {
                self.give_up_ballast(room);
            }
            Moment::Later if self.rule.makes_ballast(room, refused) => match self.make_ballast() {
                Ok(()) => self.whole.store(true, Ordering::Relaxed),
                Err(error) => tracing::warn!(%error, "no ballast"),
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
                tracing::error!(reason, "the disk is nearly full");
            }
            *self.reason.lock().unwrap_or_else(PoisonError::into_inner) = reason;
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
            // In units of 512 bytes, whatever the file system's own are.
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
            Ok(()) => tracing::warn!(free_bytes = room.free, ballast_bytes = room.ballast, "ballast given up"),
            Err(error) => tracing::warn!(%error, "the ballast cannot be given up"),
        }
    }

    /// Really allocated: a sparse file would give nothing back.
    fn make_ballast(&self) -> io::Result<()> {
        let path = self.ballast();
        gone(fs::remove_file(&path))?;
        let file = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
        let made = match fallocate(&file, FallocateFlags::empty(), 0, self.rule.ballast_bytes) {
            Err(Errno::OPNOTSUPP) => write_zeros(&file, self.rule.ballast_bytes),
            allocated => allocated.map_err(io::Error::from),
        };
        made.and_then(|()| file.sync_all()).inspect_err(|_| {
            // Half a ballast would only be in the way; the next look finds it if it cannot be removed.
            drop(fs::remove_file(&path));
        })
    }
}

/// It may not have been there.
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
