//! The state database, and the handle through which a snapshot replaces it while it is read.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use agentpost_proto::record;
use arc_swap::ArcSwap;
use bytes::Bytes;
use rocksdb::checkpoint::Checkpoint;
use rocksdb::{BlockBasedOptions, DBCompressionType, Direction, IteratorMode, ReadOptions, WriteBatch, WriteOptions};

use super::damage::Damage;
use super::error::OpenError;
use super::files::{self, DirGuard};
use super::in_use::InUse;
use super::layout::Layout;
use super::options::{Options, common_options};
use super::read_all::{Pace, read_all};
use crate::core::keys;
use crate::core::kv::{Fatal, Kv, Lookup, Order, Rows, Writes};
use crate::core::view;

/// The state database. A read sees each batch completely or not at all. Many threads may read while one writes.
pub struct StateDb {
    /// `None` only while this is dropped.
    open: Option<Open>,
    damage: Damage,
}

struct Open {
    // Declared first, so that it is closed before the guard removes the directory.
    db: rocksdb::DB,
    dir: DirGuard,
    _used: InUse,
}

/// Whether a database may be created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Create {
    IfMissing,
    Never,
}

impl StateDb {
    /// Opens or creates a state database without the rest of a shard, for tests. Blocks.
    pub fn open(dir: &Path, options: &Options) -> Result<Self, OpenError> {
        Self::open_dir(dir, options, Create::IfMissing, Damage::default())
    }

    pub(crate) fn open_dir(dir: &Path, options: &Options, create: Create, damage: Damage) -> Result<Self, OpenError> {
        let used = InUse::begin();
        let db = rocksdb::DB::open(&state_options(options, create), dir).map_err(OpenError::database(dir))?;
        let open = Open {
            db,
            dir: DirGuard::keep(dir.to_owned()),
            _used: used,
        };
        Ok(StateDb {
            open: Some(open),
            damage,
        })
    }

    fn open_db(&self) -> &Open {
        let open = self.open.as_ref();
        open.unwrap_or_else(|| unreachable!("a database is open until it is dropped"))
    }

    fn db(&self) -> &rocksdb::DB {
        &self.open_db().db
    }

    /// Reads every block of the database.
    pub(crate) fn read_all(&self, pace: &mut Pace<'_>) -> Result<(), rocksdb::Error> {
        read_all(self.db(), pace)
    }

    /// Reports the error if it means damage: the next start must not use this database.
    fn noticed(&self, error: rocksdb::Error) -> Fatal {
        Fatal::Database(self.damage.database(self.dir(), error).into())
    }

    /// Makes all writes visible at once. They become durable together, with the next flush.
    pub fn write(&self, writes: Writes) -> Result<(), Fatal> {
        let mut batch = WriteBatch::default();
        for (key, value) in writes {
            match value {
                Some(value) => batch.put(key, value),
                None => batch.delete(key),
            }
        }
        let mut unlogged = WriteOptions::default();
        unlogged.disable_wal(true);
        self.db()
            .write_opt(batch, &unlogged)
            .map_err(|error| self.noticed(error))
    }

    /// Makes everything written so far durable. Blocks.
    pub fn flush(&self) -> Result<(), Fatal> {
        self.db().flush().map_err(|error| self.noticed(error))
    }

    /// The number of flushes and compactions that failed since this database was opened.
    fn background_errors(&self) -> u64 {
        let count = self.db().property_int_value(rocksdb::properties::BACKGROUND_ERRORS);
        count.ok().flatten().unwrap_or(0)
    }

    /// Flushes, and creates a copy of the current state from hard links. The directory must not exist yet.
    pub(crate) fn checkpoint(&self, dir: &Path) -> Result<(), Fatal> {
        let made = Checkpoint::new(self.db()).and_then(|checkpoint| checkpoint.create_checkpoint(dir));
        made.map_err(|error| self.noticed(error))
    }

    pub(crate) fn applied(&self) -> Result<record::Applied, Fatal> {
        Ok(view::load(self, &keys::applied())?.unwrap_or_default())
    }

    pub(crate) fn dir(&self) -> &Path {
        self.open_db().dir.path()
    }

