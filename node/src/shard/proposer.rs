//! Takes an operation to the leader and classifies the outcome.

use agentpost_proto::command::{Operation, Reply};

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// Nothing was proposed; safe to retry.
    #[error("not ready: {0}")]
    NotReady(String),
    /// Too much is waiting; nothing was proposed.
    #[error("overloaded")]
    Overloaded,
    /// It may or may not be stored; retry with the same idempotency key.
    #[error("outcome unknown: {0}")]
    OutcomeUnknown(String),
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Proposer {}

impl Proposer {
    /// Proposes on the leader, directly or by one forward. A deterministic refusal is a `Reply`.
    pub async fn propose(&self, operation: Operation) -> Result<Reply, ProposeError> {
        unimplemented!("{operation:?}")
    }
}
