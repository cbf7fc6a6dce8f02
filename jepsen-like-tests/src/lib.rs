//! Black-box fault tests: real `agentpostd` processes, a workload that records what it was told, faults, and
//! checkers that compare the record with what the cluster has afterwards. Nothing here links the node.

pub mod checker;
pub mod cluster;
pub mod deliveries;
pub mod history;
pub mod receiver;
pub mod webhooks;
pub mod workload;
