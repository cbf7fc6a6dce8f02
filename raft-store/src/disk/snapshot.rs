//! Snapshots: the state at one log index, as files.
//!
//! **The problem.** The log cannot grow for ever, and a node that was away for long cannot catch up from purged
//! entries. Both need a copy of the state that can be kept, sent and installed. The state may be tens of gigabytes.
//! Reading every row, sending it and writing it again costs 10 to 20 times the CPU of copying RocksDB's files, and much
//! memory. So a snapshot *is* a RocksDB checkpoint: a directory of hard links to immutable files, and a manifest.
//!
//! ```text
//!  leader                                          follower
//!  state/db-1 ──checkpoint──► snapshots/            incoming/0 ──rename──► snapshots/
//!     (links, instant)          snap-7-1-900           ▲                     snap-7-1-900
//!                                 SNAPSHOT   ──────────┘                        │ links
//!                                 000012.sst   chunks, checksums                ▼
//!                                 ...                            state/db-2, then state/CURRENT = db-2
//! ```
//!
//! **Building.** All of it runs beside apply, on a blocking thread. Taking the checkpoint flushes the state, so the state
//! is durable up to the snapshot. openraft purges the log only up to a snapshot, so the log never loses an entry that
//! the state could still need. Entries that are applied meanwhile are in the checkpoint or are not: the rows of a batch
//! and its applied position are one write, so the checkpoint ends after some batch. Which one is read back *from* the
//! checkpoint, as is the membership. openraft accepts that it is a later one than when it asked, because it counts an
//! entry as given to the state machine before that applies it. The CRC32C of files that are new since the last snapshot
//! is computed at a limited rate, because the log is on the same disk. The directory is built under a name that ends in
//! `.tmp`, synced, then renamed.
//!
//! **Receiving.** [`Receiver`] takes the files in chunks, in the order of the manifest, checks each length and
//! checksum, syncs, and opens the result read-only to check that it holds what the manifest claims. Then the new state is
//! prepared beside the live one: a directory is built from links to the received files, synced, renamed and opened, and
//! its last applied entry is checked. The file `PREPARED` in it tells a start not to use it, because the log may not fit to
//! it yet. Only then it becomes a [`SnapshotData`]. If a transfer breaks off, its complete files are kept, and the next transfer sends only
//! the others ([`Snapshots::held`]).
//!
//! **Installing.** openraft applies nothing meanwhile, so only what takes the same time for a state of any size is done
//! here. Every step leaves either the old state or the new one. A step that a crash interrupted is repeated or undone at
//! the next start:
//! 1. The received directory is renamed to be the newest snapshot. From now on a restart finishes the installation,
//!    because openraft installs a stored snapshot that is newer than the state.
//! 2. `PREPARED` is removed, and `state/CURRENT` is replaced. At this moment the new state becomes the live state.
//! 3. Later reads get the new database. Reads of the old one finish on it; when the last one is done it is closed and
//!    its directory removed, on a thread of its own, as is the snapshot that was replaced.
//!
//! openraft makes the truncation of a conflicting log durable before the installation, and purges the log after it.
//!
//! **Rules.** Only the newest snapshot is kept. A replaced one is removed when nobody streams it any more. A snapshot
//! that ends before the log begins is not offered, because the log does not continue it; openraft then builds another.
//! File names from the network are checked: they must be names, never paths.
//!
//! A damaged state is restored from the snapshot (`repair.rs`). A checkpoint shares its files with the live state, so
//! one bad block can damage both, and the checksums are compared before. A damaged snapshot is removed at the next
//! start, and openraft takes another.
//!
//! **Limits.** Files that the receiver has in its own state are sent again.

pub(crate) mod install;
mod kept;
mod manifest;
mod receiver;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use agentpost_proto::peer;
use bytes::Bytes;
use futures::{Stream, stream};
use openraft::storage::RaftSnapshotBuilder;
use openraft::type_config::alias::{SnapshotMetaOf, SnapshotOf};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::mpsc;

