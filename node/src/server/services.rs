//! What handlers may use.

use std::sync::Arc;

use agentpost_proto::command::{Operation, operation, reply};

use super::auth::Caller;
use super::burst::Bursts;
use super::error::{ApiError, Result};
use crate::base::clock::{Clock, IdSource};
use crate::base::config::Config;
use crate::base::metrics::Metrics;
use crate::base::secrets::Secrets;
use crate::cluster::leases::Leases;
use crate::cluster::presence::Presence;
use crate::cluster::status::ClusterHandle;
use crate::shard::proposer::Proposer;
use crate::shard::reader::Reader;
use crate::shard::wakeups::Wakeups;
use crate::shard::wall_time::WallTime;
use crate::webhooks::egress::Egress;

/// What the doors may use. Cheap to clone.
#[derive(Clone)]
pub struct Services {
    pub proposer: Proposer,
    pub reader: Reader,
    pub wakeups: Wakeups,
    pub presence: Presence,
    pub leases: Leases,
    pub clock: Clock,
    pub wall_time: WallTime,
    pub ids: IdSource,
    pub secrets: Arc<Secrets>,
    pub config: Arc<Config>,
    pub metrics: Metrics,
    pub cluster: ClusterHandle,
    pub egress: Egress,
    pub bursts: Arc<Bursts>,
}

/// Has an operation carried out in the caller's name. A refusal is an error.
pub(super) async fn carry_out(services: &Services, caller: &Caller, op: operation::Op) -> Result<reply::Reply> {
    let operation = Operation {
        principal: Some(caller.principal()),
        op: Some(op),
    };
    match services.proposer.propose(operation).await?.reply {
        Some(reply::Reply::Rejection(rejection)) => Err(rejection.into()),
        Some(reply) => Ok(reply),
        None => Err(ApiError::internal("an empty reply")),
    }
}
