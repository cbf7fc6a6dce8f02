//! The three handles through which everything above reaches the replicated state.

use super::proposer::Proposer;
use super::reader::Reader;
use super::wakeups::Wakeups;

/// The replicated state on this node. Cheap to clone.
#[derive(Clone)]
pub struct Replica {
    /// Reads it.
    pub reader: Reader,
    /// Changes it, through the leader.
    pub proposer: Proposer,
    /// Tells that something in it changed.
    pub wakeups: Wakeups,
}
