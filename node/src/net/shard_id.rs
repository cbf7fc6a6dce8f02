//! The id of the shard in messages between nodes and in the data directory.

/// The only shard there is today.
pub const SHARD: u32 = 0;
