//! The types that cross the border of a process or survive a restart.
//!
//! - [`command`], [`record`], [`peer`]: protobuf types of the log, the stored values and node-to-node
//!   traffic, generated from `proto/agentpost/*.proto`. A field number is never reused and never changes
//!   its type; readers skip unknown fields. `tests/golden.rs` guards the bytes.
//! - [`operation`]: the type of the reply to each operation.
//! - [`api`]: JSON bodies of the three HTTP APIs; [`frame`] and [`cloudevent`]: the Kite WebSocket.
//! - [`id`]: newtypes whose parsing validates them; [`secret`]: texts that no log may show; [`limits`]: the bounds that
//!   several crates share.
//!
//! No tokio, no I/O, no clock, no randomness.

#![warn(missing_docs)]

pub mod api;
pub mod cloudevent;
pub mod error;
pub mod frame;
pub mod id;
pub mod limits;
pub mod operation;
pub mod secret;
pub mod time;

/// The log format: commands and replies.
#[allow(missing_docs, clippy::all, clippy::too_many_lines)]
pub mod command {
    tonic::include_proto!("agentpost.command");
}

/// The stored values.
#[allow(missing_docs, clippy::all, clippy::too_many_lines)]
pub mod record {
    tonic::include_proto!("agentpost.record");
}

/// Node-to-node RPC.
#[allow(missing_docs, clippy::all, clippy::too_many_lines)]
pub mod peer {
    tonic::include_proto!("agentpost.peer");
}
