//! Webhooks: who is called, when, and how.
//!
//! - [`attempt`] makes one call and says what became of it; [`signature`] is what receivers verify it with;
//! - [`egress`] is the only way out to an address that a stranger chose; [`resolver`] judges what it dials, [`pace`] how
//!   often.

pub mod attempt;
pub mod egress;
pub mod pace;
pub mod resolver;
pub mod signature;