    /// The name of its directory.
    pub(crate) fn name(&self) -> String {
        let name = self.dir().file_name();
        name.map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    }

    /// Removes the directory when the last reader is done.
    pub(crate) fn doom(&self) {
        self.open_db().dir.doom();
    }

    /// Takes [`StateDb::doom`] back.
    pub(crate) fn spare(&self) {
        self.open_db().dir.spare();
    }
}

impl StateDb {
    /// Like [`Kv::frozen`], for a caller whose type parameter demands that threads can share it.
    pub fn frozen_state(&self) -> Frozen<'_> {
        Frozen(self.db().snapshot(), self)
    }
}

impl Drop for StateDb {
    fn drop(&mut self) {
        // The last reader may be on any thread, and must not wait for the removal.
        if let Some(open) = self.open.take().filter(|open| open.dir.is_doomed()) {
            files::drop_beside(open);
        }
    }
}

impl Lookup for StateDb {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Fatal> {
        let value = self.db().get_pinned(key).map_err(|error| self.noticed(error))?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }
}

impl Kv for StateDb {
    fn range(&self, range: Range<Vec<u8>>, order: Order) -> Rows<'_> {
        walk(range, order, self, |mode, bounds| self.db().iterator_opt(mode, bounds))
    }

    fn frozen(&self) -> Box<dyn Kv + '_> {
        Box::new(self.frozen_state())
    }
}

/// The state database at one moment. Its files are not removed while it exists, so it must be short-lived.
pub struct Frozen<'a>(rocksdb::Snapshot<'a>, &'a StateDb);

impl Lookup for Frozen<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Fatal> {
        let value = self.0.get_pinned(key).map_err(|error| self.1.noticed(error))?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }
}

impl Kv for Frozen<'_> {
    fn range(&self, range: Range<Vec<u8>>, order: Order) -> Rows<'_> {
        walk(range, order, self.1, |mode, bounds| self.0.iterator_opt(mode, bounds))
    }

    fn frozen(&self) -> Box<dyn Kv + '_> {
        Box::new(self)
    }
}

/// The rows of a range. Both bounds are set on the iterator: otherwise it would look beyond the last row and step over
/// tombstones there.
fn walk<'a>(
    range: Range<Vec<u8>>,
    order: Order,
    db: &'a StateDb,
    iterator: impl FnOnce(IteratorMode<'_>, ReadOptions) -> rocksdb::DBIterator<'a>,
) -> Rows<'a> {
    if range.start >= range.end {
        return Box::new(std::iter::empty());
    }
    let start = range.start.clone();
    let mut bounds = ReadOptions::default();
    bounds.set_iterate_range(range);
    let mode = match order {
        Order::Ascending => IteratorMode::From(&start, Direction::Forward),
        Order::Descending => IteratorMode::End,
    };
    Box::new(iterator(mode, bounds).map(|row| {
        let (key, value) = row.map_err(|error| db.noticed(error))?;
        Ok((Bytes::from(key), Bytes::from(value)))
    }))
}

/// The state of this node. A snapshot from another node replaces the whole database; a reader keeps the database that
/// it began with. Cheap to clone.
#[derive(Clone)]
pub struct StateHandle {
    shared: Arc<Shared>,
}

struct Shared {
    current: ArcSwap<StateDb>,
    steps: AtomicU64,
    layout: Layout,
    damage: Damage,
}

impl StateHandle {
    /// A handle of the live database of a shard.
    pub(crate) fn new(layout: &Layout, db: StateDb, damage: Damage) -> Self {
        let shared = Shared {
            current: ArcSwap::from_pointee(db),
            steps: AtomicU64::new(0),
            layout: layout.clone(),
            damage,
        };
        StateHandle {
            shared: Arc::new(shared),
        }
    }

    /// The current state. Hold it only for one request, because an installed snapshot replaces it.
    pub fn current(&self) -> Arc<StateDb> {
        self.shared.current.load_full()
    }

    /// Makes the current state durable, which bounds how many entries a restart applies again. Blocks.
    pub fn flush(&self) -> Result<(), Fatal> {
        self.current().flush()
    }

