//! Opening the log: RocksDB's settings, and finding out what the log holds.

use std::path::Path;

use agentpost_proto::{peer, record};
use prost::Message;
use rocksdb::{ColumnFamily, ColumnFamilyDescriptor, ReadOptions};

use super::inner::Bounds;
use super::record::decode;
use super::tail::Tail;
use crate::db::{LogStart, Options, common_options};
use crate::keys::log as keys;
use crate::types::{log_id_from_proto, vote_from_proto};

/// A column family of the log.
pub(super) fn family<'a>(db: &'a rocksdb::DB, name: &str) -> &'a ColumnFamily {
    db.cf_handle(name)
        .unwrap_or_else(|| unreachable!("the families were opened with the log"))
}

pub(super) fn database(dir: &Path) -> Result<rocksdb::DB, rocksdb::Error> {
    let mut db = common_options();
    db.create_if_missing(true);
    db.create_missing_column_families(true);
    db.set_wal_recovery_mode(rocksdb::DBRecoveryMode::TolerateCorruptedTailRecords);
    db.set_recycle_log_file_num(0);
    db.set_max_total_wal_size(64 << 20);
    db.set_max_background_jobs(2);
    // Entries arrive in order and go in order: small memtables are cheaper to insert into, files hardly
    // overlap, and a backlog of files must not hold up an append.
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
    // Nothing is in it, but the WAL reserves space by the largest buffer of all families.
    let mut unused = rocksdb::Options::default();
    unused.set_write_buffer_size(1 << 20);
    let families = [
        ColumnFamilyDescriptor::new(rocksdb::DEFAULT_COLUMN_FAMILY_NAME, unused),
        ColumnFamilyDescriptor::new(keys::ENTRIES, entries),
        ColumnFamilyDescriptor::new(keys::META, meta),
    ];
    rocksdb::DB::open_cf_descriptors(&db, dir, families)
}

/// Finds out what the log holds; the text of an error says what is wrong with it.
pub(super) fn bounds(db: &rocksdb::DB, options: &Options) -> Result<Bounds, String> {
    let purged = read_meta::<record::LogId>(db, keys::PURGED)?.map(|id| log_id_from_proto(&id));
    let committed = read_meta::<record::LogId>(db, keys::COMMITTED)?;
    let vote = read_meta::<peer::Vote>(db, keys::VOTE)?;
    let begin = purged.map_or(0, |purged| purged.index + 1);
    let mut bounded = ReadOptions::default();
    bounded.set_iterate_lower_bound(keys::entry(begin));
    let mut iterator = db.raw_iterator_cf_opt(family(db, keys::ENTRIES), bounded);
    iterator.seek_to_first();
    let first = iterator.key().and_then(keys::index);
    iterator.seek_to_last();
    let last = match iterator.item() {
        Some((key, value)) => {
            let index = keys::index(key).ok_or("a key is not an index")?;
            Some(decode(index, value).map_err(|e| e.to_string())?.log_id)
        }
        None => None,
    };
    iterator.status().map_err(|e| e.to_string())?;
    let any = purged.is_none() && options.log_start == LogStart::Anywhere;
    if let Some(first) = first
        && first != begin
        && !any
    {
        return Err(format!("the log begins at entry {first}, not at {begin}"));
    }
    Ok(Bounds {
        first: first.unwrap_or(begin),
        next: last.map_or(begin, |last| last.index + 1),
        last: last.or(purged),
        purged,
        committed: committed.map(|id| log_id_from_proto(&id)),
        vote: vote.map(|vote| vote_from_proto(&vote)),
        tail: Tail::new(options.log_tail_bytes),
    })
}

fn read_meta<T: Message + Default>(db: &rocksdb::DB, key: &[u8]) -> Result<Option<T>, String> {
    let value = db.get_cf(family(db, keys::META), key).map_err(|e| e.to_string())?;
    value
        .map(|value| T::decode(value.as_slice()))
        .transpose()
        .map_err(|error| format!("{}: {error}", String::from_utf8_lossy(key)))
}
