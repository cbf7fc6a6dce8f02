//! The keys of the log database (`log_store.rs`) and the layout of the `FLOOR` file (`floor.rs`). Neither is part of
//! the state database.
//!
//! | family | key | value |
//! |---|---|---|
//! | `entries` | index, 8 bytes big endian | hash of the previous record, 8 bytes; `peer::Entry` |
//! | `meta` | `vote` | `peer::Vote` |
//! | `meta` | `committed` | `LogId`: a hint that makes a restart faster |
//! | `meta` | `purged` | `peer::Purged`: the last purged entry, and its hash |
//!
//! Every value begins with the CRC32C of the rest, 4 bytes. The hash of a record is the XXH3 (64 bits) of everything
//! after its checksum. It covers the previous record's hash, and so the whole log up to this record. Entry 0, and an
//! entry that follows a gap which a snapshot closed, have 0 as the previous hash. Numbers are big endian.
//!
//! `FLOOR` consists of two slots of [`FLOOR_SLOT`] bytes. A slot is: the CRC32C of the length and the message, 4 bytes;
//! the length of the message, 4 bytes; the message, a `peer::Floor`; zeros.

/// The column family of the entries.
pub const ENTRIES: &str = "entries";
/// The column family of the three single rows.
pub const META: &str = "meta";
/// The rows of `meta`.
pub const VOTE: &[u8] = b"vote";
pub const COMMITTED: &[u8] = b"committed";
pub const PURGED: &[u8] = b"purged";

/// Key of an entry.
pub fn entry(index: u64) -> [u8; 8] {
    index.to_be_bytes()
}

/// The index in the key of an entry.
pub fn index(key: &[u8]) -> Option<u64> {
    key.try_into().ok().map(u64::from_be_bytes)
}

/// Bytes of a slot of `FLOOR`. It is a page, so that a write to one slot does not touch the other.
pub const FLOOR_SLOT: usize = 4096;
