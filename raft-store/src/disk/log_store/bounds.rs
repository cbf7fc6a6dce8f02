//! The bounds of the log, and the check that new entries follow it.

use std::io;

use super::index::Index;
use super::tail::Tail;
use crate::disk::options::LogStart;
use crate::disk::types::{Entry, LogId, Vote};

/// The content of the log: the entries `first..next`, where they are, and the single values.
pub(super) struct Bounds {
    pub(super) first: u64,
    pub(super) next: u64,
    pub(super) last: Option<LogId>,
    pub(super) purged: Option<LogId>,
    pub(super) committed: Option<LogId>,
    pub(super) vote: Option<Vote>,
    /// The newest entries, among them all that are not in a file yet.
    pub(super) tail: Tail,
    /// The entries in files.
    pub(super) index: Index,
}

/// Checks that entries may be appended, and returns the first index of the log with them.
pub(super) fn check_follows(bounds: &Bounds, start: LogStart, entries: &[Entry]) -> io::Result<u64> {
    let new = bounds.first == bounds.next && bounds.purged.is_none();
    let (mut first, mut next) = (bounds.first, bounds.next);
    if let (true, LogStart::Anywhere, Some(entry)) = (new, start, entries.first()) {
        (first, next) = (entry.log_id.index, entry.log_id.index);
    }
    let mut term = bounds.last.map_or(0, |last| last.leader_id.term);
    for entry in entries {
        let id = entry.log_id;
        if id.index != next || id.leader_id.term < term {
            let message = format!("entry {id} does not follow the log, which continues at {next} in term {term}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        (next, term) = (next + 1, id.leader_id.term);
    }
    Ok(first)
}
