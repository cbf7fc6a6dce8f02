//! The durability floor: a lower bound for this node's log, kept outside of it.
//!
//! **The problem.** Majorities rely on what a node has confirmed: its vote, and the entries that it said were on its
//! disk. If a node comes back with less and takes part, an acknowledged write can be lost. The log cannot detect this.
//! A power cut leaves an incomplete last record, and the log must open with it; a file that lost its second half looks
//! exactly the same.
//!
//! **The idea.** A small file outside of the log records how far the log had come. The file may lag behind the log, but
//! must never be ahead of it:
//!
//! ```text
//!            vote:   log synced ──► floor synced ──► save_vote returns
//!          append:   log synced ──► callback ──► floor, later (at most every 200 ms)
//!  truncate to k:    floor lowered to k, synced ──► log truncated
//!
//!  at a start:  log's vote >= floor's vote, and the log still has the entry that the floor names
//!               (or purged it) ──► start;     anything else ──► quarantine
//! ```
//!
//! After a crash at any moment the log is at or above the floor. So a log below the floor has lost something, and the
//! node must not vote, append or serve. Other nodes have its entries: the node joins again, empty and under a new id.
//! The floor holds the whole id of the last flushed entry, not only its index, so that an older log of the same length
//! is detected too.
//!
//! **The file** has two slots of [`FLOOR_SLOT`] bytes, written in turn. A slot is: the CRC32C of the length and the
//! message, 4 bytes; the length of the message, 4 bytes, big endian; the message, a `peer::Floor`; zeros. A write that is torn by a power cut damages one
//! slot. The other still holds the previous floor, which is lower and therefore valid. If both slots are damaged, or if
//! the file is missing beside other files of the shard, the shard is damaged, because this file is the first that a
//! shard gets.
//!
//! **Truncations** race with flushes: a flush of entries that are about to be truncated may still be running, and its
//! callback must not raise the floor again. Each truncation begins a new *era*, and a [`Mark`] of an older era is
//! ignored.
//!
//! **Identity.** The file also names the cluster, the node and the format. It is the only small file with a checksum,
//! so a flipped bit in `OWNER` or `FORMAT` is corrected from it.
//!
//! **Limits.** The floor does not detect that damage removed only the entries of the last 200 ms. The leader detects
//! it, because the follower's log is then shorter than what the follower acknowledged.

#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use agentpost_proto::peer;
use bytes::Bytes;
use parking_lot::{Condvar, Mutex, MutexGuard};
use prost::Message;
use tokio::sync::oneshot;

use super::damage::Failure;
use super::error::OpenError;
use super::files;
use super::types::{LogId, Vote, log_id_from_proto, log_id_to_proto, vote_from_proto, vote_to_proto};

/// The pause between two writes that nobody waits for.
const PERIOD: Duration = Duration::from_millis(200);
/// Bytes of the checksum and the length at the beginning of a slot.
const HEAD: usize = 8;
/// Bytes of a slot. It is a page, so that a write to one slot does not touch the other.
const FLOOR_SLOT: usize = 4096;

/// The owner of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The id of the cluster.
    pub cluster_id: [u8; 16],
    /// The id of the node.
    pub node: u64,
}

impl Identity {
    fn of(floor: &peer::Floor) -> Option<Self> {
        Some(Identity {
            cluster_id: floor.cluster_id.as_ref().try_into().ok()?,
            node: floor.node,
        })
    }
}

/// The file and its content.
pub(crate) struct FloorFile {
    file: File,
    said: peer::Floor,
}

/// The result of reading the file.
enum Found {
    Whole(peer::Floor, OneBad),
    Missing,
    Bad,
}

/// Whether the other slot is damaged.
type OneBad = bool;

/// The owner of a shard, or `None` if its floor cannot be read.
pub(crate) fn identity(path: &Path) -> Option<Identity> {
    match read(path) {
        Ok(Found::Whole(floor, _)) => Identity::of(&floor),
        _ => None,
    }
}

