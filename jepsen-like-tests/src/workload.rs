//! Workloads: clients that perform one kind of operation for the length of a run and record every request and
//! response.
//!
//! Each workload is a file with a `start` that creates its team, its agents and its lanes. A lane performs one
//! operation at a time. Where a real client would retry, a lane repeats a request with an unknown outcome through
//! another node under the same idempotency key.

pub mod ask;
pub mod keys;
pub mod mailbox;
pub mod mixed;
pub mod post;
pub mod quota;
pub mod read;
pub mod send;
pub mod stream;
pub mod topics;
pub mod webhooks;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use futures::future::BoxFuture;
use tokio::task::JoinSet;

use crate::world::World;

/// The kinds of workloads. The letters are those of the README.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A: direct messages, one per request.
    Send,
    /// A: direct messages, a hundred per request.
    SendBatches,
    /// B: readers of every kind on every node, and a few senders.
    Read,
    /// C: agents that subscribe and unsubscribe, and publishes to one and to hundreds of subscribers.
    Topics,
    /// D: clients that compete for the last units of a daily and of a monthly quota.
    Quota,
    /// E: messages to agents with webhooks.
    Webhooks(webhooks::Mix),
    /// F: WebSocket sessions that end and are resumed on other nodes.
    Stream(stream::Mix),
    /// G: keys that are created, used and revoked, and two teams that request each other's data.
    Keys,
    /// I: all mailbox operations mixed, over a thousand inboxes.
    Mixed,
}

impl Kind {
    /// The name on the command line: `webhooks-quick`.
    pub fn name(self) -> String {
        format!("{self:?}").to_lowercase().replace('(', "-").replace(')', "")
    }
}

/// All workloads; of those with several mixes, the mix that fits any scenario.
pub const ALL: [Kind; 9] = [
    Kind::Send,
    Kind::SendBatches,
    Kind::Read,
    Kind::Topics,
    Kind::Quota,
    Kind::Webhooks(webhooks::Mix::Quick),
    Kind::Stream(stream::Mix::Tails),
    Kind::Keys,
    Kind::Mixed,
];

/// Starts the clients of a workload.
pub async fn start(kind: Kind, world: &World) -> Result<Load> {
    match kind {
        Kind::Send => send::start(world, 1).await,
        Kind::SendBatches => send::start(world, 100).await,
        Kind::Read => read::start(world).await,
        Kind::Mixed => mixed::start(world).await,
        Kind::Webhooks(mix) => webhooks::start(mix, world).await,
        Kind::Stream(mix) => stream::start(mix, world).await,
        Kind::Topics => topics::start(world).await,
        Kind::Quota => quota::start(world).await,
        Kind::Keys => keys::start(world).await,
    }
}

/// A workload that is running.
pub struct Load {
    stop: Stop,
    lanes: JoinSet<Result<()>>,
    audit: Audit,
}

/// Reads the final state after the clients have ended and the faults are over.
type Audit = Box<dyn FnOnce(World) -> BoxFuture<'static, Result<()>> + Send>;

/// Tells lanes when to end. Cloning is cheap.
#[derive(Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Whether no new operation should begin.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Load {
    /// A workload without lanes yet, and its audit; [`Load::spawn`] adds the lanes.
    pub fn new<F>(audit: impl FnOnce(World) -> F + Send + 'static) -> Self
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        Load {
            stop: Stop::default(),
            lanes: JoinSet::new(),
            audit: Box::new(|world| Box::pin(audit(world))),
        }
    }

    /// The signal that ends the lanes of this workload.
    pub fn stop(&self) -> Stop {
        self.stop.clone()
    }

    /// Adds a lane. An error means that the harness is broken, not the cluster.
    pub fn spawn(&mut self, lane: impl Future<Output = Result<()>> + Send + 'static) {
        self.lanes.spawn(lane);
    }

    /// Waits until every lane has ended, then runs the audit.
    pub async fn finish(mut self, world: &World) -> Result<()> {
        self.stop.set();
        while let Some(lane) = self.lanes.join_next().await {
            lane.context("a client panicked")??;
        }
        (self.audit)(world.clone()).await.context("the audit")
    }
}
