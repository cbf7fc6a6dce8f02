//! The adapters of [`core`](crate::core) to openraft and to RocksDB.
//!
//! Each module uses only those above it in this list:
//! - `files` and `layout`: durable file operations, and the paths of a shard; [`types`]: openraft's types and their
//!   protobuf; [`in_use`]: whether RocksDB is used;
//! - [`damage`]: what a damaged disk leads to; [`error`]: why a shard does not open;
//! - [`floor`]: what the log must not fall below; [`progress`]: what an opening is doing; [`memory_budget`] and
//!   [`options`]: the settings;
//! - [`segments`]: the files of the log; [`log_store`]: the log;
//! - `read_all`: reading every block of a database; [`state`]: the state database; [`snapshot`]: copies of it;
//! - [`scrub`] reads everything again, `repair` replaces a damaged state, [`state_machine`] applies the log;
//! - [`open`](mod@open) puts them together: the only module that knows all others.

pub mod damage;
pub mod error;
mod files;
pub mod floor;
pub mod in_use;
mod layout;
pub mod log_store;
pub mod memory_budget;
pub mod open;
pub mod options;
pub mod progress;
mod read_all;
mod repair;
pub mod scrub;
mod segments;
pub mod snapshot;
pub mod state;
pub mod state_machine;
#[cfg(test)]
mod testing;
pub mod types;
