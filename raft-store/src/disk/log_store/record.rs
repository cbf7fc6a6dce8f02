//! The records of the log database: entries, each chained to the previous one, and single rows. All begin with a
//! CRC32C. `keys/log.rs` describes the bytes.

use std::io;

use agentpost_proto::peer;
use bytes::Bytes;
use prost::Message;
use twox_hash::XxHash3_64;

use crate::disk::types::{Entry, entry_from_proto, entry_to_proto};

/// The error for bytes on the disk that are not those that were written.
pub(super) fn damaged(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

const CRC_BYTES: usize = 4;
const HASH_BYTES: usize = 8;

/// A decoded record.
pub(super) struct Record {
    pub(super) entry: Entry,
    /// The hash of the previous record.
    pub(super) previous: u64,
    /// The hash of this record.
    pub(super) hash: u64,
}

/// Encodes `entry` into `record`, as the successor of the record with the hash `previous`. Returns its own hash.
pub(super) fn encode(entry: &Entry, previous: u64, record: &mut Vec<u8>) -> io::Result<u64> {
    record.clear();
    record.extend_from_slice(&[0; CRC_BYTES]);
    record.extend_from_slice(&previous.to_be_bytes());
    entry_to_proto(entry).encode(record).map_err(io::Error::other)?;
    close(record);
    Ok(XxHash3_64::oneshot(&record[CRC_BYTES..]))
}

/// Decodes the record at `index`. Fails if it is damaged, or is that of another entry.
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

/// Encodes a message with its checksum.
pub(super) fn seal(message: &impl Message) -> Vec<u8> {
    let mut sealed = vec![0; CRC_BYTES];
    sealed.extend_from_slice(&message.encode_to_vec());
    close(&mut sealed);
    sealed
}

/// The bytes after the checksum, or `None` if the checksum does not match.
pub(super) fn unseal(sealed: &[u8]) -> Option<&[u8]> {
    let (crc, bytes) = sealed.split_first_chunk::<CRC_BYTES>()?;
    (crc32c::crc32c(bytes) == u32::from_be_bytes(*crc)).then_some(bytes)
}

/// Fills in the checksum.
fn close(sealed: &mut [u8]) {
    let crc = crc32c::crc32c(&sealed[CRC_BYTES..]);
    sealed[..CRC_BYTES].copy_from_slice(&crc.to_be_bytes());
}
