//! The replicated core of a node: pure `apply` over an ordered map, queries, and openraft's storage on RocksDB.
//! No HTTP, no clock, no randomness.
//!
//! Two layers; `tests/it/layers.rs` reads the imports and fails when one leads up:
//! - [`disk`] joins the core to openraft and to the disk;
//! - [`core`] is pure. Read it in this order: [`core::keys`] (what is stored), [`core::apply`] (what changes it),
//!   [`core::query`] (what can be asked).

pub mod core;
pub mod disk;
