//! Between the nodes: who may connect ([`handshake`], [`listener`]), how others are reached ([`dial`]), what
//! Raft sends ([`network`], [`snapshot`]) and what clients' requests become on a follower ([`forward`]).

pub mod dial;
pub mod forward;
pub mod handshake;
pub mod listener;
pub mod network;
pub mod snapshot;