    /// The number of batches and snapshots that have reached this state, for a watchdog.
    pub fn steps(&self) -> u64 {
        self.shared.steps.load(Ordering::Relaxed)
    }

    pub(crate) fn stepped(&self) {
        self.shared.steps.fetch_add(1, Ordering::Relaxed);
    }

    /// The number of failed flushes and compactions of the live database. RocksDB reports them only through this
    /// counter.
    pub fn background_errors(&self) -> u64 {
        self.shared.current.load().background_errors()
    }

    /// Waits until damage in this shard is reported and returns the reason. The process must then end.
    pub async fn damaged(&self) -> String {
        self.shared.damage.noticed().await
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.shared.layout
    }

    pub(crate) fn damage(&self) -> &Damage {
        &self.shared.damage
    }

    /// Makes `db` the current state. The old database is removed when its last reader is done.
    pub(crate) fn replace(&self, db: StateDb) {
        self.shared.current.swap(Arc::new(db)).doom();
        self.stepped();
    }
}

/// Makes `name` the live state directory, durably.
pub(crate) fn point_to(layout: &Layout, name: &str) -> io::Result<()> {
    files::replace_file(&layout.pointer(), format!("{name}\n").as_bytes())
}

/// The number in the name of a state directory.
pub(crate) fn number_of(name: &str) -> Option<u64> {
    name.strip_prefix("db-")?.parse().ok()
}

/// A value of at least this size is stored apart from its key.
const BLOB_BYTES_MIN: u64 = 512;
/// The size at which a file of such values ends.
const BLOB_FILE_BYTES: u64 = 64 << 20;
/// The share of removed bytes in the oldest files of values beyond which the rest of them is copied.
const BLOB_GARBAGE_MAX: f64 = 0.5;

/// The RocksDB options of the state. It has no WAL, because the Raft log serves as one. Most reads are by key, often by
/// absent keys (a new idempotency key), so the memtable and the files have bloom filters. Large values, which are bodies
/// of messages, lie in files of their own: compactions carry the keys from level to level and leave the bodies where
/// they are. A file of values is removed when its last value is. Mail is removed in about the order in which it came, so
/// that hardly any value has to be copied.
fn state_options(options: &Options, create: Create) -> rocksdb::Options {
    let memory = &options.state_memory;
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(memory.cache());
    table.set_cache_index_and_filter_blocks(true);
    table.set_cache_index_and_filter_blocks_with_high_priority(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    table.set_bloom_filter(10.0, false);
    table.set_whole_key_filtering(true);
    table.set_block_size(16 << 10);
    let mut db = common_options();
    db.create_if_missing(create == Create::IfMissing);
    db.set_block_based_table_factory(&table);
    db.set_atomic_flush(true);
    db.set_write_buffer_manager(memory.buffers());
    db.set_write_buffer_size(memory.write_buffer_bytes());
    db.set_max_write_buffer_number(3);
    db.set_memtable_whole_key_filtering(true);
    db.set_memtable_prefix_bloom_ratio(0.05);
    // Bloom filters make reads of absent rows cheap, so files may accumulate in level 0. Compactions then rewrite less.
    db.set_level_zero_file_num_compaction_trigger(8);
    db.set_max_bytes_for_level_base(8 * memory.write_buffer_bytes() as u64);
    // Files of the first levels are soon rewritten, so only the later levels are compressed.
    let (plain, packed) = (DBCompressionType::None, DBCompressionType::Lz4);
    db.set_compression_per_level(&[plain, plain, packed, packed, packed, packed, packed]);
    db.set_enable_blob_files(true);
    db.set_min_blob_size(BLOB_BYTES_MIN);
    db.set_blob_file_size(BLOB_FILE_BYTES);
    db.set_blob_compression_type(packed);
    db.set_enable_blob_gc(true);
    db.set_blob_gc_force_threshold(BLOB_GARBAGE_MAX);
    // An inbox is a queue: tombstones accumulate at its beginning, and every read would step over them.
    db.add_compact_on_deletion_collector_factory(8_192, 4_096, 0.5);
    let cores = std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 8));
    db.set_max_background_jobs(i32::try_from(cores).unwrap_or(2));
    db
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
