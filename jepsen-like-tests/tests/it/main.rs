//! Tests of the harness with real processes, networks and disk faults, and of the layers of its sources.
#![allow(clippy::unwrap_used)]

mod disk_faults;
mod dispatch_faults;
mod layers;
mod network;
