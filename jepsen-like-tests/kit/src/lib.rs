//! Helpers that the tests of several crates share. It depends on `agentpost-proto` only, so that every crate can use
//! it.
//!
//! - [`commands`]: commands of the log, by short names.
//! - `layers` (feature of that name): reads the imports of a crate, for tests that keep its layers apart.
//! - [`receiver`]: an HTTP server that receives webhooks and answers as a test tells it to.
//! - [`socket`]: a WebSocket client that resumes, repeats and acknowledges nothing on its own.
//! - `scripted_server` (feature of that name): a server for tests of clients that plays a script.
//! - [`mod@eventually`]: polls until a condition holds.
//! - [`ports`]: ports on loopback that nobody listens on.

pub mod commands;
pub mod eventually;
#[cfg(feature = "layers")]
pub mod layers;
pub mod ports;
pub mod receiver;
#[cfg(feature = "scripted-server")]
pub mod scripted_server;
pub mod socket;

pub use eventually::{PATIENCE, eventually};
