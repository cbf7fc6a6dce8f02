//! This node as a member of its Raft group: its status, and the hand-over of leadership.

use std::collections::BTreeMap;
use std::time::Duration;

use agentpost_proto::command::{Operation, Tick};
use agentpost_proto::limits::{ATTEMPT_TIMEOUT_MS, START_WINDOW_MS};
use agentpost_proto::peer::StatusReply;
use agentpost_raft_store::core::query;
use agentpost_raft_store::disk::state::StateHandle;
use agentpost_raft_store::disk::types::Member;
use bytes::Bytes;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{InitializeError, RaftError};
use openraft::{Instant as _, LogIdOptionExt as _, ServerState};
use prost::Message as _;
use tokio::time::{sleep, timeout};

use super::drain::{Drain, DrainGuard};
use super::proposer::Proposer;
use super::{Lead, Leader, Raft};
use crate::base::clock::Clock;
use crate::base::metrics::{Metrics, gauge};

/// Time limit for the work that a hand-over waits for: webhook calls start and end within it.
pub const DRAIN_DEADLINE: Duration = Duration::from_millis(START_WINDOW_MS + ATTEMPT_TIMEOUT_MS);
/// Time limit for a transfer of leadership, until this node knows the new leader.
pub const TRANSFER_DEADLINE: Duration = Duration::from_secs(3);
/// A voter that lags by more entries is not accepted as successor when an operator asks.
const LAG_MAX: u64 = 100;
/// [`LAG_MAX`] when this node stops. It is larger, because this node accepts no writes then and the successor catches
/// up.
const LAG_MAX_STOPPING: u64 = 10_000;
/// A voter that has been silent for longer is not accepted as successor.
const SILENCE_MAX: Duration = Duration::from_secs(1);
/// How often the lag of a successor is checked: under load it is small enough only at moments.
const LOOKS: u32 = 100;
/// Pause between two checks.
const LOOK: Duration = Duration::from_millis(10);
/// Time limit for the last entry of a stopping leader.
const TICK_DEADLINE: Duration = Duration::from_secs(1);

/// Why a transfer of leadership did not happen.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The target is not another voter (400).
    #[error("{0}")]
    Invalid(String),
    /// The target lags or is silent (409).
    #[error("{0}")]
    NotCaughtUp(String),
    /// There is no leader here, or the target did not take over in time (503).
    #[error("not ready: {0}")]
    NotReady(String),
}

/// This node as a member of its group. Clones are cheap.
#[derive(Clone)]
pub struct ThisNode {
    raft: Raft,
    state: StateHandle,
    proposer: Proposer,
    drain: Drain,
    clock: Clock,
}

impl ThisNode {
    /// A handle on this node, whose leader's workers enter `drain`.
    pub fn new(raft: Raft, state: StateHandle, proposer: Proposer, drain: Drain, clock: Clock) -> Self {
        ThisNode {
            raft,
            state,
            proposer,
            drain,
            clock,
        }
    }

    /// The id of this node.
    pub fn id(&self) -> u64 {
        *self.raft.node_id()
    }

    /// The leader, as this node knows it.
    pub fn lead(&self) -> Lead {
        Lead::new(&self.raft)
    }

    pub(crate) fn state(&self) -> &StateHandle {
        &self.state
    }

