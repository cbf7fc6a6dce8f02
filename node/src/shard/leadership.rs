//! The leader's work: it runs while this node leads.
//!
//! A leadership of this node begins when Raft says that this node leads and ends when Raft says
//! otherwise. It opens with a `BeginEpoch` entry. Once that is applied here, every command of earlier leaders lies
//! before it, so this node may stamp cluster time. Then the leader's workers run. When the leadership ends, stamping stops
//! first, then the workers are cancelled, and the next leadership starts once they have ended.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use agentpost_proto::command::{BeginEpoch, Operation, reply};
use agentpost_raft_store::core::query;
use agentpost_raft_store::disk::state::StateHandle;
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use prost::Message as _;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::cluster_time::{ClusterTime, Epoch};
use super::proposer::Proposer;
use super::{Ended, Lead, Leader, Raft};
use crate::base::repeats::Repeats;
use crate::base::task_watch::TaskWatch;

/// Pause between two attempts to begin an epoch.
const RETRY: Duration = Duration::from_millis(50);

/// A worker of the leader. It is started with each leadership, and ends soon after the token is cancelled but not before.
#[derive(Clone)]
pub struct Worker {
    name: &'static str,
    start: Arc<dyn Fn(CancellationToken) -> BoxFuture<'static, ()> + Send + Sync>,
}

impl Worker {
    /// A worker that `start` runs in each leadership. The name is for the log.
    pub fn new<F>(name: &'static str, start: impl Fn(CancellationToken) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Worker {
            name,
            start: Arc::new(move |stop| start(stop).boxed()),
        }
    }

    /// Runs the worker during one leadership.
    pub fn start(&self, stop: CancellationToken) -> BoxFuture<'static, ()> {
        (self.start)(stop)
    }
}

/// Runs the leaderships of this node.
pub struct Leadership {
    pub raft: Raft,
    pub state: StateHandle,
    pub proposer: Proposer,
    /// Allows or forbids this node to stamp cluster time.
    pub cluster_time: ClusterTime,
    /// The workers, started in every leadership.
    pub workers: Vec<Worker>,
    /// Ends the node when a worker dies.
    pub watch: TaskWatch,
}

impl Leadership {
    /// Runs until `shutdown`, which also ends the current leadership.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut lead = Lead::new(&self.raft);
        while !shutdown.is_cancelled() {
            if lead.now() == Leader::Here {
                let term = lead.term();
                tracing::info!(term, "this node leads");
                let ended = self.lead_in(term, &mut lead, &shutdown).await;
                tracing::info!(term, "this node leads no longer");
                // Raft has ended, so its metrics keep naming this node as the leader; without this the loop would not
                // end.
                if ended.is_err() {
                    return;
                }
            } else {
                tokio::select! {
                    changed = lead.changed() => if changed.is_err() { return },
                    () = shutdown.cancelled() => return,
                }
            }
        }
    }

    /// Runs one leadership. Returns when another node leads, or this node in another term, and every worker has ended. An
    /// error means that Raft has ended.
    async fn lead_in(&self, term: u64, lead: &mut Lead, shutdown: &CancellationToken) -> Result<(), Ended> {
        let token = shutdown.child_token();
        let mut running = JoinSet::new();
        let working = async {
            self.begin_epoch(term).await;
            for worker in &self.workers {
                let working = worker.start(token.clone());
                running.spawn(self.watch.until(&token, worker.name, working));
            }
            std::future::pending::<()>().await;
        };
        let deposed = async {
            while lead.now() == Leader::Here && lead.term() == term {
                lead.changed().await?;
            }
            Ok(())
        };
        let ended = tokio::select! {
            () = working => Ok(()),
            ended = deposed => ended,
            () = shutdown.cancelled() => Ok(()),
        };
        self.cluster_time.set(None);
        token.cancel();
        while running.join_next().await.is_some() {}
        ended
    }

    async fn begin_epoch(&self, term: u64) {
        let node = *self.raft.node_id();
        let operation = Bytes::from(Operation::internal(BeginEpoch { node, term }).encode_to_vec());
        let failures = Repeats::default();
        loop {
            match self.proposer.propose_here(operation.clone()).await {
                Ok(answer) if matches!(answer.reply, Some(reply::Reply::Done(_))) => {
                    match query::applied(&*self.state.current()) {
                        // No other epoch can have begun since, because this node still leads the term.
                        Ok(applied) if applied.epoch_node == node => {
                            let epoch = Epoch {
                                index: applied.epoch,
                                term,
                                start_ms: applied.cluster_ms,
                                began: Instant::now(),
                            };
                            self.cluster_time.set(Some(epoch));
                            return;
                        }
                        Ok(_) => {}
                        Err(error) => {
                            if let Some(left_out) = failures.due("read") {
                                tracing::error!(%error, left_out, "reading the epoch failed; trying again; check the disk");
                            }
                        }
                    }
                }
                // Another term has begun, so this leadership is about to end.
                Ok(answer) => tracing::debug!(
                    ?answer,
                    "the epoch was refused, because another term has begun; this leadership ends"
                ),
                Err(error) => {
                    if let Some(left_out) = failures.due("begin") {
                        tracing::info!(%error, left_out, "beginning the epoch failed; trying again");
                    }
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}
