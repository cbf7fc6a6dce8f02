//! What lies in the database: entries, each chained to the one before it, and single rows, all behind a CRC32C. The
//! bytes are described in `keys/log.rs`.

use std::io;

use agentpost_proto::peer;
use bytes::Bytes;
use prost::Message;
use twox_hash::XxHash3_64;

use crate::disk::types::{Entry, entry_from_proto, entry_to_proto};

/// The disk gave back something else than it was given.
pub(super) fn damaged(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

const CRC_BYTES: usize = 4;
const HASH_BYTES: usize = 8;

/// What a record holds.
pub(super) struct Record {
    pub(super) entry: Entry,
    /// Hash of the record before.
    pub(super) previous: u64,
    /// Hash of this one.
    pub(super) hash: u64,
}

/// Replaces `record` by the record of `entry` behind the one that hashes to `previous`; returns its own hash.
pub(super) fn encode(entry: &Entry, previous: u64, record: &mut Vec<u8>) -> io::Result<u64> {
    record.clear();
    record.extend_from_slice(&[0; CRC_BYTES]);
    record.extend_from_slice(&previous.to_be_bytes());
    entry_to_proto(entry).encode(record).map_err(io::Error::other)?;
    close(record);
    Ok(XxHash3_64::oneshot(&record[CRC_BYTES..]))
}

/// The record of the entry at `index`, if it is whole and belongs there.
pub(super) fn decode(index: u64, record: &[u8]) -> io::Result<Record> {
    let wrong = |what: &str| damaged(format!("entry {index} {what}"));
    let chained = unseal(record).ok_or_else(|| wrong("does not match its checksum"))?;
    let (previous, bytes) = chained
        .split_first_chunk::<HASH_BYTES>()
        .ok_or_else(|| wrong("is cut short"))?;
    let entry = peer::Entry::decode(Bytes::copy_from_slice(bytes))
        .map_err(|error| damaged(format!("entry {index}: {error}")))
        .and_then(|entry| entry_from_proto(entry).map_err(|error| damaged(format!("entry {index}: {error}"))))?;
    if entry.log_id.index != index {
        return Err(damaged(format!("entry {} in the place of {index}", entry.log_id)));
    }
    Ok(Record {
        entry,
        previous: u64::from_be_bytes(*previous),
        hash: XxHash3_64::oneshot(chained),
    })
}

/// A message behind its checksum.
pub(super) fn seal(message: &impl Message) -> Vec<u8> {
    let mut sealed = vec![0; CRC_BYTES];
    sealed.extend_from_slice(&message.encode_to_vec());
    close(&mut sealed);
    sealed
}

/// What is behind a checksum that matches.
pub(super) fn unseal(sealed: &[u8]) -> Option<&[u8]> {
    let (crc, bytes) = sealed.split_first_chunk::<CRC_BYTES>()?;
    (crc32c::crc32c(bytes) == u32::from_be_bytes(*crc)).then_some(bytes)
}

/// Fills in the checksum.
fn close(sealed: &mut [u8]) {
    let crc = crc32c::crc32c(&sealed[CRC_BYTES..]);
    sealed[..CRC_BYTES].copy_from_slice(&crc.to_be_bytes());
}
