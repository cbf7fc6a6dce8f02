//! `agentpostd`: everything of Agentpost that touches the world.
//!
//! The layers, from the roof to the ground. A layer may use those below it and none above it, and no files use each
//! other in a circle; `tests/it/layers.rs` reads this table and every import, and fails otherwise.
//!
//! | layer | what it does |
//! |---|---|
//! | [`node`] | starts and stops a node; founds a cluster; quarantine; the development node |
//! | [`server`] | answers outsiders: clients over HTTP and WebSocket, and the other nodes |
//! | [`webhooks`] | delivers messages to webhooks |
//! | [`leader`] | background work of the leader: sweeps, ticks, fan-out of publishes |
//! | [`cluster`] | the cluster as an operator sees it; sessions per agent; leased read quotas |
//! | [`shard`] | one Raft group: proposals, reads, membership, leadership, time |
//! | [`net`] | connections to the other nodes, and what Raft sends over them |
//! | [`wire`] | JSON as clients and webhooks see it |
//! | [`base`] | clock, configuration, secrets, disk space, metrics |

pub mod base;
pub mod cluster;
pub mod leader;
pub mod net;
pub mod node;
pub mod server;
pub mod shard;
pub mod webhooks;
pub mod wire;
