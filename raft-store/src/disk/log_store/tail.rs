//! The newest entries of the log in memory, so that replication and apply need not read and decode again
//! what was appended a moment ago. Never more than what the log holds, always a run without holes that ends
//! with the last entry.

use std::collections::VecDeque;

use crate::disk::types::Entry;

/// Entries at most: each costs more memory than its bytes.
const ENTRIES_MAX: usize = 1 << 17;

/// Memory that an entry costs beside its encoded bytes, roughly.
const ENTRY_OVERHEAD: usize = 128;

/// An entry with what is known of its record.
pub(super) struct Recent {
    pub(super) entry: Entry,
    /// Length of the record.
    pub(super) size: usize,
    /// What the next record continues.
    pub(super) hash: u64,
}

pub(super) struct Tail {
    entries: VecDeque<Recent>,
    bytes: usize,
    bytes_max: usize,
}

impl Tail {
    pub(super) fn new(bytes_max: usize) -> Self {
        Tail {
            entries: VecDeque::new(),
            bytes: 0,
            bytes_max,
        }
    }

    /// Adds the entry that follows the last one.
    pub(super) fn push(&mut self, recent: Recent) {
        debug_assert!(
            self.entries
                .back()
                .is_none_or(|last| last.entry.log_id.index + 1 == recent.entry.log_id.index),
            "the tail has no holes"
        );
        self.bytes += recent.size + ENTRY_OVERHEAD;
        self.entries.push_back(recent);
        while self.bytes > self.bytes_max || self.entries.len() > ENTRIES_MAX {
            self.pop_front();
        }
    }

    /// The oldest entry that is here.
    pub(super) fn first(&self) -> Option<u64> {
        self.entries.front().map(|oldest| oldest.entry.log_id.index)
    }

    /// The entry at `index`.
    pub(super) fn get(&self, index: u64) -> Option<&Recent> {
        let offset = index.checked_sub(self.first()?)?;
        self.entries.get(usize::try_from(offset).ok()?)
    }

    /// Forgets every entry from `index` on.
    pub(super) fn truncate(&mut self, index: u64) {
        while self.entries.back().is_some_and(|last| last.entry.log_id.index >= index) {
            if let Some(last) = self.entries.pop_back() {
                self.bytes -= last.size + ENTRY_OVERHEAD;
            }
        }
    }

    /// Forgets every entry up to `index`.
    pub(super) fn purge(&mut self, index: u64) {
        while self.first().is_some_and(|first| first <= index) {
            self.pop_front();
        }
    }

    fn pop_front(&mut self) {
        if let Some(oldest) = self.entries.pop_front() {
            self.bytes -= oldest.size + ENTRY_OVERHEAD;
        }
    }
}
