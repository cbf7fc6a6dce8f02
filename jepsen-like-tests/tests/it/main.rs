//! Tests of the harness with real processes, networks and disk faults.
#![allow(clippy::unwrap_used)]

mod disk_faults;
mod dispatch_faults;
mod network;
