//! Clients that do one kind of thing for as long as a run lasts, and write down what they asked and were told.
//!
//! Each kind is a file with a `start` that makes its team, its agents and its lanes. A lane does one thing at a time;
//! what is unknown it repeats through another node under the same idempotency key where a client would.

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

/// What clients may be doing. The letters are those of the test plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A: direct messages, one by one.
    Send,
    /// A: direct messages, a hundred to a request.
    SendBatches,
    /// B: readers of every kind, from every node, and some who send.
    Read,
    /// C: subscribers that come and go, publishes to one and to hundreds of them.
    Topics,
    /// D: clients that race for the last units of a day and of a month.
    Quota,
    /// E: mail to agents with webhooks.
    Webhooks(webhooks::Mix),
    /// F: WebSocket sessions that end and are resumed elsewhere.
    Stream(stream::Mix),
    /// G: keys that are made, used and revoked, and two teams that ask for each other's things.
    Keys,
    /// I: everything with mailboxes, over a thousand of them.
    Mixed,
}

impl Kind {
    /// As the command line has it: `webhooks-quick`.
    pub fn name(self) -> String {
        format!("{self:?}").to_lowercase().replace('(', "-").replace(')', "")
    }
}

/// All of them, those with several mixes in the one that goes with any scenario.
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

/// Lets clients of a kind begin.
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

/// Clients at work.
pub struct Load {
    stop: Stop,
    lanes: JoinSet<Result<()>>,
    audit: Audit,
}

/// Looks at everything there is, when the clients have ended and the faults are over.
type Audit = Box<dyn FnOnce(World) -> BoxFuture<'static, Result<()>> + Send>;

/// Tells lanes when to end. Cheap to clone.
#[derive(Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Whether to begin nothing new.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Ends them.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Load {
    /// Clients whose lanes are added with [`Load::spawn`], and what is looked at in the end.
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

    /// What tells this load's lanes when to end.
    pub fn stop(&self) -> Stop {
        self.stop.clone()
    }

    /// Adds a lane. An error means that the harness is broken, not the cluster.
    pub fn spawn(&mut self, lane: impl Future<Output = Result<()>> + Send + 'static) {
        self.lanes.spawn(lane);
    }

    /// Waits until every lane has ended what it was doing, then looks at everything.
    pub async fn finish(mut self, world: &World) -> Result<()> {
        self.stop.set();
        while let Some(lane) = self.lanes.join_next().await {
            lane.context("a client panicked")??;
        }
        (self.audit)(world.clone()).await.context("the audit")
    }
}
