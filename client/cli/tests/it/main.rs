//! The commands `kite` and `agentpost` as their users see them.
#![allow(clippy::unwrap_used)]

mod common;

mod agent;
mod agent_list;
mod bench;
mod cluster;
mod exec;
mod login;
mod manage;
mod manage_cluster;
mod members;
mod operator;
mod stream;
mod stream_cluster;
mod tls;
mod webhooks_cluster;
