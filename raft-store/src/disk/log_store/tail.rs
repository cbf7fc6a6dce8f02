//! A cache of the newest entries of the log, so that replication and apply do not read and decode again what was just
//! appended. It is always a run of entries without holes that ends with the last entry of the log. An entry that is not
//! in a file yet stays, whatever the size of the cache.

use std::collections::VecDeque;

use crate::disk::types::Entry;

/// The maximal number of entries, because each costs memory beside its bytes.
const ENTRIES_MAX: usize = 1 << 17;

/// The approximate memory of an entry beside its encoded bytes.
const ENTRY_OVERHEAD: usize = 128;

/// An entry, with about the size of its record.
pub(super) struct Recent {
    pub(super) entry: Entry,
    pub(super) size: usize,
}

pub(super) struct Tail {
    entries: VecDeque<Recent>,
    bytes: usize,
    bytes_max: usize,
    /// The index after the last entry that is in a file.
    written: u64,
}

impl Tail {
    pub(super) fn new(bytes_max: usize, written: u64) -> Self {
        Tail {
            entries: VecDeque::new(),
            bytes: 0,
            bytes_max,
            written,
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
        self.shrink();
    }

    /// Notes that all entries before `next` are in files.
    pub(super) fn written(&mut self, next: u64) {
        self.written = next;
        self.shrink();
    }

    fn shrink(&mut self) {
        while (self.bytes > self.bytes_max || self.entries.len() > ENTRIES_MAX)
            && self.first().is_some_and(|first| first < self.written)
        {
            self.pop_front();
        }
    }

    /// The index of the oldest cached entry.
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
