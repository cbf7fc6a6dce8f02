//! The files of the log: one stream of records, cut into segments. This layer knows nothing about Raft. A record has a
//! kind, the number of its shard and bytes, so one stream can carry the logs of many shards with one fsync.
//!
//! ```text
//!  log/0000000000000007.log                        log/0000000000000008.log   (the newest)
//!  ┌──────────┬───────┬────────┬─ ─┬────────┬─────┐ ┌──────────┬───────┬────────┬ ─ ─ ─ ─ ─ ┐
//!  │ preamble │ start │ record │   │ record │ end │ │ preamble │ start │ record │   zeros
//!  └──────────┴───────┴────────┴─ ─┴────────┴─────┘ └──────────┴───────┴────────┴ ─ ─ ─ ─ ─ ┘
//!       ▲ hash of the record before                      ▲ hash of `end`
//! ```
//!
//! - *Preamble*, [`PREAMBLE`] bytes: `agentlog`; the number of the segment, 8 bytes; the hash of the last record of the
//!   segment before, 8 bytes; the CRC32C of these 24 bytes, 4 bytes; zeros.
//! - *Record*: the CRC32C of its position and of everything after the checksum, 4 bytes; the length of its payload, 4;
//!   its kind, 1; flags, 1; zeros, 2; its shard, 4; the hash of the record before, 8; the payload. Numbers are little
//!   endian. The hash of a record is the XXH3 (64 bits) of everything after its checksum, so it covers all records
//!   before it.
//! - *Start*, the first record: the state of the log at the end of the earlier segments, so that they can be removed.
//! - *End*, the last record of a complete segment: where its entries are, so that they need not be read at a start. The
//!   last [`TRAILER`] bytes of the file say where this record begins: its offset, 4 bytes, and the CRC32C of that, 4.
//!
//! **Checksums depend on the position.** The CRC32C of a record begins with the checksum of the preamble and the offset
//! of the record. A message that contains the bytes of a record is therefore never taken for one, and neither is what
//! an earlier write left in the file.
//!
//! **Groups.** Everything between two fsyncs is a group, and its first record has a flag. A group is written only after
//! the one before it is durable. This tells a power cut from damage: a power cut leaves at most one incomplete group at
//! the end, in any mixture of old and new blocks. If a group begins anywhere after a bad record, the bad record was
//! durable once, so the disk has lost it ([`recover`]).
//!
//! **Space** is allocated ahead in steps, because an fsync after a write into allocated space has less to do. A complete
//! segment gives back what it did not use. Purging removes whole segments.

pub(crate) mod file;
pub(crate) mod format;
pub(crate) mod read;
pub(crate) mod recover;
#[cfg(test)]
mod tests;
pub(crate) mod write;

use std::io;
use std::path::{Path, PathBuf};

use super::files;

/// Bytes of the preamble of a segment.
const PREAMBLE: usize = 32;
/// Bytes at the end of a complete segment that locate its last record.
const TRAILER: usize = 8;

/// The number of the first segment of a log.
pub(crate) const FIRST: u64 = 1;
/// The hash that the first segment continues: there is no record before it.
pub(crate) const NO_HASH: u64 = 0;

/// The error for bytes on the disk that are not those that were written.
pub(crate) fn damaged(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

/// The path of a segment.
pub(crate) fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016}.log"))
}

/// The numbers of the segments in a directory, in order. Fails if one between two others is missing.
pub(crate) fn numbers(dir: &Path) -> io::Result<Vec<u64>> {
    let names = files::names(dir)?;
    let parse = |name: &String| name.strip_suffix(".log")?.parse::<u64>().ok();
    let numbers: Vec<_> = names.iter().filter_map(parse).collect();
    match numbers.windows(2).find(|pair| pair[0] + 1 != pair[1]) {
        Some(pair) => Err(damaged(format!("segment {} is missing", pair[0] + 1))),
        None => Ok(numbers),
    }
}
