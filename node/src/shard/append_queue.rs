//! Hands operations to Raft.
//!
//! **The problem.** RaftCore wakes for each operation that another thread hands to it, and for each append so do the log's
//! thread, the streams to the followers, the followers themselves, and apply. On a busy machine these task switches cost
//! more than the work. And RaftCore appends everything that waits for it in one step, up to 4,096 entries of any size:
//! with many large operations that would be tens of megabytes, during which a leader sends no heartbeat.
//!
//! **The rules.**
//! - Operations wait in one queue, in order of arrival. A task on Raft's own thread hands them to RaftCore, so all that
//!   arrived while the thread did something else become one append.
//! - At most [`APPEND_BYTES_MAX`] are handed over and not yet durable on this node. This bounds an append, and the memory
//!   of the log's entries that are not in a file yet. A larger operation goes alone. A group of entries takes the log's
//!   thread milliseconds, so RaftCore is never idle with that much under way.
//! - Times are stamped when an operation leaves the queue.
//! - An operation is charged to its payer as long as it waits here or is not durable, even if its caller has gone away.
//!   This bounds the queue.
//!
//! A follower's appends are bounded by the requests of the leader, which read at most [`APPEND_BYTES_MAX`] from its log.

use std::sync::Arc;

use agentpost_proto::command::Command;
use agentpost_raft_store::disk::log_store::APPEND_BYTES_MAX;
use agentpost_raft_store::disk::types::{Charge as EntryCharge, LeaderId, Proposal, TypeConfig};
use bytes::Bytes;
use openraft::impls::ProgressResponder;
use openraft::raft::ClientWriteResult;
use prost::Message as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::Raft;
use super::budget::Charge;
use super::cluster_time::ClusterTime;
use super::wall_time::WallTime;

/// Operations that wait in the queue. The budget admits fewer than this, so the queue does not fill.
const QUEUE: usize = 8 * 1024;
/// What an entry may add to the bytes of its operation: times, ids, a checksum.
const ENTRY_OVERHEAD: usize = 128;

/// An operation that waits to be handed over.
pub struct Waiting {
    pub operation: Bytes,
    /// The leadership that may append it; any if `None`.
    pub leader: Option<LeaderId>,
    /// Wall time for the command if the voters' clocks become unknown meanwhile.
    pub wall_ms: u64,
    /// Told when the operation is handed to Raft. An operation whose caller does not listen any more is dropped instead.
    pub handed_over: oneshot::Sender<()>,
    /// Told by Raft how the operation ended.
    pub responder: ProgressResponder<TypeConfig, ClientWriteResult<TypeConfig>>,
    /// What the operation takes of the node's budget.
    pub charge: Option<Charge>,
}

/// The end of the queue to which operations are added.
pub struct AppendQueue {
    waiting: mpsc::Sender<Waiting>,
    #[cfg(feature = "failpoints")]
    gate: Gate,
}

/// The end of the queue from which operations are handed to Raft.
pub struct HandOver {
    waiting: mpsc::Receiver<Waiting>,
    gate: Gate,
}

/// An empty queue.
pub fn append_queue() -> (AppendQueue, HandOver) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let gate = Gate::default();
    let queue = AppendQueue {
        waiting: sender,
        #[cfg(feature = "failpoints")]
        gate: gate.clone(),
    };
    let hand_over = HandOver {
        waiting: receiver,
        gate,
    };
    (queue, hand_over)
}

impl AppendQueue {
    /// Adds an operation behind all others. If Raft has ended, the operation is dropped.
    pub fn push(&self, operation: Waiting) {
        // An error returns the operation, whose caller hears of it when it is dropped.
        drop(self.waiting.try_send(operation));
    }

    /// Hands nothing over until the result is dropped.
    #[cfg(feature = "failpoints")]
    pub async fn hold(&self) -> Option<OwnedSemaphorePermit> {
        self.gate.pass(APPEND_BYTES_MAX).await
    }
}

impl HandOver {
    /// Hands operations to Raft until Raft ends. It must run on Raft's own thread.
    pub async fn run(mut self, raft: Raft, cluster_time: ClusterTime, wall_time: WallTime) {
        while let Some(waiting) = self.waiting.recv().await {
            let permit = self.gate.pass(waiting.operation.len()).await;
            if waiting.handed_over.send(()).is_err() {
                continue;
            }
            let (ct_epoch, cluster_ms) = cluster_time.now();
            let command = Command {
                wall_ms: wall_time.stamp().unwrap_or(waiting.wall_ms),
                ct_epoch,
                cluster_ms,
                operation: waiting.operation,
            };
            let charge = EntryCharge::of((waiting.charge, permit));
            let proposal = Proposal::charged(Bytes::from(command.encode_to_vec()), charge);
            let mut request = raft.write(proposal).responder(waiting.responder);
            if let Some(leader) = waiting.leader {
                request = request.with_leader(leader);
            }
            // An error means that Raft has ended, which dropped the responder.
            if request.await.is_err() {
                return;
            }
        }
    }
}

/// Bounds the bytes that are handed over and not durable. Clones share the bound.
#[derive(Clone)]
struct Gate {
    bytes: Arc<Semaphore>,
}

impl Default for Gate {
    fn default() -> Self {
        Gate {
            bytes: Arc::new(Semaphore::new(APPEND_BYTES_MAX)),
        }
    }
}

impl Gate {
    /// Waits until an operation of `bytes` may be handed over. One that is larger than the bound goes alone.
    async fn pass(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let bytes = bytes.saturating_add(ENTRY_OVERHEAD).min(APPEND_BYTES_MAX);
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        // The semaphore is never closed, so this cannot fail.
        Arc::clone(&self.bytes).acquire_many_owned(permits).await.ok()
    }
}

#[cfg(test)]
mod tests {
    use futures::poll;

    use super::*;

    #[tokio::test]
    async fn at_most_a_mebibyte_is_handed_over_in_order_of_arrival() {
        let gate = Gate::default();
        let half = APPEND_BYTES_MAX / 2 - ENTRY_OVERHEAD;
        let first = gate.pass(half).await;
        let second = gate.pass(half).await;
        let (large, small) = (gate.pass(2 * APPEND_BYTES_MAX), gate.pass(1));
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
