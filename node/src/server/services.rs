//! What the request handlers of HTTP and WebSocket share: their handles, and a bound on requests.

use std::sync::Arc;

use agentpost_proto::command::{Operation, Reply, operation};
use agentpost_proto::operation::{NoAnswer, Op};

use super::auth::Caller;
use super::burst::Bursts;
use super::error::{ApiError, Result};
use crate::base::clock::IdSource;
use crate::base::metrics::Metrics;
use crate::base::secrets::Secrets;
use crate::shard::budget::Permit;
use crate::shard::replica::Replica;
use crate::shard::wall_time::WallTime;

/// Upper bound on the bytes of a request that carries no message: an HTTP body or the frame of an RPC.
pub const SMALL_REQUEST_BYTES_MAX: usize = 64 * 1024;

/// The handles that the handlers of HTTP and WebSocket share. Clones are cheap.
#[derive(Clone)]
pub struct Services {
    /// Reads the state, changes it, and announces changes.
    pub replica: Replica,
    /// Calendar time, and this node's own clock.
    pub wall_time: WallTime,
    /// The source of ids and jitter.
    pub ids: IdSource,
    /// The keys derived from the cluster secret; they hash API keys.
    pub secrets: Arc<Secrets>,
    /// The burst limits of API keys.
    pub bursts: Arc<Bursts>,
    pub metrics: Metrics,
}

/// Proposes an operation in the caller's name and returns its answer. A rejection is an error.
pub(super) async fn carry_out<O: Op>(services: &Services, caller: &Caller, permit: &Permit, op: O) -> Result<O::Reply> {
    answer_to::<O>(propose(services, caller, permit, op.into()).await?)
}

/// Proposes an operation in the caller's name, charged to `permit`, and returns the reply as it came.
pub(super) async fn propose(services: &Services, caller: &Caller, permit: &Permit, op: operation::Op) -> Result<Reply> {
    let operation = Operation::of(caller.principal(), op);
    Ok(services.replica.proposer.propose_admitted(permit, operation).await?)
}

/// The answer to an operation of kind `O`; a rejection is an error.
pub(super) fn answer_to<O: Op>(reply: Reply) -> Result<O::Reply> {
    reply.answer_to::<O>().map_err(|error| match error {
        NoAnswer::Rejected(rejection) => rejection.into(),
        unexpected @ NoAnswer::Unexpected(_) => ApiError::internal(unexpected),
    })
}
