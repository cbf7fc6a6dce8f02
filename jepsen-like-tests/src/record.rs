//! What a run records in its directory, and the words that the writers and the checkers of these records share.
//!
//! Clients, the nemesis and the monitor of the nodes write the records; the checkers read them. Neither side knows the
//! other.

pub mod deliveries;
pub mod faults;
pub mod history;
pub mod leaders;
pub mod mailbox;
pub mod members;
pub mod recoveries;
pub mod run;
pub mod verdict;
