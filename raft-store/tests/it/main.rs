//! The integration tests of the crate, one module per area. `README.md` says what they share.
#![allow(clippy::unwrap_used)]

mod caches;
mod common;
mod cost;
mod cursors;
mod deliveries;
mod dispatch_model;
mod expiry;
mod layers;
mod lists;
mod logins;
mod previews;
mod properties;
mod quotas;
mod replay;
mod retention;
mod scripts;
mod storage_suite;
mod tombstones;
mod topics;
mod with_raft;
