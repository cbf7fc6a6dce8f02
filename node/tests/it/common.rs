//! What the tests share.

pub mod cluster;
pub mod handles;
pub mod in_child;
pub mod office;
pub mod reads;
pub mod upload;
pub mod vendor;
pub mod web;
pub mod webhooks;

pub use agentpost_testkit::eventually;
pub use cluster::{TestCluster, TestTeam};
pub use handles::{NodeHandles, read_state};
