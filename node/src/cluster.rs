//! The cluster as its operator sees it: who is there, who leads, and what may be asked of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use agentpost_proto::api::admin;
use agentpost_proto::command::{Operation, Tick, operation};
use agentpost_proto::peer::{HandOverRequest, StatusReply, StatusRequest, hand_over_reply};
use agentpost_raft_store::db::StateHandle;
use agentpost_raft_store::query;
use agentpost_raft_store::types::Member;
use bytes::Bytes;
use futures::future::join_all;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::{Instant as _, LogIdOptionExt as _, ServerState};
use prost::Message as _;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::metrics::{Metrics, gauge};
use crate::peer::dial::{Dialer, Purpose};
use crate::peer::network::SHARD;
use crate::secrets::Secrets;
use crate::shard::proposer::Proposer;
use crate::shard::reader::Reader;
use crate::shard::{Lead, Leader, Raft};

/// What another node is given to say how it is.
const STATUS_DEADLINE: Duration = Duration::from_secs(1);
/// A transfer of leadership, from the order until the new leader is known here.
const TRANSFER_DEADLINE: Duration = Duration::from_secs(3);
/// A voter that lags more than this is no successor.
const TRANSFER_LAG_MAX: u64 = 100;
/// A voter that has been silent longer is no successor.
const TRANSFER_SILENCE_MAX: Duration = Duration::from_secs(1);
/// What `/readyz` gives a read barrier.
const READY_DEADLINE: Duration = Duration::from_secs(1);
/// A snapshot on demand.
const SNAPSHOT_DEADLINE: Duration = Duration::from_secs(300);

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

/// The part of the cluster that this node is. Cheap to clone.
#[derive(Clone)]
pub struct Local {
    raft: Raft,
    state: StateHandle,
    proposer: Proposer,
}

/// The cluster as the operator sees it, and the life of this process. Cheap to clone.
#[derive(Clone)]
pub struct ClusterHandle {
    /// Cancelled when the node stops: close sessions with a resume hint, start nothing new.
    pub shutdown: CancellationToken,
    /// Every task of the doors runs here, so that stopping can wait for it.
    pub tasks: TaskTracker,
    pub(crate) local: Local,
    pub(crate) dialer: Dialer,
    pub(crate) reader: Reader,
    pub(crate) secrets: Arc<Secrets>,
    pub(crate) metrics: Metrics,
}

impl Local {
    /// Speaks for this node.
    pub fn new(raft: Raft, state: StateHandle, proposer: Proposer) -> Self {
        Local { raft, state, proposer }
    }

