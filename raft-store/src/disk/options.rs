//! The settings of a shard's databases.

use super::floor::Identity;

/// What may be set. The defaults fit a node with a gigabyte of memory to spare.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which shard of the data directory.
    pub shard: u32,
    /// Blocks, indexes and filters of the state that are kept in memory.
    pub state_cache_bytes: usize,
    /// Writes to the state that gather in memory before RocksDB flushes them by itself. It bounds what a
    /// restart applies again; four such buffers may exist at once.
    pub state_write_buffer_bytes: usize,
    /// The newest log entries that are kept in memory for replication and apply.
    pub log_tail_bytes: usize,
    /// Where the log of an empty shard may begin.
    pub log_start: LogStart,
    /// Who opens it; another's data is refused. `None` does not ask.
    pub identity: Option<Identity>,
    /// Whether the data directory was in use before: then a missing shard is a loss and not a beginning.
    pub used: bool,
}

/// Where the log of an empty shard may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogStart {
    /// At index 0, as Raft has it. Anything else would be a hole.
    Zero,
    /// Anywhere: openraft's conformance suite begins some of its logs in the middle.
    Anywhere,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            shard: 0,
            state_cache_bytes: 128 << 20,
            state_write_buffer_bytes: 64 << 20,
            log_tail_bytes: 64 << 20,
            log_start: LogStart::Zero,
            identity: None,
            used: false,
        }
    }
}

/// What both databases share.
pub(crate) fn common_options() -> rocksdb::Options {
    // After a failed flush RocksDB would try again by itself, and a flush that failed once may succeed the second time
    // without its bytes. The binding names this option in text only.
    let mut db = rocksdb::Options::default()
        .get_options_from_string("max_bgerror_resume_count=0")
        .unwrap_or_else(|error| unreachable!("RocksDB knows this option: {error}"));
    db.set_paranoid_checks(true);
    db.set_max_open_files(1024);
    db.set_keep_log_file_num(4);
    db.set_max_log_file_size(4 << 20);
    db.set_stats_dump_period_sec(0);
    // Whoever drops an iterator does not wait for files to be unlinked.
    db.set_avoid_unnecessary_blocking_io(true);
    db
}
