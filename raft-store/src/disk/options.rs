//! The settings of a shard's databases.

use super::floor::Identity;
use super::memory_budget::MemoryBudget;
use super::progress::Progress;

/// The settings. The defaults suit a node with a gigabyte of memory to spare.
#[derive(Debug, Clone)]
pub struct Options {
    /// The shard's number in the data directory.
    pub shard: u32,
    /// The memory of the state's databases. Its write buffers also bound how many entries a restart applies again.
    pub state_memory: MemoryBudget,
    /// Bytes of the newest log entries that are kept in memory for replication and apply.
    pub log_tail_bytes: usize,
    /// Size of a file of the log, in bytes. Purging removes whole files.
    pub log_segment_bytes: u64,
    /// Where the log of an empty shard may begin.
    pub log_start: LogStart,
    /// The cluster and node that must own the data; `None` accepts every owner.
    pub identity: Option<Identity>,
    /// Whether the data directory was in use before. If so, a missing shard was lost, and is not created.
    pub used: bool,
    /// Is told what the opening is doing.
    pub progress: Progress,
}

/// Where the log of an empty shard may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogStart {
    /// At index 0, as in Raft. Any other first entry would leave a hole.
    Zero,
    /// At any index. openraft's conformance suite begins some of its logs in the middle.
    Anywhere,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            shard: 0,
            state_memory: MemoryBudget::new(128 << 20),
            log_tail_bytes: 64 << 20,
            log_segment_bytes: 64 << 20,
            log_start: LogStart::Zero,
            identity: None,
            used: false,
            progress: Progress::default(),
        }
    }
}

/// The RocksDB options of the state and of its copies.
pub(crate) fn common_options() -> rocksdb::Options {
    // RocksDB must not retry a failed flush: the second flush may report success although the bytes of the first one
    // are lost. For the same reason, and because a node that fails must end quickly, closing a database does not flush
    // it; a node that stops in order flushes first. The binding has no methods for these options, only the text form.
    let mut db = rocksdb::Options::default()
        .get_options_from_string("max_bgerror_resume_count=0;avoid_flush_during_shutdown=true")
        .unwrap_or_else(|error| unreachable!("RocksDB knows these options: {error}"));
    db.set_paranoid_checks(true);
    db.set_max_open_files(1024);
    db.set_keep_log_file_num(4);
    db.set_max_log_file_size(4 << 20);
    db.set_stats_dump_period_sec(0);
    // Dropping an iterator does not wait until files are unlinked.
    db.set_avoid_unnecessary_blocking_io(true);
    db
}
