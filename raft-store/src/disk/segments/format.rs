//! The bytes of preambles, records and trailers.

use bytes::Bytes;
use twox_hash::XxHash3_64;

use super::{PREAMBLE, TRAILER};

const MAGIC: &[u8; 8] = b"agentlog";
const CRC_BYTES: usize = 4;
/// Bytes of a record before its payload.
pub(crate) const HEAD: usize = 24;
/// The flag of the first record of a group.
const FIRST_OF_GROUP: u8 = 1;

/// What a record is. The payloads of the last five belong to the layer above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum RecordKind {
    /// The first record of a segment.
    Start = 1,
    /// The last record of a complete segment.
    End = 2,
    Entry = 3,
    Vote = 4,
    Committed = 5,
    Truncated = 6,
    Purged = 7,
}

impl RecordKind {
    fn of(byte: u8) -> Option<Self> {
        const ALL: [RecordKind; 7] = [
            RecordKind::Start,
            RecordKind::End,
            RecordKind::Entry,
            RecordKind::Vote,
            RecordKind::Committed,
            RecordKind::Truncated,
            RecordKind::Purged,
        ];
        ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// Identifies a segment, and begins the checksum of each of its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seed(u32);

impl Seed {
    fn crc(self, offset: u32, rest: &[u8]) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c_append(self.0, &offset.to_le_bytes()), rest)
    }
}

/// The preamble of segment `number`, which continues the record with the hash `base`.
pub(super) fn preamble(number: u64, base: u64) -> ([u8; PREAMBLE], Seed) {
    let mut bytes = [0; PREAMBLE];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..16].copy_from_slice(&number.to_le_bytes());
    bytes[16..24].copy_from_slice(&base.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..24]);
    bytes[24..28].copy_from_slice(&crc.to_le_bytes());
    (bytes, Seed(crc))
}

/// The hash that segment `number` continues, and its seed; `None` if the preamble is damaged.
pub(super) fn read_preamble(bytes: &[u8], number: u64) -> Option<(u64, Seed)> {
    let base = u64::from_le_bytes(bytes.get(16..24)?.try_into().ok()?);
    let (expected, seed) = preamble(number, base);
    (bytes.get(..PREAMBLE)? == expected).then_some((base, seed))
}

/// The trailer of a segment whose last record begins at `offset`.
pub(super) fn trailer(offset: u32, seed: Seed) -> [u8; TRAILER] {
    let mut bytes = [0; TRAILER];
    bytes[..4].copy_from_slice(&offset.to_le_bytes());
    bytes[4..].copy_from_slice(&seed.crc(offset, b"end").to_le_bytes());
    bytes
}

/// The offset in a trailer, or `None` if the trailer is damaged.
pub(super) fn read_trailer(bytes: &[u8], seed: Seed) -> Option<u32> {
    let offset = u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?);
    (bytes == trailer(offset, seed)).then_some(offset)
}

/// The position of a record in its segment, and what it continues.
pub(super) struct Place {
    pub(super) offset: u32,
    pub(super) previous: u64,
    pub(super) first_of_group: bool,
}

/// Appends the head of a record to `buffer`, to be completed by [`close`].
pub(super) fn open(kind: RecordKind, shard: u32, place: &Place, buffer: &mut Vec<u8>) {
    buffer.extend_from_slice(&[0; 8]);
    buffer.extend_from_slice(&[kind as u8, u8::from(place.first_of_group) * FIRST_OF_GROUP, 0, 0]);
    buffer.extend_from_slice(&shard.to_le_bytes());
    buffer.extend_from_slice(&place.previous.to_le_bytes());
}

/// Fills in the length and the checksum of the record that `record` consists of. Returns its hash, or `None` if it is
/// too long.
pub(super) fn close(record: &mut [u8], offset: u32, seed: Seed) -> Option<u64> {
    let length = u32::try_from(record.len() - HEAD).ok()?;
    record[4..8].copy_from_slice(&length.to_le_bytes());
    let crc = seed.crc(offset, &record[CRC_BYTES..]);
    record[..CRC_BYTES].copy_from_slice(&crc.to_le_bytes());
    Some(XxHash3_64::oneshot(&record[CRC_BYTES..]))
}

/// A record as it was read.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) kind: RecordKind,
    pub(crate) shard: u32,
    pub(crate) payload: Bytes,
    /// The hash of the record before.
    pub(super) previous: u64,
    pub(super) hash: u64,
    pub(super) first_of_group: bool,
}

/// The length of the whole record whose head this is. Nothing of it is verified yet.
pub(super) fn length(head: &[u8]) -> Option<usize> {
    let length = u32::from_le_bytes(head.get(4..8)?.try_into().ok()?);
    HEAD.checked_add(usize::try_from(length).ok()?)
}

/// Whether these bytes may be the head of the first record of a group: a cheap test before the checksum.
pub(super) fn may_begin_group(head: &[u8]) -> bool {
    head.len() >= HEAD && RecordKind::of(head[8]).is_some() && head[9..12] == [FIRST_OF_GROUP, 0, 0]
}

/// The record that `bytes` consists of, or `None` if it does not match its checksum.
pub(super) fn decode(bytes: &Bytes, offset: u32, seed: Seed) -> Option<Record> {
    let crc = u32::from_le_bytes(bytes.get(..CRC_BYTES)?.try_into().ok()?);
    if bytes.len() < HEAD || seed.crc(offset, &bytes[CRC_BYTES..]) != crc {
        return None;
    }
    Some(Record {
        kind: RecordKind::of(bytes[8])?,
        shard: u32::from_le_bytes(bytes[12..16].try_into().ok()?),
        payload: bytes.slice(HEAD..),
        previous: u64::from_le_bytes(bytes[16..24].try_into().ok()?),
        hash: XxHash3_64::oneshot(&bytes[CRC_BYTES..]),
        first_of_group: bytes[9] == FIRST_OF_GROUP,
    })
}
