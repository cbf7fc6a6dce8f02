//! `agentpostd`: everything of Agentpost that touches the world.
//!
//! From the roof down; every arrow inside points down this list:
//! - [`node`] starts and stops all, [`quarantine`] stands in for it; [`dev`] is a node that needs no configuration;
//! - the doors translate and decide nothing: [`http`], [`ws`];
//! - [`peer_service`] answers the other nodes; [`cluster`] is what an operator may ask for;
//! - [`bootstrap`] brings a cluster into being; [`leases`] counts inbox reads without a log entry each, [`presence`] who
//!   listens;
//! - on the leader [`dispatch`] calls webhooks, [`sweeper`] removes what has aged, [`ticker`] carries time forward;
//! - the shard, one Raft group: [`shard`]; connections to other nodes: [`peer`];
//! - the ground: [`clock`], [`config`], [`networks`], [`secrets`], [`owner`], [`metrics`].

pub mod bootstrap;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod dev;
pub mod dispatch;
pub mod http;
pub mod leases;
pub mod metrics;
pub mod networks;
pub mod node;
pub mod owner;
pub mod peer;
pub mod peer_service;
pub mod presence;
pub mod quarantine;
pub mod secrets;
pub mod shard;
pub mod space;
pub mod sweeper;
pub mod ticker;
pub mod ws;
