//! Connections between the nodes.
//!
//! - [`dial`] connects to another node, [`handshake`] proves who is at either end, and [`lives`] detects a node that has
//!   lost its data;
//! - [`network`] and [`snapshot`] carry what Raft sends, for the shard that [`shard_id`] names;
//! - [`forward`] takes operations and read barriers of clients to the leader.

pub mod dial;
pub mod forward;
pub mod handshake;
pub mod lives;
pub mod network;
pub mod shard_id;
pub mod snapshot;
pub mod transfers;
