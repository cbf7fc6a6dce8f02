//! The operator's view of the cluster: its members, its leader, and the commands that an operator may give.

use std::time::Duration;

use agentpost_proto::api::admin;
use agentpost_proto::id::TeamId;
use agentpost_proto::peer::{
    ChangeMembersRequest, HandOverRequest, PresenceRequest, StatusReply, StatusRequest, hand_over_reply,
};
use agentpost_raft_store::core::query;
use agentpost_raft_store::disk::types::Member;
use futures::future::join_all;
use tokio::time::{Instant, sleep, timeout};

use crate::base::metrics::Metrics;
use crate::cluster::presence::Presence;
use crate::net::dial::{Dialer, Purpose};
use crate::net::shard_id::SHARD;
use crate::shard::Leader;
use crate::shard::apply_watch::ApplyWatch;
use crate::shard::members::{CHANGE_DEADLINE, Change, ChangeError, Members, change_to_proto, outcome_from_proto};
use crate::shard::reader::Reader;
use crate::shard::this_node::{DRAIN_DEADLINE, TRANSFER_DEADLINE, ThisNode, TransferError};

/// Time limit for another node's status.
const STATUS_DEADLINE: Duration = Duration::from_secs(1);
/// Time limit for another node's sessions.
const PRESENCE_DEADLINE: Duration = Duration::from_secs(1);
/// Time limit of `/readyz` for a read barrier.
const READY_DEADLINE: Duration = Duration::from_secs(1);
/// Pause before the current leader is asked again to change the members.
const CHANGE_RETRY: Duration = Duration::from_millis(100);
/// Time limit for a snapshot on demand.
const SNAPSHOT_DEADLINE: Duration = Duration::from_secs(300);

/// The sessions of some agents on all nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sessions {
    /// The number of each agent's sessions, in the order asked, on the nodes that answered.
    pub open: Vec<u64>,
    /// The ids of the nodes that did not answer.
    pub unreachable: Vec<u64>,
}

/// The operator's view of the cluster. Clones are cheap.
#[derive(Clone)]
pub struct ClusterHandle {
    /// The id of the cluster.
    pub cluster_id: [u8; 16],
    pub this_node: ThisNode,
    pub members: Members,
    pub dialer: Dialer,
    pub reader: Reader,
    /// The sessions on this node.
    pub presence: Presence,
    /// Whether this node applies what is committed.
    pub apply: ApplyWatch,
}

impl ClusterHandle {
    /// The status of every node that answers within a second.
    pub async fn status(&self) -> admin::Cluster {
        let here = self.this_node.status();
        let members = self.this_node.members().into_iter().map(|(id, member)| async move {
            let status = if id == self.this_node.id() {
                Some(self.this_node.status())
            } else {
                self.ask(id, &member).await
            };
            (id, member, status)
        });
        let nodes = join_all(members).await;
        let leader = self.this_node.lead().id();
        let last = nodes
            .iter()
            .find(|(id, ..)| Some(*id) == leader)
            .and_then(|(.., status)| status.as_ref());
        let last = last.map(|status| status.last_log_index);
        admin::Cluster {
            cluster_id: hex::encode(self.cluster_id),
            leader,
            term: here.term,
            nodes: nodes
                .into_iter()
                .map(|(id, member, status)| describe(id, member, status, last))
                .collect(),
        }
    }

    /// The number of open sessions that listen to each of these agents (at most `limits::PAGE_MAX`), on all nodes that
    /// answer within a second.
    pub async fn sessions(&self, team: TeamId, agents: &[String]) -> Sessions {
        let mut open: Vec<u64> = vec![0; agents.len()];
        let mut unreachable = Vec::new();
        if agents.is_empty() {
            return Sessions { open, unreachable };
        }
        let members = self.this_node.members().into_iter().map(|(id, member)| async move {
            let sessions = if id == self.this_node.id() {
                Some(self.presence.sessions(team, agents))
            } else {
                self.ask_presence(id, &member, team, agents).await
            };
            (id, sessions)
        });
        for (id, sessions) in join_all(members).await {
            match sessions {
                Some(sessions) => open
                    .iter_mut()
                    .zip(sessions)
                    .for_each(|(sum, more)| *sum += u64::from(more)),
                None => unreachable.push(id),
            }
        }
        Sessions { open, unreachable }
    }