impl FloorFile {
    /// Opens the floor of a shard. With `create` a missing file is created; it is then the first file of the shard. A
    /// file of another owner than `identity` is refused; `None` accepts every owner.
    pub(crate) fn open(path: &Path, format: &str, identity: Option<Identity>, create: bool) -> Result<Self, OpenError> {
        let damaged = |reason: &str| OpenError::quarantine(path, reason);
        let (said, bad) = match read(path).map_err(OpenError::io(path))? {
            Found::Whole(floor, bad) => (floor, bad),
            Found::Bad => return Err(damaged("both slots are damaged")),
            Found::Missing if create => {
                let identity = identity.unwrap_or(Identity {
                    cluster_id: [0; 16],
                    node: 0,
                });
                let floor = new_floor(identity, format);
                // Both slots are written at once, so that a crash cannot leave a file without a valid slot.
                let slot = encode(&floor).map_err(OpenError::io(path))?;
                files::replace_file(path, &[slot.clone(), slot].concat()).map_err(OpenError::io(path))?;
                (floor, false)
            }
            Found::Missing => return Err(damaged("it is missing, but the shard has other files")),
        };
        if said.format != format {
            return Err(OpenError::foreign(path, &said.format));
        }
        if identity.is_some() && Identity::of(&said) != identity {
            return Err(damaged("it belongs to another node or cluster"));
        }
        let file = File::options().write(true).open(path).map_err(OpenError::io(path))?;
        let mut floor = FloorFile { file, said };
        if bad {
            tracing::warn!(path = %path.display(), "one slot of FLOOR is damaged; rewriting it from the other");
            let said = floor.said.clone();
            floor.write(said).map_err(OpenError::io(path))?;
        }
        Ok(floor)
    }

    /// Whether neither a vote nor an entry was ever recorded.
    pub(crate) fn is_new(&self) -> bool {
        self.said.vote.is_none() && self.said.flushed.is_none()
    }

    /// The lowest vote that the log may have.
    pub(crate) fn vote(&self) -> Option<Vote> {
        self.said.vote.as_ref().map(vote_from_proto)
    }

    /// The entry that the log must contain or have purged.
    pub(crate) fn flushed(&self) -> Option<LogId> {
        self.said.flushed.as_ref().map(log_id_from_proto)
    }

    /// Writes the older slot, durably.
    fn write(&mut self, said: peer::Floor) -> io::Result<()> {
        self.said = peer::Floor {
            number: self.said.number + 1,
            ..said
        };
        write(&self.file, &self.said)
    }
}

fn new_floor(identity: Identity, format: &str) -> peer::Floor {
    peer::Floor {
        number: 1,
        cluster_id: Bytes::copy_from_slice(&identity.cluster_id),
        node: identity.node,
        format: format.to_owned(),
        ..Default::default()
    }
}

fn write(file: &File, floor: &peer::Floor) -> io::Result<()> {
    file.write_all_at(&encode(floor)?, floor.number % 2 * FLOOR_SLOT as u64)?;
    file.sync_data()
}

/// The bytes of a slot.
fn encode(floor: &peer::Floor) -> io::Result<Vec<u8>> {
    let message = floor.encode_to_vec();
    if HEAD + message.len() > FLOOR_SLOT {
        return Err(io::Error::other("the floor does not fit its slot"));
    }
    let length = u32::try_from(message.len()).map_err(io::Error::other)?;
    let mut slot = vec![0; 4];
    slot.extend_from_slice(&length.to_be_bytes());
    slot.extend_from_slice(&message);
    let crc = crc32c::crc32c(&slot[4..]);
    slot[..4].copy_from_slice(&crc.to_be_bytes());
    slot.resize(FLOOR_SLOT, 0);
    Ok(slot)
}

fn read(path: &Path) -> io::Result<Found> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Missing),
        Err(error) => return Err(error),
    };
    let (first, second) = bytes.split_at(bytes.len().min(FLOOR_SLOT));
    let slots = [slot(first), slot(second)];
    let bad = slots.contains(&None);
    let newest = slots.into_iter().flatten().max_by_key(|floor| floor.number);
    Ok(match newest {
        Some(floor) => Found::Whole(floor, bad),
        None => Found::Bad,
    })
}

/// The floor in a slot, or `None` if the slot is damaged.
fn slot(bytes: &[u8]) -> Option<peer::Floor> {
    let (crc, rest) = bytes.split_first_chunk::<4>()?;
    let (length, _) = rest.split_first_chunk::<4>()?;
    let used = rest.get(..4 + usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
    (crc32c::crc32c(used) == u32::from_be_bytes(*crc)).then_some(())?;
    peer::Floor::decode(&used[4..]).ok()
}

/// The last of some entries that are being flushed, with the era in which they were written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    era: u64,
    last: LogId,
}

/// A handle of the thread that writes the file. Dropping it waits until all changes are written.
pub(crate) struct Floor {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// Raises the floor. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Lift(Arc<Shared>);

struct Shared {
    wanted: Mutex<Wanted>,
    wake: Condvar,
}

/// The content that the file should get.
struct Wanted {
    said: peer::Floor,
    era: u64,
    /// Whether `said` has a change that nobody waits for.
    changed: bool,
    waiting: Vec<oneshot::Sender<io::Result<()>>>,
    closed: bool,
}

impl Floor {
    /// Starts the thread. If a write fails, it marks the log as failed through `failure`.
    pub(crate) fn spawn(mut file: FloorFile, failure: Failure) -> io::Result<Self> {
        let said = file.said.clone();
        Self::spawn_with(said, failure, move |said| file.write(said))
    }

