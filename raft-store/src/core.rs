//! The replicated state without a disk: its keys, what changes it and what can be asked of it. Pure functions of their
//! arguments: nothing here reads a clock, draws a random number, or touches a file, a socket or a thread.
//!
//! Each module uses only those above it in this list:
//! - [`keys`] is the key space, [`kv`] the ordered map that it lives in, [`effect`] what an entry made possible,
//!   [`mutant`] rules that a test of the tests may break;
//! - [`view`] buffers the writes of a batch and reads through them;
//! - [`query`] answers questions;
//! - [`apply`] changes the state.

pub mod apply;
pub mod effect;
pub mod keys;
pub mod kv;
pub mod mutant;
pub mod query;
pub mod view;