    /// Hands leadership to another voter and returns when that voter leads. Any node may be asked.
    pub async fn transfer(&self, to: u64) -> Result<(), TransferError> {
        let (leader, address) = match self.this_node.lead().now() {
            Leader::Here => return self.this_node.hand_over(to).await,
            Leader::There(leader, address) => (leader, address),
            Leader::Nobody => return Err(TransferError::NotReady("no leader".to_owned())),
        };
        let mut client = self.dialer.client(leader, &address, Purpose::Control);
        let asked = client.hand_over(HandOverRequest { shard: SHARD, to });
        let reply = match timeout(DRAIN_DEADLINE + TRANSFER_DEADLINE + STATUS_DEADLINE, asked).await {
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

    /// Changes the membership. Any node may be asked. While leadership moves, the request is repeated, because nothing
    /// was changed by then.
    pub async fn change_members(&self, change: Change) -> Result<(u64, Member), ChangeError> {
        let deadline = Instant::now() + CHANGE_DEADLINE;
        loop {
            match self.ask_to_change(&change).await {
                Err(ChangeError::NotReady(_)) if Instant::now() < deadline => sleep(CHANGE_RETRY).await,
                changed => return changed,
            }
        }
    }

    async fn ask_to_change(&self, change: &Change) -> Result<(u64, Member), ChangeError> {
        let (leader, address) = match self.this_node.lead().now() {
            Leader::Here => return self.members.change(change.clone()).await,
            Leader::There(leader, address) => (leader, address),
            Leader::Nobody => return Err(ChangeError::NotReady("no leader".to_owned())),
        };
        let mut client = self.dialer.client(leader, &address, Purpose::Control);
        let asked = client.change_members(ChangeMembersRequest {
            shard: SHARD,
            change: Some(change_to_proto(change)),
        });
        // A leader that shall be removed hands leadership over first.
        match timeout(DRAIN_DEADLINE + TRANSFER_DEADLINE + CHANGE_DEADLINE, asked).await {
            Ok(Ok(reply)) => outcome_from_proto(reply.into_inner().outcome),
            Ok(Err(status)) => Err(ChangeError::OutcomeUnknown(status.message().to_owned())),
            Err(_) => Err(ChangeError::OutcomeUnknown("the leader does not answer".to_owned())),
        }
    }

    /// Takes a snapshot on this node and returns when it is on disk.
    pub async fn snapshot(&self) -> anyhow::Result<()> {
        let taken = timeout(SNAPSHOT_DEADLINE, self.this_node.snapshot()).await;
        taken.unwrap_or_else(|_| Err(anyhow::anyhow!("the snapshot takes too long")))
    }

    /// Whether this node can serve linearizable reads and forward writes; it makes a read barrier to find out. A new
    /// cluster is ready when its first admin key is in the state: before that no request can be authorised, and while
    /// its nodes do not know the time it accepts no writes.
    pub async fn ready(&self) -> bool {
        if self.apply.is_stuck() {
            return false;
        }
        match self.reader.linearizable_within(READY_DEADLINE).await {
            Ok(state) => query::key::has_admin(&state).unwrap_or(false),
            Err(_) => false,
        }
    }

    /// The text of `/metrics`.
    pub fn metrics_text(&self, metrics: &Metrics) -> String {
        self.this_node.measure(metrics);
        metrics.raft.apply_waiting.set(self.apply.waiting().as_secs_f64());
        metrics.encode()
    }

    async fn ask(&self, id: u64, member: &Member) -> Option<StatusReply> {
        let mut client = self.dialer.client(id, &member.peer_addr, Purpose::Control);
        let reply = timeout(STATUS_DEADLINE, client.status(StatusRequest { shard: SHARD })).await;
        Some(reply.ok()?.ok()?.into_inner())
    }

    /// Asks a node for its sessions. The request does not share the connection of the heartbeats, because clients
    /// decide how often it is made.
    async fn ask_presence(&self, id: u64, member: &Member, team: TeamId, agents: &[String]) -> Option<Vec<u32>> {
        let mut client = self.dialer.client(id, &member.peer_addr, Purpose::Forward);
        let request = PresenceRequest {
            team_id: team.to_bytes(),
            agents: agents.to_vec(),
        };
        let reply = timeout(PRESENCE_DEADLINE, client.presence(request)).await;
        let sessions = reply.ok()?.ok()?.into_inner().sessions;
        (sessions.len() == agents.len()).then_some(sessions)
    }
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
