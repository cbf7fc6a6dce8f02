//! The replicated core: openraft storage on RocksDB, the key space, pure `apply`, queries, snapshots.
//! No HTTP, no clock, no randomness.
//!
//! Read in this order: [`keys`] (what is stored), [`apply`] (what changes it), [`query`] (what can be
//! asked), then the adapters that join it to openraft and to the disk: [`db`], [`log_store`],
//! [`state_machine`], [`snapshot`]; what a disk does to us: `floor`, [`damage`], [`scrub`].

pub mod apply;
pub mod damage;
pub mod db;
pub mod effect;
mod files;
mod floor;
pub mod keys;
pub mod kv;
pub mod log_store;
pub mod mutant;
pub mod query;
pub mod scrub;
pub mod snapshot;
pub mod state_machine;
#[cfg(test)]
mod testing;
pub mod types;
pub mod view;
