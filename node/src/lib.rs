//! `agentpostd`: the part of Agentpost that performs I/O.
//!
//! The layers, from top to bottom. A layer may use those below it and none above it, and no files use each other in a
//! cycle; `tests/it/layers.rs` reads this table and every import, and fails otherwise.
//!
//! | layer | what it does |
//! |---|---|
//! | [`node`] | starts and stops a node; creates a cluster; quarantine; the development node |
//! | [`server`] | answers requests: clients over HTTP and WebSocket, and the other nodes |
//! | [`webhooks`] | delivers messages to webhooks |
//! | [`leader`] | background work of the leader: sweeps, ticks, fan-out of publishes |
//! | [`cluster`] | the operator's view of the cluster; sessions per agent; leased read quotas |
//! | [`shard`] | one Raft group: proposals, reads, membership, leadership, time |
//! | [`net`] | connections to the other nodes, and what Raft sends over them |
//! | [`wire`] | the JSON of the clients' APIs and of webhook calls |
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
