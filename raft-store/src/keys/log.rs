//! The keys of the log database (`log_store.rs`), which has nothing to do with the state database.
//!
//! | family | key | value |
//! |---|---|---|
//! | `entries` | index, 8 bytes big endian | CRC32C of the rest, 4 bytes big endian; `peer::Entry` |
//! | `meta` | `vote` | `peer::Vote` |
//! | `meta` | `committed` | `LogId`: a hint that saves time after a restart |
//! | `meta` | `purged` | `LogId`: the last entry that is gone |

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
