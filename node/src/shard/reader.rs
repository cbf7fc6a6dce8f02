//! Reads of the replicated state on this node.
//!
//! A linearizable read needs an index that covers every write acknowledged before the read began. The leader returns
//! one after a round of heartbeats has confirmed that it still leads. One such barrier serves any number of reads:
//! reads that arrive while a barrier is in progress share the next one, so at most one is in flight and the cost does
//! not grow with the number of readers. A follower asks the leader over the forward stream, then waits until its own
//! state has reached the index.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use agentpost_proto::peer::forward_reply::Outcome as Answered;
use agentpost_raft_store::core::mutant::{self, Mutant};
use agentpost_raft_store::disk::state::StateHandle;
use agentpost_raft_store::disk::types::TypeConfig;
use openraft::LogIdOptionExt as _;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::metrics::RaftDataMetrics;
use openraft::raft::ReadPolicy;
use openraft::type_config::alias::WatchReceiverOf;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout_at};

use super::local_state::LocalState;
use super::read_pool::ReadPool;
use super::{Lead, Leader, Raft};
use crate::base::clock::IdSource;
use crate::base::metrics::Metrics;
use crate::base::task_watch::TaskWatch;
use crate::net::forward::{Forwarder, Kind};

/// A read that finds no quorum for this long is refused.
pub const READ_DEADLINE: Duration = Duration::from_secs(2);
/// Time limit for one barrier; the leader gives up earlier, at the end of its lease.
const BARRIER_DEADLINE: Duration = Duration::from_secs(1);
/// Upper bound on the readers that wait for the next barrier. Further ones are refused at once.
const WAITING_MAX: usize = 16 * 1024;

/// There is no quorum, or this node does not serve yet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not ready: {0}")]
pub struct NotReady(pub String);

/// Reads the state of one shard on this node. Clones are cheap.
#[derive(Clone)]
pub struct Reader {
    shared: Arc<Shared>,
}

struct Shared {
    state: StateHandle,
    pool: ReadPool,
    progress: WatchReceiverOf<TypeConfig, RaftDataMetrics<TypeConfig>>,
    lead: Lead,
    ids: IdSource,
    waiting: mpsc::Sender<Waiter>,
    recovered: Arc<AtomicBool>,
}

/// A request for a read index.
struct Waiter {
    asker: Asker,
    index: oneshot::Sender<Result<u64, NotReady>>,
}

/// Whether the request may be forwarded: one from a peer has been forwarded already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asker {
    Client,
    Peer,
}

impl Reader {
    /// A reader of `state`, which `raft` maintains. Its worker ends with the last clone of the reader.
    pub fn new(
        raft: Raft,
        state: StateHandle,
        forwarder: Forwarder,
        ids: IdSource,
        metrics: Metrics,
        watch: &TaskWatch,
    ) -> Self {
        let (waiting, waiters) = mpsc::channel(WAITING_MAX);
        let (progress, lead) = (raft.data_metrics(), Lead::new(&raft));
        let recovered = Arc::new(AtomicBool::new(false));
        let recovering = watch_recovery(raft.clone(), Arc::clone(&recovered));
        tokio::spawn(watch.may_end("recovery", recovering));
        let pool = ReadPool::new(metrics.reads.clone());
        let barriers = Barriers {
            lead: lead.clone(),
            raft,
            forwarder,
            metrics,
        };
        tokio::spawn(watch.may_end("read barriers", barriers.run(waiters)));
        let shared = Shared {
            state,
            pool,
            progress,
            lead,
            ids,
            waiting,
            recovered,
        };
        Reader {
            shared: Arc::new(shared),
        }
    }

    /// A state that contains every write acknowledged before this call. Barriers are shared.
    pub async fn linearizable(&self) -> Result<LocalState, NotReady> {
        self.linearizable_within(READ_DEADLINE).await
    }

    /// Like [`Self::linearizable`], with another deadline.
    pub async fn linearizable_within(&self, limit: Duration) -> Result<LocalState, NotReady> {
        let deadline = Instant::now() + limit;
        loop {
            let leader = self.shared.lead.now();
            match timeout_at(deadline, self.attempt()).await {
                Ok(Ok(())) => return Ok(self.local()),
                Ok(Err(refused)) if Instant::now() >= deadline => return Err(refused),
                Ok(Err(_)) => {
                    let _ = timeout_at(deadline, self.shared.lead.pause(&leader, &self.shared.ids)).await;
                }
                Err(_) => return Err(NotReady("no quorum confirmed the leader in time".to_owned())),
            }
        }
    }

