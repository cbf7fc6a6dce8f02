//! The library against servers that answer from a script, and against real nodes.
#![allow(clippy::unwrap_used)]

mod agents;
mod client;
mod examples;
mod listen;
mod office;
mod rpc;
mod send;
mod session;
mod topics;
