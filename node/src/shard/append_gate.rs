//! Bounds the bytes that are handed to Raft and not in its log yet, and with them the size of one append.
//!
//! RaftCore appends everything that waits for it in one step, up to 4,096 entries of any size. With many large operations
//! that would be one step of tens of megabytes, during which a leader sends no heartbeat. openraft has no bound in
//! bytes, so the proposals of a node enter through this gate: an operation waits for its [`Turn`], in order of arrival,
//! and the turn ends when the log has taken the entry. An append never waits for a disk, so with [`APPEND_BYTES_MAX`]
//! handed over RaftCore is never idle.
//!
//! A follower's appends are bounded by the requests of the leader, which read at most [`APPEND_BYTES_MAX`] from its log.

use std::sync::Arc;

use agentpost_raft_store::disk::log_store::APPEND_BYTES_MAX;
use agentpost_raft_store::disk::types::Turn;
use tokio::sync::Semaphore;

/// What an entry may add to the bytes of its operation: times, ids, a checksum.
const ENTRY_OVERHEAD: usize = 128;

/// The gate of a node. Clones are cheap and share it.
#[derive(Clone)]
pub struct AppendGate {
    bytes: Arc<Semaphore>,
}

impl Default for AppendGate {
    fn default() -> Self {
        AppendGate {
            bytes: Arc::new(Semaphore::new(APPEND_BYTES_MAX)),
        }
    }
}

impl AppendGate {
    /// Waits until an operation of `bytes` may be handed to Raft. One that is larger than the bound goes alone.
    pub async fn turn(&self, bytes: usize) -> Turn {
        let bytes = bytes.saturating_add(ENTRY_OVERHEAD).min(APPEND_BYTES_MAX);
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        // The semaphore is never closed, so this cannot fail.
        Turn::of(Arc::clone(&self.bytes).acquire_many_owned(permits).await.ok())
    }
}

#[cfg(test)]
mod tests {
    use futures::poll;

    use super::*;

    #[tokio::test]
    async fn at_most_a_mebibyte_is_handed_over_in_order_of_arrival() {
        let gate = AppendGate::default();
        let half = APPEND_BYTES_MAX / 2 - ENTRY_OVERHEAD;
        let first = gate.turn(half).await;
        let second = gate.turn(half).await;
        let (large, small) = (gate.turn(2 * APPEND_BYTES_MAX), gate.turn(1));
        tokio::pin!(large, small);
        assert!(poll!(&mut large).is_pending() && poll!(&mut small).is_pending());
        drop(first);
        // The large one came first, and needs the whole gate.
        assert!(poll!(&mut large).is_pending() && poll!(&mut small).is_pending());
        drop(second);
        let std::task::Poll::Ready(large) = poll!(&mut large) else {
            panic!("the largest operation never gets its turn")
        };
        assert!(poll!(&mut small).is_pending());
        drop(large);
        assert!(poll!(&mut small).is_ready());
    }
}
