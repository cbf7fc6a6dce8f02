//! What handlers may use.

use std::sync::Arc;

use agentpost_proto::command::{Operation, operation, reply};

use super::auth::Caller;
use super::burst::Bursts;
use super::error::{ApiError, Result};
use crate::base::clock::IdSource;
use crate::base::metrics::Metrics;
use crate::base::secrets::Secrets;
use crate::shard::replica::Replica;
use crate::shard::wall_time::WallTime;

/// What handlers of HTTP and WebSocket share. Cheap to clone.
#[derive(Clone)]
pub struct Services {
    /// Reads the state, changes it, and tells of changes.
    pub replica: Replica,
    /// Calendar time, and this node's own clock.
    pub wall_time: WallTime,
    /// New ids, and jitter.
    pub ids: IdSource,
    /// Hashes of keys.
    pub secrets: Arc<Secrets>,
    /// Requests per second of each API key.
    pub bursts: Arc<Bursts>,
    /// Counters.
    pub metrics: Metrics,
}

/// Has an operation carried out in the caller's name. A refusal is an error.
pub(super) async fn carry_out(services: &Services, caller: &Caller, op: operation::Op) -> Result<reply::Reply> {
    let operation = Operation {
        principal: Some(caller.principal()),
        op: Some(op),
    };
    match services.replica.proposer.propose(operation).await?.reply {
        Some(reply::Reply::Rejection(rejection)) => Err(rejection.into()),
        Some(reply) => Ok(reply),
        None => Err(ApiError::internal("an empty reply")),
    }
}
