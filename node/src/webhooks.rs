//! Webhooks: chooses the deliveries that are due, calls their URLs, and records the outcomes.
//!
//! Read [`dispatcher`] first: it explains the protocol, with a picture. In the order in which a delivery passes them:
//!
//! - [`fair_queue`] decides whose turn it is;
//! - [`dispatcher`] claims what is due, one task per leadership;
//! - [`callers`] chooses the node of each call; [`assignments`] starts the calls of the leader and delegates the others,
//!   on the streams of [`links`]; [`caller`] receives them on the other nodes;
//! - [`calls`] makes the calls of a node, [`open`] tracks the open attempts for as long as the process runs, and
//!   [`reporter`] records their outcomes;
//! - [`attempt`] makes one call and returns its result; [`signature`] signs it for the receiver;
//! - [`egress`] is the only way out to an address that a stranger chose; [`resolver`] judges what it dials, [`pace`]
//!   how often;
//! - [`inherited`] counts the calls of earlier leaderships and of lost nodes against the limits;
//! - beside them, on the leader: [`takeover`] closes attempts that no node will report, [`closer`] ends the deliveries
//!   of deleted and disabled endpoints; [`workers`] starts them all, and [`handles`] is what they share;
//! - [`failpoint`] lets tests kill the process at the places that matter.

mod assignments;
pub mod attempt;
pub mod caller;
mod callers;
pub mod calls;
pub mod closer;
pub mod dispatcher;
pub mod egress;
pub mod failpoint;
pub mod fair_queue;
pub mod handles;
mod inherited;
mod links;
pub mod open;
pub mod pace;
pub mod reporter;
pub mod resolver;
pub mod signature;
pub mod takeover;
pub mod workers;
