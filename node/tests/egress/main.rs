//! Calls to hostile and broken receivers, and to places that a webhook must never reach.
#![allow(clippy::unwrap_used)]

mod addresses;
mod listeners;
mod receivers;
mod stage;
mod tls;
mod urls;
