//! The composition root: what runs, in which order it starts and stops. No logic.

use std::sync::Arc;

use agentpost_proto::api::admin;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::{Clock, IdSource};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::secrets::Secrets;
use crate::shard::proposer::Proposer;
use crate::shard::reader::Reader;
use crate::shard::wakeups::Wakeups;

/// What the doors may use. Cheap to clone.
#[derive(Clone)]
#[allow(missing_docs)]
pub struct Services {
    pub proposer: Proposer,
    pub reader: Reader,
    pub wakeups: Wakeups,
    pub clock: Clock,
    pub ids: IdSource,
    pub secrets: Arc<Secrets>,
    pub config: Arc<Config>,
    pub metrics: Metrics,
    pub cluster: ClusterHandle,
}

/// The cluster as the operator sees it, and the life of this process. Cheap to clone.
#[derive(Clone)]
pub struct ClusterHandle {
    /// Cancelled when the node stops: close sessions with a resume hint, start nothing new.
    pub shutdown: CancellationToken,
    /// Every task of the doors runs here, so that stopping can wait for it.
    pub tasks: TaskTracker,
}

/// Why leadership stays where it is.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// 400.
    #[error("{0}")]
    Invalid(String),
    /// 409.
    #[error("{0}")]
    NotCaughtUp(String),
    /// 503.
    #[error("not ready: {0}")]
    NotReady(String),
}

impl ClusterHandle {
    /// Every node, as it answers within a second.
    pub async fn status(&self) -> admin::Cluster {
        unimplemented!()
    }

    /// Hands leadership to another voter; returns when it leads.
    pub async fn transfer(&self, to: u64) -> Result<(), TransferError> {
        unimplemented!("{to}")
    }

    /// Takes a snapshot on this node; returns when it is on disk.
    pub async fn snapshot(&self) -> anyhow::Result<()> {
        unimplemented!()
    }

    /// Whether this node can serve linearizable reads and forward writes.
    pub fn ready(&self) -> bool {
        unimplemented!()
    }

    /// The text of `/metrics`.
    pub fn metrics_text(&self) -> String {
        unimplemented!()
    }
}
