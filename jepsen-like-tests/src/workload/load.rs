//! A running workload: its lanes, the signal that ends them, and the audit at the end.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use futures::future::BoxFuture;
use tokio::task::JoinSet;

use super::context::ClientContext;

/// A workload that is running.
pub struct Load {
    stop: StopFlag,
    lanes: JoinSet<Result<()>>,
    audit: Audit,
}

/// Reads the final state after the clients have ended and the faults are over.
type Audit = Box<dyn FnOnce(ClientContext) -> BoxFuture<'static, Result<()>> + Send>;

/// Tells lanes when to end. Cloning is cheap.
#[derive(Clone, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
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
    pub fn new<F>(audit: impl FnOnce(ClientContext) -> F + Send + 'static) -> Self
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        Load {
            stop: StopFlag::default(),
            lanes: JoinSet::new(),
            audit: Box::new(|ctx| Box::pin(audit(ctx))),
        }
    }

    /// The signal that ends the lanes of this workload.
    pub fn stop(&self) -> StopFlag {
        self.stop.clone()
    }

    /// Adds a lane. An error means that the harness is broken, not the cluster.
    pub fn spawn(&mut self, lane: impl Future<Output = Result<()>> + Send + 'static) {
        self.lanes.spawn(lane);
    }

    /// Waits until every lane has ended, then runs the audit.
    pub async fn finish(mut self, ctx: &ClientContext) -> Result<()> {
        self.stop.set();
        while let Some(lane) = self.lanes.join_next().await {
            lane.context("a client panicked")??;
        }
        (self.audit)(ctx.clone()).await.context("the audit")
    }
}