    /// Starts the thread with another way to write, for tests.
    fn spawn_with(
        said: peer::Floor,
        failure: Failure,
        write: impl FnMut(peer::Floor) -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            wanted: Mutex::new(Wanted {
                said,
                era: 0,
                changed: false,
                waiting: Vec::new(),
                closed: false,
            }),
            wake: Condvar::new(),
        });
        let thread = std::thread::Builder::new().name("log-floor".to_owned()).spawn({
            let shared = shared.clone();
            move || {
                let _noticed = failure.on_panic("log-floor");
                shared.run(write, &failure);
            }
        })?;
        Ok(Floor {
            shared,
            thread: Some(thread),
        })
    }

    /// The handle that raises the floor when entries are durable.
    pub(crate) fn lift(&self) -> Lift {
        Lift(self.shared.clone())
    }

    /// Marks the last of the entries that were just written.
    pub(crate) fn mark(&self, last: LogId) -> Mark {
        let era = self.shared.lock().era;
        Mark { era, last }
    }

    /// Raises the vote and returns when that is durable. The log must have it durably already.
    pub(crate) async fn vote(&self, vote: &Vote) -> io::Result<()> {
        let vote = vote_to_proto(vote);
        self.urgently(|wanted| wanted.said.vote = Some(vote)).await
    }

    /// Lowers the floor before the log is truncated after `last`, and returns when that is durable.
    pub(crate) async fn lower(&self, last: Option<LogId>) -> io::Result<()> {
        {
            let mut wanted = self.shared.lock();
            wanted.era += 1;
            let index = |id: &agentpost_proto::record::LogId| id.index;
            if wanted.said.flushed.as_ref().map(index) <= last.map(|last| last.index) {
                return Ok(());
            }
        }
        let last = last.as_ref().map(log_id_to_proto);
        self.urgently(|wanted| wanted.said.flushed = last).await
    }

    async fn urgently(&self, change: impl FnOnce(&mut Wanted)) -> io::Result<()> {
        let (done, waiting) = oneshot::channel();
        {
            let mut wanted = self.shared.lock();
            change(&mut wanted);
            wanted.waiting.push(done);
        }
        self.shared.wake.notify_one();
        waiting
            .await
            .unwrap_or_else(|_| Err(io::Error::other("the thread of the durability floor has ended")))
    }
}

impl Lift {
    /// Raises the floor to a mark, whose entries must be durable.
    pub(crate) fn to(&self, mark: Mark) {
        let mut wanted = self.0.lock();
        let at = wanted.said.flushed.as_ref();
        if mark.era != wanted.era || at.is_some_and(|at| at.index >= mark.last.index) {
            return;
        }
        wanted.said.flushed = Some(log_id_to_proto(&mark.last));
        if !std::mem::replace(&mut wanted.changed, true) {
            self.0.wake.notify_one();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock()
    }

    fn run(&self, mut write: impl FnMut(peer::Floor) -> io::Result<()>, failure: &Failure) {
        while let Some((said, waiting)) = self.next() {
            let written = failure.check().and_then(|()| write(said));
            if let Err(error) = &written {
                failure.set(&format!("writing the durability floor: {error}"));
            }
            for done in waiting {
                // An error means that the receiver was dropped, because the node is stopping.
                drop(done.send(failure.check()));
            }
            self.rest();
        }
    }

    /// The next content to write, or `None` when the handle was dropped and everything is written.
    fn next(&self) -> Option<(peer::Floor, Vec<oneshot::Sender<io::Result<()>>>)> {
        let mut wanted = self.lock();
        while wanted.waiting.is_empty() && !wanted.changed {
            if wanted.closed {
                return None;
            }
            self.wake.wait(&mut wanted);
        }
        wanted.changed = false;
        Some((wanted.said.clone(), std::mem::take(&mut wanted.waiting)))
    }

    /// Waits so that changes that nobody waits for accumulate.
    fn rest(&self) {
        let idle = |wanted: &mut Wanted| wanted.waiting.is_empty() && !wanted.closed;
        self.wake.wait_while_for(&mut self.lock(), idle, PERIOD);
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            // An error means a panic, which the thread has already reported.
            drop(thread.join());
        }
    }
}
