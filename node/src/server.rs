//! Everything that meets bytes of outsiders. Handlers translate and decide nothing: each takes its input apart, makes one
//! call, and converts the result.
//!
//! - [`http`] and [`ws`] answer clients, [`peer`] answers the other nodes;
//! - [`services`] is what handlers may use; [`auth`] identifies the caller, [`burst`] limits requests per second, [`keys`]
//!   makes and revokes API keys, [`face`] names the APIs, and [`error`] maps failures to HTTP.

pub mod auth;
pub mod burst;
pub mod error;
pub mod face;
pub mod http;
pub mod keys;
pub mod peer;
pub mod services;
pub mod ws;
