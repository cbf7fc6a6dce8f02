//! What only the leader does, for as long as it leads.
//!
//! A tenure begins when Raft says that this node leads and ends when it says otherwise. It opens with a
//! `BeginEpoch` entry: once that is applied here, this node may stamp cluster time, because every command of
//! its predecessors lies before it. Then the leader-only workers run. When the tenure ends, stamping stops
//! first, the workers are cancelled, and the next tenure waits until they are gone.

use std::sync::Arc;
use std::time::Duration;

use agentpost_proto::command::{BeginEpoch, Operation, reply};
use agentpost_raft_store::core::query;
use agentpost_raft_store::disk::state::StateHandle;
use bytes::Bytes;
use futures::future::BoxFuture;
use prost::Message as _;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::cluster_time::{ClusterTime, Epoch};
use super::proposer::Proposer;
use super::{Ended, Lead, Leader, Raft};

/// Between two attempts to begin an epoch.
const RETRY: Duration = Duration::from_millis(50);

/// A job of the leader. Called at the start of each tenure; its future ends soon after the token is cancelled.
pub type Worker = Arc<dyn Fn(CancellationToken) -> BoxFuture<'static, ()> + Send + Sync>;

/// Watches who leads and runs the tenures of this node.
pub struct Leadership {
    /// The group.
    pub raft: Raft,
    /// Its state here.
    pub state: StateHandle,
    /// Where epochs are begun.
    pub proposer: Proposer,
    /// Told when this node may stamp.
    pub cluster_time: ClusterTime,
    /// Started in every tenure.
    pub workers: Vec<Worker>,
}

impl Leadership {
    /// Runs until `shutdown`, which ends a tenure as well.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut lead = Lead::new(&self.raft);
        while !shutdown.is_cancelled() {
            if lead.now() == Leader::Here {
                let term = lead.term();
                tracing::info!(term, "this node leads");
                let ended = self.tenure(term, &mut lead, &shutdown).await;
                tracing::info!(term, "this node leads no longer");
                // What Raft said last stays: it would lead again and again.
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

    /// Returns when another node leads, or this one in another term, and everything of this tenure has ended. An error
    /// means that Raft has.
    async fn tenure(&self, term: u64, lead: &mut Lead, shutdown: &CancellationToken) -> Result<(), Ended> {
        let token = shutdown.child_token();
        let mut running = JoinSet::new();
        let working = async {
            self.begin_epoch(term).await;
            for worker in &self.workers {
                running.spawn(worker(token.clone()));
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
        loop {
            match self.proposer.propose_here(operation.clone()).await {
                Ok(answer) if matches!(answer.reply, Some(reply::Reply::Done(_))) => {
                    match query::applied(&*self.state.current()) {
                        // Nobody else's epoch can have begun since: this node still leads the term.
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
                        Err(error) => tracing::error!(%error, "reading the epoch failed"),
                    }
                }
                // Another term has begun: this tenure is about to end.
                Ok(answer) => tracing::debug!(?answer, "the epoch was refused"),
                Err(error) => tracing::info!(%error, "beginning the epoch failed; trying again"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}