    /// This node's state, without a barrier, for a caller that does not need the newest. It is not older than anything
    /// that this node served before its last restart.
    pub fn local_read(&self) -> Result<LocalState, NotReady> {
        match self.shared.recovered.load(Ordering::Acquire) {
            true => Ok(self.local()),
            false => Err(NotReady("this node is still catching up after its start".to_owned())),
        }
    }

    /// This node's current state.
    pub fn local(&self) -> LocalState {
        LocalState::new(self.shared.state.current(), self.shared.pool.clone())
    }

    /// An index that covers every acknowledged write, for a peer. Only the leader can answer.
    pub(crate) async fn read_index_for_peer(&self) -> Result<u64, NotReady> {
        self.index(Asker::Peer).await
    }

    async fn attempt(&self) -> Result<(), NotReady> {
        if mutant::on(Mutant::StaleRead) {
            return Ok(());
        }
        let index = self.index(Asker::Client).await?;
        let reached = |progress: &RaftDataMetrics<TypeConfig>| progress.last_applied.index() >= Some(index);
        let mut progress = self.shared.progress.clone();
        while !reached(&progress.borrow_and_update()) {
            progress
                .changed()
                .await
                .map_err(|_| NotReady("this node stops".to_owned()))?;
        }
        Ok(())
    }

    async fn index(&self, asker: Asker) -> Result<u64, NotReady> {
        let (index, answer) = oneshot::channel();
        let waiter = Waiter { asker, index };
        self.shared
            .waiting
            .try_send(waiter)
            .map_err(|_| NotReady("too many reads wait".to_owned()))?;
        answer
            .await
            .unwrap_or_else(|_| Err(NotReady("this node stops".to_owned())))
    }
}

/// Reports when the state has reached what it was before the last stop.
async fn watch_recovery(raft: Raft, recovered: Arc<AtomicBool>) {
    match raft.wait_for_recovery(None).await {
        Ok(_) => recovered.store(true, Ordering::Release),
        Err(error) => tracing::debug!(%error, "the node stopped before its state had caught up with its last run"),
    }
}

/// Runs barriers, one at a time, each for all requests that wait.
struct Barriers {
    raft: Raft,
    lead: Lead,
    forwarder: Forwarder,
    metrics: Metrics,
}

impl Barriers {
    async fn run(self, mut waiters: mpsc::Receiver<Waiter>) {
        let mut batch = Vec::new();
        while waiters.recv_many(&mut batch, WAITING_MAX).await > 0 {
            let leader = self.lead.now();
            if !matches!(leader, Leader::Here) {
                let strayed = batch.extract_if(.., |waiter| waiter.asker == Asker::Peer);
                strayed.for_each(|waiter| waiter.answer(Err(NotReady("this node does not lead".to_owned()))));
            }
            if batch.is_empty() {
                continue;
            }
            let mut lead = self.lead.clone();
            let index = tokio::select! {
                index = self.barrier(&leader) => index,
                () = lead.moved_from(&leader) => Err(NotReady("the leader changed".to_owned())),
                () = sleep(BARRIER_DEADLINE) => Err(NotReady("no answer from the leader".to_owned())),
            };
            match index {
                Ok(_) => self.metrics.raft.read_barriers.inc(),
                Err(_) => self.metrics.raft.read_barriers_failed.inc(),
            };
            batch.drain(..).for_each(|waiter| waiter.answer(index.clone()));
        }
    }

    async fn barrier(&self, leader: &Leader) -> Result<u64, NotReady> {
        match leader {
            Leader::Nobody => Err(NotReady("no leader".to_owned())),
            Leader::Here => {
                let confirmed = self.raft.get_read_linearizer(ReadPolicy::ReadIndex).await;
                let confirmed = confirmed.map_err(|error| NotReady(error.to_string()))?;
                Ok(confirmed.read_log_id().index())
            }
            Leader::There(node, address) => match self.forwarder.ask(*node, address, Kind::ReadIndex).await {
                Ok(Answered::ReadIndex(index)) => Ok(index),
                Ok(Answered::NotReady(refusal)) => Err(NotReady(refusal.reason)),
                Ok(_) => Err(NotReady("unexpected reply type".to_owned())),
                Err(lost) => Err(NotReady(format!("{lost:?}"))),
            },
        }
    }
}

impl Waiter {
    fn answer(self, index: Result<u64, NotReady>) {
        let _ = self.index.send(index);
    }
}