    /// The members, as this node knows them.
    pub fn members(&self) -> BTreeMap<u64, Member> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let nodes = metrics.membership_config.membership().nodes();
        nodes.map(|(id, member)| (*id, member.clone())).collect()
    }

    /// The voters, as this node knows them.
    pub fn voters(&self) -> BTreeMap<u64, Member> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let known = |id| Some((id, membership.get_node(&id)?.clone()));
        membership.voter_ids().filter_map(known).collect()
    }

    /// Whether node `id` is a member, as this node knows it.
    pub fn is_member(&self, id: u64) -> bool {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.membership().get_node(&id).is_some()
    }

    /// Whether this node belongs to a cluster that was formed.
    pub async fn is_initialized(&self) -> anyhow::Result<bool> {
        Ok(self.raft.is_initialized().await?)
    }

    /// Forms the cluster. Does nothing if it exists, because all nodes have the same list of members.
    pub async fn initialize(&self, members: BTreeMap<u64, Member>) -> anyhow::Result<()> {
        match self.raft.initialize(members).await {
            Ok(()) => tracing::info!("cluster initialised"),
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Takes a snapshot; returns when it is on disk.
    pub async fn snapshot(&self) -> anyhow::Result<()> {
        let wanted = self.raft.metrics().borrow_watched().last_applied;
        self.raft.trigger().snapshot().await?;
        let mut metrics = self.raft.metrics();
        while metrics.borrow_and_update().snapshot < wanted {
            metrics.changed().await?;
        }
        Ok(())
    }

    /// Waits until Raft fails; the process must then end. Returns the reason.
    pub async fn failed(&self) -> String {
        let mut metrics = self.raft.metrics();
        loop {
            if let Err(fatal) = &metrics.borrow_and_update().running_state {
                return fatal.to_string();
            }
            if metrics.changed().await.is_err() {
                return "Raft has ended".to_owned();
            }
        }
    }

    /// Brings the gauges up to date.
    pub fn measure(&self, metrics: &Metrics) {
        let status = self.status();
        let raft = self.raft.metrics();
        let raft = raft.borrow_watched();
        let index = |id: Option<u64>| gauge(id.unwrap_or(0));
        metrics.raft.last_log_index.set(gauge(status.last_log_index));
        metrics.raft.committed_index.set(index(raft.cluster_committed.index()));
        metrics.raft.applied_index.set(gauge(status.applied_index));
        metrics.raft.snapshot_index.set(index(raft.snapshot.index()));
        metrics.raft.purged_index.set(index(raft.purged.index()));
        metrics.raft.term.set(gauge(status.term));
        metrics.raft.is_leader.set(i64::from(raft.state == ServerState::Leader));
        metrics.raft.leader.set(index(raft.current_leader));
        metrics.set_state_hash(status.state_hash, status.state_hash_index);
    }

    /// What this node says about itself.
    pub fn status(&self) -> StatusReply {
        let applied = query::applied(&*self.state.current()).unwrap_or_default();
        let applied_index = applied.last.as_ref().map_or(0, |last| last.index);
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let role = match metrics.state {
            ServerState::Leader => "leader",
            ServerState::Follower => "follower",
            ServerState::Candidate => "candidate",
            ServerState::Learner => "learner",
            ServerState::Shutdown => "stopping",
        };
        StatusReply {
            node: metrics.id,
            role: role.to_owned(),
            term: metrics.current_term,
            last_log_index: metrics.last_log_index.unwrap_or(0),
            applied_index,
            state_hash: applied.state_hash,
            state_hash_index: applied_index,
            wall_ms: self.clock.wall_ms(),
        }
    }

    /// As the leader: hands over to another voter that is up to date, and waits until it leads. Before that,
    /// nothing new is begun and what runs is finished, so that the new leader inherits no unknown outcome.
    pub async fn hand_over(&self, to: u64) -> Result<(), TransferError> {
        let mut lead = Lead::new(&self.raft);
        if lead.now() != Leader::Here {
            return Err(TransferError::NotReady("this node does not lead".to_owned()));
        }
        self.reach_successor(to).await?;
        let _held = self.drain.hold();
        self.drained().await;
        self.tick().await;
        self.reach_successor(to).await?;
        self.order_transfer(to, &mut lead).await
    }

    /// As the leader: offers leadership to the other voters, the most up-to-date one first. Returns the one that takes
    /// it.
    pub async fn hand_over_to_furthest(&self) -> Result<u64, TransferError> {
        let mut refused = TransferError::Invalid("there is no other voter".to_owned());
        let mut successors = self.successors();
        while let Some(to) = successors.pop() {
            match self.hand_over(to).await {
                Ok(()) => return Ok(to),
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }

    async fn drained(&self) {
        if timeout(DRAIN_DEADLINE, self.drain.emptied()).await.is_err() {
            tracing::warn!(
                left = self.drain.inside(),
                "handing leadership over although work is unfinished; open webhook calls may be repeated"
            );
        }
    }

    /// Writes the current cluster time to the log. It does not advance until the new leader's first command.
    async fn tick(&self) {
        let tick = Operation::internal(Tick {});
        let ticked = self.proposer.propose_here(Bytes::from(tick.encode_to_vec()));
        let _ = timeout(TICK_DEADLINE, ticked).await;
    }

    async fn reach_successor(&self, to: u64) -> Result<(), TransferError> {
        for look in (0..LOOKS).rev() {
            match self.check_successor(to, LAG_MAX) {
                Err(TransferError::NotCaughtUp(_)) if look > 0 => sleep(LOOK).await,
                checked => return checked,
            }
        }
        Ok(())
    }

    fn check_successor(&self, to: u64, lag_max: u64) -> Result<(), TransferError> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let is_voter = metrics.membership_config.membership().voter_ids().any(|id| id == to);
        if !is_voter || to == metrics.id {
            return Err(TransferError::Invalid(format!("node {to} is not another voter")));
        }
        let matched = metrics
            .replication
            .as_ref()
            .and_then(|nodes| nodes.get(&to).copied().flatten());
        let lag = metrics
            .last_log_index
            .unwrap_or(0)
            .saturating_sub(matched.index().unwrap_or(0));
        if lag > lag_max {
            return Err(TransferError::NotCaughtUp(format!("node {to} lags by {lag} entries")));
        }
        let heard = metrics
            .heartbeat
            .as_ref()
            .and_then(|nodes| nodes.get(&to).copied().flatten());
        if heard.is_none_or(|at| at.elapsed() > SILENCE_MAX) {
            return Err(TransferError::NotCaughtUp(format!(
                "node {to} has not answered for a second"
            )));
        }
        Ok(())
    }

    async fn order_transfer(&self, to: u64, lead: &mut Lead) -> Result<(), TransferError> {
        let stopped = |_| TransferError::NotReady("this node stops".to_owned());
        self.raft.trigger().transfer_leader(to).await.map_err(|_| stopped(()))?;
        let taken_over = async {
            while lead.id() != Some(to) {
                lead.changed().await.map_err(|_| stopped(()))?;
            }
            Ok(())
        };
        let timed_out = |_| TransferError::NotReady(format!("node {to} did not take over in time"));
        timeout(TRANSFER_DEADLINE, taken_over).await.map_err(timed_out)?
    }

    /// Work that a stop has to wait for.
    pub fn unfinished(&self) -> usize {
        self.drain.inside()
    }

    /// Lets the leader's workers begin nothing new while the answer lives.
    pub fn hold(&self) -> DrainGuard {
        self.drain.hold()
    }

    /// Before this node stops: finishes the work that its workers began, and if it leads, hands over to the most
    /// up-to-date voter. No work may begin in the meantime.
    pub async fn resign(&self, _held: &DrainGuard) {
        self.drained().await;
        let mut lead = Lead::new(&self.raft);
        if lead.now() == Leader::Here {
            self.tick().await;
            self.pass_on(&mut lead).await;
        }
    }

    /// As a leader that cannot apply: offers leadership to the most up-to-date voter, without waiting for the work under
    /// way.
    pub(super) async fn give_up_leadership(&self) {
        let mut lead = Lead::new(&self.raft);
        if lead.now() == Leader::Here {
            self.pass_on(&mut lead).await;
        }
    }

    async fn pass_on(&self, lead: &mut Lead) {
        let mut successors = self.successors();
        while let Some(to) = successors.pop() {
            let handed_over = match self.check_successor(to, LAG_MAX_STOPPING) {
                Ok(()) => self.order_transfer(to, lead).await,
                Err(error) => Err(error),
            };
            match handed_over {
                Ok(()) => return tracing::info!(to, "leadership handed over"),
                Err(error) => {
                    tracing::info!(to, %error, "leadership was not handed over; asking the next voter; if none takes it, the voters elect a leader")
                }
            }
        }
    }

    /// The other voters, the furthest last.
    fn successors(&self) -> Vec<u64> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let matched = metrics.replication.clone().unwrap_or_default();
        let voters = metrics.membership_config.membership().voter_ids();
        let mut others: Vec<u64> = voters.filter(|id| *id != metrics.id).collect();
        others.sort_by_key(|id| matched.get(id).copied().flatten().index());
        others
    }
}
