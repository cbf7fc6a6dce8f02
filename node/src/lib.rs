//! `agentpostd`: everything of Agentpost that touches the world.

pub mod shard;
