//! The client library against a server that answers from a script.
#![allow(clippy::unwrap_used)]

mod agents;
mod client;
mod common;
mod rpc;
mod topics;
