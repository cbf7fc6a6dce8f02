//! Tests of the whole crate, in one binary.
#![allow(clippy::unwrap_used)]

mod joint_membership;