    /// Where snapshots are received.
    pub(crate) fn state(&self) -> &StateHandle {
        &self.state
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
        }
    }

    /// As the leader: hands over to another voter that is up to date, and waits until it leads.
    pub async fn hand_over(&self, to: u64) -> Result<(), TransferError> {
        let mut lead = Lead::new(&self.raft);
        if lead.now() != Leader::Here {
            return Err(TransferError::NotReady("this node does not lead".to_owned()));
        }
        self.check_successor(to)?;
        self.order_transfer(to, &mut lead).await
    }

    fn check_successor(&self, to: u64) -> Result<(), TransferError> {
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
        if lag > TRANSFER_LAG_MAX {
            return Err(TransferError::NotCaughtUp(format!("node {to} lags by {lag} entries")));
        }
        let heard = metrics
            .heartbeat
            .as_ref()
            .and_then(|nodes| nodes.get(&to).copied().flatten());
        if heard.is_none_or(|at| at.elapsed() > TRANSFER_SILENCE_MAX) {
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

    /// Before this node stops: if it leads, hands over to whoever is furthest.
    pub async fn resign(&self) {
        if Lead::new(&self.raft).now() != Leader::Here {
            return;
        }
        // Cluster time stands still until the next command: let it stand where it is now.
        let tick = Operation {
            principal: None,
            op: Some(operation::Op::Tick(Tick {})),
        };
        let ticked = self.proposer.propose_here(Bytes::from(tick.encode_to_vec()));
        let _ = timeout(STATUS_DEADLINE, ticked).await;
        let mut successors = self.successors();
        while let Some(to) = successors.pop() {
            match self.hand_over(to).await {
                Ok(()) => return tracing::info!(to, "leadership handed over"),
                Err(error) => tracing::info!(to, %error, "no hand-over"),
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

impl ClusterHandle {
    /// Every node, as it answers within a second.
    pub async fn status(&self) -> admin::Cluster {
        let here = self.local.status();
        let others = self.members().into_iter().map(|(id, member)| async move {
            let status = if id == here_id(&self.local) {
                Some(self.local.status())
            } else {
                self.ask(id, &member).await
            };
            (id, member, status)
        });
        let nodes = join_all(others).await;
        let leader = Lead::new(&self.local.raft).id();
        let last = nodes
            .iter()
            .find(|(id, ..)| Some(*id) == leader)
            .and_then(|(.., status)| status.as_ref());
        let last = last.map(|status| status.last_log_index);
        admin::Cluster {
            cluster_id: hex::encode(self.secrets.cluster_id),
            leader,
            term: here.term,
            nodes: nodes
                .into_iter()
                .map(|(id, member, status)| describe(id, member, status, last))
                .collect(),
        }
    }

    /// Hands leadership to another voter; returns when it leads. Any node may be asked.
    pub async fn transfer(&self, to: u64) -> Result<(), TransferError> {
        let (leader, address) = match Lead::new(&self.local.raft).now() {
            Leader::Here => return self.local.hand_over(to).await,
            Leader::There(leader, address) => (leader, address),
            Leader::Nobody => return Err(TransferError::NotReady("no leader".to_owned())),
        };
        let mut client = self.dialer.client(leader, &address, Purpose::Control);
        let asked = client.hand_over(HandOverRequest { shard: SHARD, to });
        let reply = match timeout(TRANSFER_DEADLINE + STATUS_DEADLINE, asked).await {
            Ok(Ok(reply)) => reply.into_inner(),
            Ok(Err(status)) => return Err(TransferError::NotReady(status.message().to_owned())),
            Err(_) => return Err(TransferError::NotReady("the leader does not answer".to_owned())),
        };
        match reply.refused {
            None => Ok(()),
            Some(hand_over_reply::Refused::Invalid(refusal)) => Err(TransferError::Invalid(refusal.reason)),
            Some(hand_over_reply::Refused::NotCaughtUp(refusal)) => Err(TransferError::NotCaughtUp(refusal.reason)),
            Some(hand_over_reply::Refused::NotReady(refusal)) => Err(TransferError::NotReady(refusal.reason)),
        }
    }

    /// Takes a snapshot on this node; returns when it is on disk.
    pub async fn snapshot(&self) -> anyhow::Result<()> {
        let raft = &self.local.raft;
        let wanted = raft.metrics().borrow_watched().last_applied;
        raft.trigger().snapshot().await?;
        let mut metrics = raft.metrics();
        let deadline = Instant::now() + SNAPSHOT_DEADLINE;
        while metrics.borrow_and_update().snapshot < wanted {
            timeout_at(deadline, metrics.changed())
                .await
                .map_err(|_| anyhow::anyhow!("the snapshot takes too long"))??;
        }
        Ok(())
    }

    /// Whether this node can serve linearizable reads and forward writes: finds out by doing it.
    pub async fn ready(&self) -> bool {
        !self.shutdown.is_cancelled() && self.reader.linearizable_within(READY_DEADLINE).await.is_ok()
    }

    /// The text of `/metrics`.
    pub fn metrics_text(&self) -> String {
        let (metrics, status) = (&self.metrics, self.local.status());
        let raft = self.local.raft.metrics();
        let raft = raft.borrow_watched().clone();
        metrics.last_log_index.set(gauge(status.last_log_index));
        metrics
            .committed_index
            .set(gauge(raft.cluster_committed.index().unwrap_or(0)));
        metrics.applied_index.set(gauge(status.applied_index));
        metrics.snapshot_index.set(gauge(raft.snapshot.index().unwrap_or(0)));
        metrics.purged_index.set(gauge(raft.purged.index().unwrap_or(0)));
        metrics.term.set(gauge(status.term));
        metrics.is_leader.set(i64::from(raft.state == ServerState::Leader));
        metrics.leader.set(gauge(raft.current_leader.unwrap_or(0)));
        metrics.set_state_hash(status.state_hash, status.state_hash_index);
        metrics.encode()
    }

    async fn ask(&self, id: u64, member: &Member) -> Option<StatusReply> {
        let mut client = self.dialer.client(id, &member.peer_addr, Purpose::Control);
        let reply = timeout(STATUS_DEADLINE, client.status(StatusRequest { shard: SHARD })).await;
        Some(reply.ok()?.ok()?.into_inner())
    }

    fn members(&self) -> BTreeMap<u64, Member> {
        let metrics = self.local.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics
            .membership_config
            .membership()
            .nodes()
            .map(|(id, member)| (*id, member.clone()))
            .collect()
    }
}

fn here_id(local: &Local) -> u64 {
    *local.raft.node_id()
}

fn describe(id: u64, member: Member, status: Option<StatusReply>, leader_last: Option<u64>) -> admin::Node {
    let status = status.as_ref();
    let lag = |status: &StatusReply| leader_last.map(|last| last.saturating_sub(status.applied_index));
    admin::Node {
        id,
        url: member.url,
        peer_url: format!("http://{}", member.peer_addr),
        role: status.map(|status| status.role.clone()),
        applied_index: status.map(|status| status.applied_index),
        lag: status.and_then(lag),
        state_hash: status.map(|status| format!("{:016x}", status.state_hash)),
        state_hash_index: status.map(|status| status.state_hash_index),
    }
}
