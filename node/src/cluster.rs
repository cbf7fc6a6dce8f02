//! The cluster as its users see it: [`status`] is what an operator may ask of it, [`presence`] counts the open sessions of
//! agents, and [`leases`] counts reads of inboxes without a log entry for each.

pub mod leases;
pub mod presence;
pub mod status;