use self::install::{Prepared, States};
use self::kept::Kept;
pub(crate) use self::manifest::{membership_row, stored_membership};
pub use self::receiver::Receiver;
use super::damage::Damage;
use super::error::OpenError;
use super::files::{self, DirGuard};
use super::layout::Layout;
use super::log_store::PurgePoint;
use super::options::Options;
use super::read_all::Pace;
use super::state::{StateDb, StateHandle};
use super::types::{LogId, Malformed, TypeConfig, log_id_from_proto};

/// Bytes of one snapshot chunk.
const CHUNK_BYTES: usize = 1024 * 1024;

/// A snapshot in openraft's form.
pub type Snapshot = SnapshotOf<TypeConfig, SnapshotData>;

/// A complete snapshot on this node's disk. Its files are kept as long as a clone of this exists. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SnapshotData {
    dir: Arc<DirGuard>,
    meta: Arc<peer::SnapshotMeta>,
    checked: Checked,
    prepared: Prepared,
}

/// How much of a snapshot this process has compared with the manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Checked {
    /// Every byte.
    Content,
    /// Only that every file exists with its length.
    Length,
}

impl SnapshotData {
    fn new(dir: DirGuard, meta: peer::SnapshotMeta, checked: Checked) -> Self {
        SnapshotData {
            dir: Arc::new(dir),
            meta: Arc::new(meta),
            checked,
            prepared: Prepared::default(),
        }
    }

    /// The manifest: what the snapshot covers, and its files.
    pub fn meta(&self) -> &peer::SnapshotMeta {
        &self.meta
    }

    /// The directory of the files.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The total size of all files.
    pub fn bytes(&self) -> u64 {
        self.meta.files.iter().map(|file| file.size).sum()
    }

    /// The snapshot's metadata in openraft's form.
    pub fn openraft_meta(&self) -> Result<SnapshotMetaOf<TypeConfig>, Malformed> {
        Ok(SnapshotMetaOf::<TypeConfig> {
            last_log_id: self.last_log_id(),
            last_membership: stored_membership(&self.meta)?,
        })
    }

    /// Converts it to openraft's form, for `Raft::install_full_snapshot`.
    pub fn into_snapshot(self) -> Result<Snapshot, Malformed> {
        Ok(Snapshot {
            meta: self.openraft_meta()?,
            snapshot: self,
        })
    }

    /// The bytes of all files but those with the numbers `held`, in chunks: the number of the file in the manifest, and
    /// its next bytes. A blocking thread reads a few chunks ahead. Dropping the stream ends it.
    pub fn chunks(&self, held: &[u32]) -> impl Stream<Item = io::Result<(u32, Bytes)>> + Send + Unpin + use<> {
        let (chunks, mut reading) = mpsc::channel(4);
        let (data, held) = (self.clone(), held.to_vec());
        tokio::task::spawn_blocking(move || {
            if let Err(error) = data.read_into(&held, &chunks) {
                // An error means that the stream was dropped.
                drop(chunks.blocking_send(Err(error)));
            }
        });
        stream::poll_fn(move |context| reading.poll_recv(context))
    }

