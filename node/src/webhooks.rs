//! Webhooks: who is called, when, and how.
//!
//! Read [`dispatcher`] first: the protocol and its picture. In the order of a delivery's way:
//!
//! - [`fair_queue`] knows whose turn it is;
//! - [`dispatcher`] claims what is due, one task per leadership; [`calls`] makes the calls, [`open`] knows which attempts
//!   are open, for as long as the process lives, and [`reporter`] records what became of them;
//! - [`attempt`] makes one call and says what became of it; [`signature`] is what receivers verify it with;
//! - [`egress`] is the only way out to an address that a stranger chose; [`resolver`] judges what it dials, [`pace`] how
//!   often;
//! - beside them, on the leader: [`takeover`] closes what nobody will report, [`closer`] ends the deliveries of deleted
//!   and disabled endpoints; [`workers`] starts them all, and [`handles`] is what they share;
//! - [`failpoint`] lets tests kill the process at the places that matter.

pub mod attempt;
pub mod calls;
pub mod closer;
pub mod dispatcher;
pub mod egress;
pub mod failpoint;
pub mod fair_queue;
pub mod handles;
pub mod open;
pub mod pace;
pub mod reporter;
pub mod resolver;
pub mod signature;
pub mod takeover;
pub mod workers;
