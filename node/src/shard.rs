//! One Raft group with its stores and handles.

pub mod proposer;
pub mod reader;
pub mod wakeups;