    fn read_into(&self, held: &[u32], chunks: &mpsc::Sender<io::Result<(u32, Bytes)>>) -> io::Result<()> {
        for (number, entry) in (0..).zip(&self.meta.files) {
            if held.contains(&number) {
                continue;
            }
            let mut file = File::open(self.dir().join(&entry.name))?;
            let mut left = entry.size;
            while left > 0 {
                let size = left.min(CHUNK_BYTES as u64);
                let mut chunk = Vec::new();
                if file.by_ref().take(size).read_to_end(&mut chunk)? as u64 != size {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
                }
                left -= size;
                if chunks.blocking_send(Ok((number, Bytes::from(chunk)))).is_err() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn last_log_id(&self) -> Option<LogId> {
        self.meta.last_log_id.as_ref().map(log_id_from_proto)
    }

    pub(crate) fn name(&self) -> String {
        name_of(&self.meta)
    }

    /// Compares every byte with the manifest, or stops early if `pace` says so.
    pub(crate) fn verify(&self, pace: &mut Pace<'_>) -> io::Result<()> {
        manifest::verify(self.dir(), &self.meta, |bytes| pace.advance(bytes))
    }

    /// The inode numbers of its table files that do not match the manifest. A state may share these files.
    pub(crate) fn damaged_tables(&self) -> io::Result<BTreeSet<u64>> {
        manifest::damaged_tables(self.dir(), &self.meta)
    }
}

/// The directory of a snapshot is named after the last entry that it covers.
fn name_of(meta: &peer::SnapshotMeta) -> String {
    match &meta.last_log_id {
        Some(id) => format!("snap-{}-{}-{}", id.term, id.node, id.index),
        None => "snap-empty".to_owned(),
    }
}

/// The snapshots of a shard. Only the newest one is kept.
pub struct Snapshots {
    dir: PathBuf,
    incoming: PathBuf,
    kept: Kept,
    receptions: AtomicU64,
    purge_point: PurgePoint,
    states: Arc<States>,
    newest: Mutex<Option<SnapshotData>>,
}

impl Snapshots {
    /// Finds the newest snapshot, and removes all others and what a crash left unfinished.
    pub(crate) fn open(
        layout: &Layout,
        options: &Options,
        damage: Damage,
        purge_point: PurgePoint,
    ) -> Result<Self, OpenError> {
        let (dir, incoming) = (layout.snapshots(), layout.incoming());
        files::remove_dir(&incoming).map_err(OpenError::io(&incoming))?;
        files::create_dir(&incoming).map_err(OpenError::io(&incoming))?;
        files::create_dir(&dir).map_err(OpenError::io(&dir))?;
        let mut newest: Option<SnapshotData> = None;
        for name in files::names(&dir).map_err(OpenError::io(&dir))? {
            // Every directory but the newest snapshot is removed when its guard is dropped.
            let guard = DirGuard::doomed(dir.join(&name));
            match manifest::read(guard.path()) {
                Ok(meta) if name_of(&meta) == name => {
                    let found = SnapshotData::new(guard, meta, Checked::Length);
                    if newest.as_ref().is_none_or(|n| n.last_log_id() < found.last_log_id()) {
                        newest = Some(found);
                    }
                }
                Ok(_) => {}
                Err(error) if name.ends_with(".tmp") => {
                    tracing::info!(name, %error, "removing a snapshot that was not finished");
                }
                Err(error) => tracing::warn!(name, %error, "removing a damaged snapshot; a new one will be taken"),
            }
        }
        if let Some(newest) = &newest {
            newest.dir.spare();
        }
        Ok(Snapshots {
            dir,
            kept: Kept::new(incoming.join("kept")),
            incoming,
            receptions: AtomicU64::new(0),
            purge_point,
            states: Arc::new(States {
                layout: layout.clone(),
                options: options.clone(),
                damage,
                turn: Mutex::new(()),
            }),
            newest: Mutex::new(newest),
        })
    }

    /// The numbers of the files of a snapshot that this node has whole, from a transfer that broke off.
    pub fn held(&self, meta: &peer::SnapshotMeta) -> Vec<u32> {
        self.kept.held(meta)
    }

    /// Begins to receive a snapshot from another node, in a new directory. The sender leaves out the files `held`, which
    /// must be some of [`Snapshots::held`]. Blocks.
    pub fn receive(&self, meta: peer::SnapshotMeta, held: &[u32]) -> io::Result<Receiver> {
        let number = self.receptions.fetch_add(1, Ordering::Relaxed);
        let dir = self.incoming.join(number.to_string());
        Receiver::begin(&dir, meta, held, self.kept.clone(), self.states.clone())
    }

    /// How many files of transfers that broke off were kept since the start, whether they are here still or not.
    pub fn files_kept(&self) -> u64 {
        self.kept.count()
    }

    /// Removes what is kept of a transfer that broke off. Blocks.
    pub fn forget_kept(&self) -> io::Result<()> {
        self.kept.clear()
    }

    /// The newest snapshot, if this node's log continues it.
    pub(crate) fn newest(&self) -> Option<SnapshotData> {
        let newest = self.lock().clone()?;
        let purged = self.purge_point.get();
        (newest.last_log_id() >= purged).then_some(newest)
    }

    /// The newest snapshot, even if the log does not continue it.
    pub(crate) fn kept(&self) -> Option<SnapshotData> {
        self.lock().clone()
    }

    /// Removes the newest snapshot, because it is damaged.
    pub(crate) fn discard(&self) {
        if let Some(newest) = self.lock().take() {
            newest.dir.doom();
        }
    }

    /// The index of the last entry that the newest snapshot covers.
    pub(crate) fn newest_index(&self) -> Option<u64> {
        self.lock().as_ref()?.last_log_id().map(|id| id.index)
    }

    /// Begins a snapshot of the state. Blocks while the state is flushed.
    fn begin(&self, db: &StateDb) -> io::Result<Unfinished> {
        let covered = peer::SnapshotMeta {
            last_log_id: db.applied().map_err(io::Error::other)?.last,
            ..Default::default()
        };
        let staged = self.dir.join(format!("{}.tmp", name_of(&covered)));
        files::remove_dir(&staged)?;
        let guard = DirGuard::doomed(staged);
        db.checkpoint(guard.path()).map_err(io::Error::other)?;
        Ok(Unfinished(guard))
    }

    /// Makes a checkpoint the newest snapshot, unless a newer one was placed meanwhile. Blocks while it reads the files
    /// that are new since the last snapshot.
    fn finish(&self, Unfinished(staged): Unfinished) -> io::Result<SnapshotData> {
        let known = self.lock().clone();
        let unstoppable = AtomicBool::new(false);
        let meta = manifest::describe(staged.path(), known.as_ref(), &mut Pace::gentle(&unstoppable))?;
        manifest::write(staged.path(), &meta)?;
        self.place(SnapshotData::new(staged, meta, Checked::Content))
    }

    /// Makes a complete directory the newest snapshot, unless there is a newer one. Returns the newest one.
    fn place(&self, data: SnapshotData) -> io::Result<SnapshotData> {
        let mut newest = self.lock();
        if let Some(newest) = newest.as_ref()
            && newest.last_log_id() >= data.last_log_id()
        {
            return Ok(newest.clone());
        }
        let place = self.dir.join(data.name());
        files::remove_dir(&place)?;
        files::rename(data.dir(), &place)?;
        data.dir.spare();
        let placed = SnapshotData {
            dir: Arc::new(DirGuard::keep(place)),
            ..data
        };
        if let Some(replaced) = newest.replace(placed.clone()) {
            replaced.dir.doom();
            files::drop_beside(replaced);
        }
        Ok(placed)
    }

    fn lock(&self) -> MutexGuard<'_, Option<SnapshotData>> {
        self.newest.lock()
    }
}

/// A checkpoint without a manifest. Its directory is removed when this is dropped.
struct Unfinished(DirGuard);

/// Takes a snapshot of the state as it is when it is built.
pub struct SnapshotBuilder {
    snapshots: Arc<Snapshots>,
    state: StateHandle,
}

impl SnapshotBuilder {
    pub(crate) fn new(snapshots: Arc<Snapshots>, state: StateHandle) -> Self {
        SnapshotBuilder { snapshots, state }
    }
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let (snapshots, state) = (self.snapshots.clone(), self.state.clone());
        let data = tokio::task::spawn_blocking(move || {
            let begun = snapshots.begin(&state.current())?;
            snapshots.finish(begun)
        });
        let data = data.await.map_err(io::Error::other)??;
        tracing::info!(name = data.name(), bytes = data.bytes(), "snapshot built");
        data.into_snapshot().map_err(io::Error::other)
    }
}
