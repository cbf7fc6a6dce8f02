//! Between the nodes: who may connect ([`handshake`], [`lives`], [`admission`], [`listener`]), how others are reached ([`dial`]), what
//! Raft sends ([`network`], [`snapshot`]) and what clients' requests become on a follower ([`forward`]).

pub mod admission;
pub mod dial;
pub mod forward;
pub mod handshake;
pub mod listener;
pub mod lives;
pub mod network;
pub mod snapshot;
