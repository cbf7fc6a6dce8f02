//! The durability floor: what this node's log must not fall below.
//!
//! **The problem.** A node counts in majorities by what it once wrote: its vote, and entries that it said were on
//! its disk. If it comes back with less and takes part, an acknowledged write can be lost without anybody
//! lying on purpose. RocksDB cannot tell. A power cut leaves an incomplete last record in its write-ahead log,
//! which is honest and must open; a file that lost its second half looks exactly like that.
//!
//! **The idea.** A small file outside of RocksDB says how far the log had come. It may lag, it must never be ahead:
//!
//! ```text
//!            vote:   RocksDB synced ──► floor synced ──► save_vote returns
//!          append:   RocksDB synced ──► callback ──► floor, at leisure (at most every 200 ms)
//!  truncate to k:    floor lowered to k, synced ──► RocksDB truncated
//!
//!  at a start:  log's vote >= floor's vote, and the log still has the entry that the floor names
//!               (or purged it) ──► go on;     anything else ──► quarantine
//! ```
//!
//! Whatever moment a crash picks, the log is at or above the floor; so a log below it has lost something, and the
//! node must not vote, append or serve. Other nodes have its entries: it comes back empty, under a new id.
//!
//! **The file** is two slots, written in turn, each with its checksum. A write that a power cut tears spoils one slot
//! and the other still holds the floor before it, which is lower and therefore true. Both spoiled is damage, and
//! so is a missing file beside anything else of a shard: it is the first file that a shard gets.
//!
//! **Truncations** race with flushes: entries that are to be cut off may still be on their way to the disk, and their
//! callback must not lift the floor again. Each truncation begins a new *era*; a [`Mark`] of an older era is ignored.
//!
//! **Identity.** The file also names the cluster, the node and the format, because it is the only small file with a
//! checksum: a flipped bit in `OWNER` or `FORMAT` is mended by it.
//!
//! **What is left out.** A loss of only the last 200 ms of flushed entries on one node, by damage and not by a power
//! cut, is below what the floor knows. The leader sees it, because the follower's log went back.

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
use crate::core::keys::log::FLOOR_SLOT;

/// Between two writes that nobody waits for.
const PERIOD: Duration = Duration::from_millis(200);
/// Checksum and length of a slot.
const HEAD: usize = 8;

/// Whose data this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster_id: [u8; 16],
    /// The node.
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

/// The file, and what it says.
pub(crate) struct FloorFile {
    file: File,
    said: peer::Floor,
}

/// What a shard's floor file turned out to be.
enum Found {
    Whole(peer::Floor, OneBad),
    Missing,
    Bad,
}

/// Whether the other slot does not count.
type OneBad = bool;

/// Whose shard this is, as far as its floor can be read.
pub(crate) fn identity(path: &Path) -> Option<Identity> {
    match read(path) {
        Ok(Found::Whole(floor, _)) => Identity::of(&floor),
        _ => None,
    }
}

impl FloorFile {
    /// Opens the floor of a shard. With `create` the file is made: it is then the first of its shard. `identity`
    /// is who asks, if that matters.
    pub(crate) fn open(path: &Path, format: &str, identity: Option<Identity>, create: bool) -> Result<Self, OpenError> {
        let damaged = |reason: &str| OpenError::quarantine(path, reason);
        let (said, bad) = match read(path).map_err(OpenError::io(path))? {
            Found::Whole(floor, bad) => (floor, bad),
            Found::Bad => return Err(damaged("neither of its two slots is whole")),
            Found::Missing if create => {
                let identity = identity.unwrap_or(Identity {
                    cluster_id: [0; 16],
                    node: 0,
                });
                let floor = new_floor(identity, format);
                // Both slots at once: a crash must not leave a file without a whole one.
                let slot = encode(&floor).map_err(OpenError::io(path))?;
                files::replace_file(path, &[slot.clone(), slot].concat()).map_err(OpenError::io(path))?;
                (floor, false)
            }
            Found::Missing => return Err(damaged("it is missing beside the rest of a shard")),
        };
        if said.format != format {
            return Err(OpenError::foreign(path, &said.format));
        }
        if identity.is_some() && Identity::of(&said) != identity {
            return Err(damaged("it is another node's"));
        }
        let file = File::options().write(true).open(path).map_err(OpenError::io(path))?;
        let mut floor = FloorFile { file, said };
        if bad {
            tracing::warn!(path = %path.display(), "one of two slots is not whole; the other counts");
            let said = floor.said.clone();
            floor.write(said).map_err(OpenError::io(path))?;
        }
        Ok(floor)
    }

