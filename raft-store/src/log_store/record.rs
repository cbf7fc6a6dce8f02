//! One entry as it lies in the database: its CRC32C, then its protobuf.

use std::io;

use agentpost_proto::peer;
use bytes::Bytes;
use prost::Message;

use crate::types::{Entry, entry_from_proto, entry_to_proto};

/// The disk gave back something else than it was given.
pub(super) fn damaged(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

const CRC_BYTES: usize = 4;

/// Replaces `record` by the record of `entry`.
pub(super) fn encode(entry: &Entry, record: &mut Vec<u8>) -> io::Result<()> {
    record.clear();
    record.extend_from_slice(&[0; CRC_BYTES]);
    entry_to_proto(entry).encode(record).map_err(io::Error::other)?;
    let crc = crc32c::crc32c(&record[CRC_BYTES..]);
    record[..CRC_BYTES].copy_from_slice(&crc.to_be_bytes());
    Ok(())
}

/// The entry of a record, if it is whole and belongs at `index`.
pub(super) fn decode(index: u64, record: &[u8]) -> io::Result<Entry> {
    let (crc, bytes) = record
        .split_first_chunk::<CRC_BYTES>()
        .ok_or_else(|| damaged(format!("entry {index} is cut short")))?;
    if crc32c::crc32c(bytes) != u32::from_be_bytes(*crc) {
        return Err(damaged(format!("entry {index} does not match its checksum")));
    }
    let entry = peer::Entry::decode(Bytes::copy_from_slice(bytes))
        .map_err(|error| damaged(format!("entry {index}: {error}")))
        .and_then(|entry| entry_from_proto(entry).map_err(|error| damaged(format!("entry {index}: {error}"))))?;
    if entry.log_id.index != index {
        return Err(damaged(format!("entry {} in the place of {index}", entry.log_id)));
    }
    Ok(entry)
}
