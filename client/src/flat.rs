//! The calls of the old flat client. They go when the commands and the fault tests use the new ones.

mod admin;
mod agents;
pub(crate) mod deliveries;
mod kite;
pub(crate) mod mail;
pub(crate) mod topics;