    /// Whether nothing was ever said to be on this disk.
    pub(crate) fn is_new(&self) -> bool {
        self.said.vote.is_none() && self.said.flushed.is_none()
    }

    /// The vote that the log must not be below.
    pub(crate) fn vote(&self) -> Option<Vote> {
        self.said.vote.as_ref().map(vote_from_proto)
    }

    /// The entry that the log must have, or have purged.
    pub(crate) fn flushed(&self) -> Option<LogId> {
        self.said.flushed.as_ref().map(log_id_from_proto)
    }

    /// Writes the slot that does not hold the newest floor, durably.
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

/// A whole slot.
fn encode(floor: &peer::Floor) -> io::Result<Vec<u8>> {
    let message = floor.encode_to_vec();
    if HEAD + message.len() > FLOOR_SLOT {
        return Err(io::Error::other("the floor is longer than its slot"));
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

/// The floor in a slot, if it is whole.
fn slot(bytes: &[u8]) -> Option<peer::Floor> {
    let (crc, rest) = bytes.split_first_chunk::<4>()?;
    let (length, _) = rest.split_first_chunk::<4>()?;
    let used = rest.get(..4 + usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
    (crc32c::crc32c(used) == u32::from_be_bytes(*crc)).then_some(())?;
    peer::Floor::decode(&used[4..]).ok()
}

/// The last of some entries that are on their way to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    era: u64,
    last: LogId,
}

/// Handle of the one thread that writes the file; dropping it waits for what is queued.
pub(crate) struct Floor {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// Lifts the floor. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Lift(Arc<Shared>);

struct Shared {
    wanted: Mutex<Wanted>,
    wake: Condvar,
}

/// What the file should say.
struct Wanted {
    said: peer::Floor,
    era: u64,
    /// Something nobody waits for.
    changed: bool,
    waiting: Vec<oneshot::Sender<io::Result<()>>>,
    closed: bool,
}

impl Floor {
    /// Starts the thread. A write that fails ends the log through `failure`.
    pub(crate) fn spawn(mut file: FloorFile, failure: Failure) -> io::Result<Self> {
        let said = file.said.clone();
        Self::spawn_with(said, failure, move |said| file.write(said))
    }

    /// The same with another way to write.
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
            move || shared.run(write, &failure)
        })?;
        Ok(Floor {
            shared,
            thread: Some(thread),
        })
    }

    /// Lifts the floor when entries are durable.
    pub(crate) fn lift(&self) -> Lift {
        Lift(self.shared.clone())
    }

    /// Names the last of the entries that were just written.
    pub(crate) fn mark(&self, last: LogId) -> Mark {
        let era = self.shared.lock().era;
        Mark { era, last }
    }

    /// Raises the vote; returns when that is durable. The log has it durably already.
    pub(crate) async fn vote(&self, vote: &Vote) -> io::Result<()> {
        let vote = vote_to_proto(vote);
        self.urgently(|wanted| wanted.said.vote = Some(vote)).await
    }

    /// Lowers the floor before the log is cut behind `last`; returns when that is durable.
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
            .unwrap_or_else(|_| Err(io::Error::other("the floor's thread is gone")))
    }
}

impl Lift {
    /// These entries are durable, and everybody who waited for them was told.
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
                failure.set(&format!("the durability floor: {error}"));
            }
            for done in waiting {
                // Nobody waits any more: the node is stopping.
                drop(done.send(failure.check()));
            }
            self.rest();
        }
    }

    /// What to write next; none when the floor is closed and everything is written.
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

    /// Lets changes gather that nobody waits for.
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
            // A panic in there has been reported by the thread itself.
            drop(thread.join());
        }
    }
}
