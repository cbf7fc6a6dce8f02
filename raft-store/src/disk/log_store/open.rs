//! Opening the log: RocksDB's settings, and the check of its content.

use std::path::Path;

use agentpost_proto::{peer, record};
use prost::Message;
use rocksdb::{ColumnFamily, ColumnFamilyDescriptor, ReadOptions};

use super::bounds::Bounds;
use super::record::{decode, unseal};
use super::tail::Tail;
use crate::core::keys::log as keys;
use crate::core::mutant::{self, Mutant};
use crate::disk::floor::FloorFile;
use crate::disk::options::{LogStart, Options, common_options};
use crate::disk::types::{LogId, log_id_from_proto, vote_from_proto};

/// The read-ahead while the whole log is read.
const READ_AHEAD_BYTES: usize = 2 << 20;

/// A column family of the log.
pub(super) fn family<'a>(db: &'a rocksdb::DB, name: &str) -> &'a ColumnFamily {
    db.cf_handle(name)
        .unwrap_or_else(|| unreachable!("the families were opened with the log"))
}

/// Opens the database. With `create` it creates the database, or what is missing of one whose creation was interrupted.
/// Without it a missing file is an error, and does not become an empty log.
pub(super) fn database(dir: &Path, create: bool) -> Result<rocksdb::DB, rocksdb::Error> {
    let mut db = common_options();
    db.create_if_missing(create);
    db.create_missing_column_families(create);
    db.set_wal_recovery_mode(match mutant::on(Mutant::DefaultRecovery) {
        true => rocksdb::DBRecoveryMode::PointInTime,
        false => rocksdb::DBRecoveryMode::TolerateCorruptedTailRecords,
    });
    db.set_recycle_log_file_num(0);
    db.set_max_total_wal_size(64 << 20);
    db.set_max_background_jobs(2);
    // Entries are appended and purged in order. So small memtables are cheaper to insert into, files hardly overlap,
    // and a backlog of files must not delay an append.
    let mut entries = rocksdb::Options::default();
    entries.set_compression_type(rocksdb::DBCompressionType::None);
    entries.set_write_buffer_size(16 << 20);
    entries.set_max_write_buffer_number(6);
    entries.set_target_file_size_base(32 << 20);
    entries.set_level_zero_file_num_compaction_trigger(8);
    entries.set_level_zero_slowdown_writes_trigger(60);
    entries.set_level_zero_stop_writes_trigger(120);
    let mut meta = rocksdb::Options::default();
    meta.set_write_buffer_size(1 << 20);
    // The default family is empty, but the WAL reserves space for the largest write buffer of all families.
    let mut unused = rocksdb::Options::default();
    unused.set_write_buffer_size(1 << 20);
    let families = [
        ColumnFamilyDescriptor::new(rocksdb::DEFAULT_COLUMN_FAMILY_NAME, unused),
        ColumnFamilyDescriptor::new(keys::ENTRIES, entries),
        ColumnFamilyDescriptor::new(keys::META, meta),
    ];
    rocksdb::DB::open_cf_descriptors(&db, dir, families)
}

/// Reads the whole log and returns its bounds. The error text says what is wrong with the log.
pub(super) fn bounds(db: &rocksdb::DB, options: &Options, floor: &FloorFile) -> Result<Bounds, String> {
    let purged = read_meta::<peer::Purged>(db, keys::PURGED)?;
    let base = purged.as_ref().map_or(0, |purged| purged.hash);
    let purged = purged.and_then(|purged| Some(log_id_from_proto(&purged.id?)));
    let committed = read_meta::<record::LogId>(db, keys::COMMITTED)?;
    let vote = read_meta::<peer::Vote>(db, keys::VOTE)?.map(|vote| vote_from_proto(&vote));
    if let Some(floor) = floor.vote()
        && !vote.is_some_and(|vote| vote >= floor)
    {
        return Err(format!("its vote is {vote:?}, but this node has voted {floor}"));
    }
    let begin = purged.map_or(0, |purged| purged.index + 1);
    let any = purged.is_none() && options.log_start == LogStart::Anywhere;
    let mut chain = Chain {
        next: begin,
        any,
        hash: base,
        last: None,
        floor: floor.flushed(),
    };
    let first = chain.follow(db)?;
    let last = chain.last.or(purged);
    if let Some(floor) = floor.flushed()
        && last.is_none_or(|last| last.index < floor.index)
        && !mutant::on(Mutant::FloorIgnored)
    {
        return Err(format!("it ends at {last:?}, but {floor} was on this disk once"));
    }
    Ok(Bounds {
        first,
        next: chain.next,
        last,
        base,
        hash: chain.hash,
        purged,
        committed: committed.map(|id| log_id_from_proto(&id)),
        vote,
        tail: Tail::new(options.log_tail_bytes),
    })
}

/// The state of reading the log from its beginning to its end.
struct Chain {
    next: u64,
    /// Whether the first entry may have any index.
    any: bool,
    hash: u64,
    last: Option<LogId>,
    /// The entry of the durability floor. If the log has an entry at this index, it must be this one.
    floor: Option<LogId>,
}

impl Chain {
    /// Reads all entries from `next` on, and returns the index of the first one.
    fn follow(&mut self, db: &rocksdb::DB) -> Result<u64, String> {
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(keys::entry(self.next));
        options.fill_cache(false);
        options.set_readahead_size(READ_AHEAD_BYTES);
        let mut iterator = db.raw_iterator_cf_opt(family(db, keys::ENTRIES), options);
        iterator.seek_to_first();
        if self.any
            && let Some(first) = iterator.key().and_then(keys::index)
        {
            self.next = first;
        }
        let begin = self.next;
        while let Some((key, value)) = iterator.item() {
            self.take(key, value)?;
            iterator.next();
        }
        iterator.status().map_err(|e| e.to_string())?;
        Ok(begin)
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let index = keys::index(key).ok_or("a key is not an index")?;
        if index != self.next {
            return Err(format!("entry {index} is in the place of entry {}", self.next));
        }
        let record = decode(index, value).map_err(|e| e.to_string())?;
        if record.previous != self.hash {
            return Err(format!("entry {index} does not continue the one before it"));
        }
        let id = record.entry.log_id;
        if let Some(floor) = self.floor
            && floor.index == index
            && floor != id
        {
            return Err(format!("entry {index} is {id}, but {floor} was on this disk once"));
        }
        (self.next, self.hash, self.last) = (index + 1, record.hash, Some(id));
        Ok(())
    }
}

fn read_meta<T: Message + Default>(db: &rocksdb::DB, key: &[u8]) -> Result<Option<T>, String> {
    let wrong = |what: &str| format!("{}: {what}", String::from_utf8_lossy(key));
    let Some(sealed) = db.get_cf(family(db, keys::META), key).map_err(|e| e.to_string())? else {
        return Ok(None);
    };
    let bytes = unseal(&sealed).ok_or_else(|| wrong("it does not match its checksum"))?;
    T::decode(bytes).map(Some).map_err(|error| wrong(&error.to_string()))
}
