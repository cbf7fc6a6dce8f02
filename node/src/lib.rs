//! `agentpostd`: everything of Agentpost that touches the world.
//!
//! From the roof down; every arrow inside points down this list:
//! - [`node`] starts and stops all;
//! - the doors translate and decide nothing: [`http`], [`ws`];
//! - the shard, one Raft group: [`shard`];
//! - the ground: [`clock`], [`config`], [`secrets`], [`metrics`].

pub mod clock;
pub mod config;
pub mod http;
pub mod metrics;
pub mod node;
pub mod secrets;
pub mod shard;
pub mod ws;
