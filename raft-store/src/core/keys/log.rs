//! The keys of the log database (`log_store.rs`) and the layout of the `FLOOR` file (`floor.rs`), which have
//! nothing to do with the state database.
//!
//! | family | key | value |
//! |---|---|---|
//! | `entries` | index, 8 bytes big endian | hash of the record before, 8 bytes; `peer::Entry` |
//! | `meta` | `vote` | `peer::Vote` |
//! | `meta` | `committed` | `LogId`: a hint that saves time after a restart |
//! | `meta` | `purged` | `peer::Purged`: the last entry that is gone, and its hash |
//!
//! Before every value stands the CRC32C of the rest, 4 bytes. The hash of a record is the XXH3 (64 bits) of all behind
//! its checksum, so it covers the hash before it and with that the whole log up to there. The hash before entry
//! 0, and before an entry that follows a gap which a snapshot closed, is 0. Numbers are big endian.
//!
//! `FLOOR` is two slots of [`FLOOR_SLOT`] bytes: the CRC32C of the rest of what is used, 4 bytes; the length of the
//! message, 4 bytes; `peer::Floor`; nothing.

/// The family of the entries.
pub const ENTRIES: &str = "entries";
/// The family of the three single rows.
pub const META: &str = "meta";
/// Row of `meta`.
pub const VOTE: &[u8] = b"vote";
/// Row of `meta`.
pub const COMMITTED: &[u8] = b"committed";
/// Row of `meta`.
pub const PURGED: &[u8] = b"purged";

/// Key of an entry.
pub fn entry(index: u64) -> [u8; 8] {
    index.to_be_bytes()
}

/// Index of an entry, from its key.
pub fn index(key: &[u8]) -> Option<u64> {
    key.try_into().ok().map(u64::from_be_bytes)
}

/// Bytes of a slot of `FLOOR`: a page, so that no write of one touches the other.
pub const FLOOR_SLOT: usize = 4096;
