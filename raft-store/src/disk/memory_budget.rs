//! One memory budget for everything that RocksDB holds of a node's states: blocks, indexes, filters and write buffers.
//!
//! Several databases may be open at a time, for example while a snapshot replaces the state. They share the budget, so
//! their number does not multiply it. Write buffers take at most half of it and are charged to the cache, which evicts
//! blocks for them. The budget is exceeded for moments only: a write is never delayed because of it, and a buffer that
//! is being flushed stays until its file is on disk.

use rocksdb::{Cache, WriteBufferManager};

/// The smallest budget in bytes.
pub const MEMORY_BYTES_MIN: usize = 16 << 20;

/// A memory budget. Clones share it.
#[derive(Clone)]
pub struct MemoryBudget {
    bytes: usize,
    cache: Cache,
    buffers: WriteBufferManager,
}

impl MemoryBudget {
    /// A budget of `bytes`.
    pub fn new(bytes: usize) -> Self {
        let cache = Cache::new_lru_cache(bytes);
        let buffers = WriteBufferManager::new_write_buffer_manager_with_cache(bytes / 2, false, cache.clone());
        MemoryBudget { bytes, cache, buffers }
    }

    /// Size in bytes at which one write buffer is flushed. The buffer before it is flushed meanwhile.
    pub(crate) fn write_buffer_bytes(&self) -> usize {
        self.bytes / 4
    }

    /// Bytes of all write buffers, those included that are being flushed.
    pub fn buffered_bytes(&self) -> usize {
        self.buffers.get_usage()
    }

    pub(crate) fn cache(&self) -> &Cache {
        &self.cache
    }

    pub(crate) fn buffers(&self) -> &WriteBufferManager {
        &self.buffers
    }
}

impl std::fmt::Debug for MemoryBudget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MemoryBudget({} bytes)", self.bytes)
    }
}
