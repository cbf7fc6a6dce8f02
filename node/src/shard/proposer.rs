//! Brings an operation to the leader and classifies the outcome.
//!
//! ```text
//!             admission        who leads?
//! operation ────────────►  ┌─ this node: stamp time, client_write ──► reply
//!  (encoded once)          ├─ another:   one forward, bytes untouched ──► reply
//!                          └─ nobody:    wait, 2 s at most
//! ```
//!
//! Besides a reply there are four outcomes, and callers must tell them apart:
//! - *overloaded*, *not ready*, *no room*: nothing was proposed, and the operation may be tried again;
//! - *outcome unknown*: the operation may be in the log. It is never retried here. The client may retry under its
//!   idempotency key, because only the state machine can tell whether the first attempt was stored.
//!
//! An operation that would change nothing is answered without being proposed, see [`edge`](super::edge).
//!
//! "Nothing was proposed" is reported in two cases only: Raft returned `ForwardToLeader`, matched by name, or the
//! request never left the queue towards Raft or towards the leader. A log entry discarded by a change of leader, a fatal
//! error, and after that queue a dropped responder or a broken stream, are unknown.
//!
//! Operations reach Raft through one queue, see [`append_queue`](super::append_queue).
//!
//! Every operation is charged to the node's [`budget`](super::budget) until its answer and until its entry is durable; the
//! caller of a client's operation took the permit before it read the request. An operation that only the leader of an epoch
//! may propose is appended on the condition that this leadership still holds when Raft appends it.

use std::sync::Arc;
use std::time::Duration;

use agentpost_proto::command::{Operation, Rejection, Reply, operation, reply};
use agentpost_proto::operation::{NoAnswer, Op};
use agentpost_proto::peer::forward_reply::Outcome as Answered;
use agentpost_raft_store::core::query;
use agentpost_raft_store::disk::state::StateHandle;
use agentpost_raft_store::disk::types::LeaderId;
use bytes::Bytes;
use openraft::errors::ClientWriteError;
use openraft::impls::ProgressResponder;
use prost::Message as _;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};

use super::append_queue::{AppendQueue, Waiting, append_queue};
use super::budget::{Budget, Charge, Full, Payer, Permit};
use super::cluster_time::ClusterTime;
use super::edge::{Edge, Frequency};
use super::reader::{NotReady, Reader};
use super::wall_time::WallTime;
use super::{Lead, Leader, Raft};
use crate::base::clock::IdSource;
use crate::base::metrics::{GaugeGuard, Metrics, Outcome};
use crate::base::space::{Space, takes_room};
use crate::net::forward::{Forwarder, Kind, Lost};

/// How long an operation waits for a leader.
pub const LEADER_DEADLINE: Duration = Duration::from_secs(2);
/// How long an operation waits until it is handed to Raft. It waits this long only if the log hangs.
const TURN_DEADLINE: Duration = LEADER_DEADLINE;
/// How long an operation waits for its answer, the wait until it is handed over included.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(8);

/// Why there is no reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Nothing was proposed. The caller may retry.
    #[error("not ready: {0}")]
    NotReady(String),
    /// The budget of this node or of the leader is used up. Nothing was proposed.
    #[error("overloaded: nothing was proposed")]
    Overloaded,
    /// The caller's share of that budget is used up. Nothing was proposed.
    #[error("the caller's share is used up: nothing was proposed")]
    ShareUsedUp,
    /// This node's or the leader's disk is nearly full. Nothing was proposed.
    #[error("no room: {0}")]
    NoRoom(String),
    /// The operation may have been stored. A client may retry it under the same idempotency key.
    #[error("outcome unknown: {0}")]
    OutcomeUnknown(String),
}

/// The result of proposing an operation of kind `O`: its answer, a reply without an answer, or the reason why it was
/// not appended to the log.
pub type Proposed<O> = Result<Result<<O as Op>::Reply, NoAnswer>, ProposeError>;

/// Proposes operations to the shard's leader. Clones are cheap.
#[derive(Clone)]
pub struct Proposer {
    shared: Arc<Shared>,
}

/// The parts of a node that a [`Proposer`] needs.
pub struct ProposerHandles {
    /// The Raft group to whose log operations are appended.
    pub raft: Raft,
    pub state: StateHandle,
    /// Reads the state for operations that would change nothing.
    pub reader: Reader,
    /// Forwards operations to the leader on another node.
    pub forwarder: Forwarder,
    pub cluster_time: ClusterTime,
    pub wall_time: WallTime,
    pub space: Space,
    pub ids: IdSource,
    pub metrics: Metrics,
}

struct Shared {
    handles: ProposerHandles,
    lead: Lead,
    budget: Budget,
    queue: AppendQueue,
    edge: Edge,
}

impl Proposer {
    /// A proposer for the shard of the handles, and the task that hands its operations to Raft. The task must run on
    /// Raft's own thread; it ends with Raft.
    pub fn new(handles: ProposerHandles) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (queue, hand_over) = append_queue();
        let hands_over = hand_over.run(
            handles.raft.clone(),
            handles.cluster_time.clone(),
            handles.wall_time.clone(),
        );
        let shared = Shared {
            lead: Lead::new(&handles.raft),
            budget: Budget::new(&handles.metrics),
            queue,
            edge: Edge::new(handles.reader.clone(), handles.metrics.clone()),
            handles,
        };
        let proposer = Proposer {
            shared: Arc::new(shared),
        };
        (proposer, hands_over)
    }

    /// Admits a request of `bytes` that will propose an operation, or refuses it at once.
    pub fn admit(&self, payer: Payer, bytes: usize) -> Result<Permit, ProposeError> {
        let shared = &self.shared;
        shared.budget.take(payer, bytes).map_err(|full| {
            let (outcome, error) = match full {
                Full::Share => (Outcome::ShareUsedUp, ProposeError::ShareUsedUp),
                Full::Node => (Outcome::Overloaded, ProposeError::Overloaded),
            };
            shared.handles.metrics.proposal(outcome);
            error
        })
    }

    /// Admits an operation and proposes it.
    pub async fn propose(&self, operation: Operation) -> Result<Reply, ProposeError> {
        let permit = self.admit(Payer::of(&operation), operation.encoded_len())?;
        self.propose_admitted(&permit, operation).await
    }

    /// Proposes an operation on the leader, directly or by one forward. A rejection is a `Reply`.
    pub async fn propose_admitted(&self, permit: &Permit, operation: Operation) -> Result<Reply, ProposeError> {
        let _counted = GaugeGuard::new(&self.shared.handles.metrics.proposals_in_flight);
        let result = self.carry_out(permit, operation).await;
        self.shared.handles.metrics.proposal(match &result {
            Ok(Reply {
                reply: Some(reply::Reply::Rejection(_)),
            }) => Outcome::Rejected,
            Ok(_) => Outcome::Done,
            Err(ProposeError::NotReady(_)) => Outcome::NotReady,
            Err(ProposeError::Overloaded) => Outcome::Overloaded,
            Err(ProposeError::ShareUsedUp) => Outcome::ShareUsedUp,
            Err(ProposeError::NoRoom(_)) => Outcome::NoRoom,
            Err(ProposeError::OutcomeUnknown(_)) => Outcome::Unknown,
        });
        result
    }

    /// Answers an operation from the state if it would change nothing, or takes it to the leader.
    async fn carry_out(&self, permit: &Permit, operation: Operation) -> Result<Reply, ProposeError> {
        let edge = &self.shared.edge;
        let encoded = Bytes::from(operation.encode_to_vec());
        permit.raise(encoded.len());
        if may_be_forwarded(&operation) && !is_clusters_own(&operation) {
            // Without wall time the command leaves that of the state as it is.
            let wall_ms = self.wall_ms().unwrap_or(0);
            let answered = edge.answer(&operation, &encoded, wall_ms).await;
            if let Some(reply) = answered.map_err(|NotReady(reason)| ProposeError::NotReady(reason))? {
                return Ok(reply);
            }
        }
        self.check_room(&operation)?;
        let frequency = Frequency::of(&operation);
        drop(operation);
        let reply = self.take_to_leader(encoded, Charge::Client(permit.clone())).await?;
        edge.learn(frequency, &reply);
        Ok(reply)
    }

    /// Refuses an operation that stores data while this node's disk is nearly full.
    fn check_room(&self, operation: &Operation) -> Result<(), ProposeError> {
        match self.shared.handles.space.refusal() {
            Some(reason) if takes_room(operation) => Err(ProposeError::NoRoom(reason)),
            _ => Ok(()),
        }
    }

    async fn take_to_leader(&self, operation: Bytes, charge: Charge) -> Result<Reply, ProposeError> {
        let shared = &self.shared;
        let deadline = Instant::now() + LEADER_DEADLINE;
        loop {
            let leader = shared.lead.now();
            let attempt = match &leader {
                Leader::Here => self.write(operation.clone(), Some(charge.clone()), None).await,
                Leader::There(node, address) => self.forward(*node, address, operation.clone()).await,
                Leader::Nobody => Err(ProposeError::NotReady("no leader".to_owned())),
            };
            match attempt {
                Err(ProposeError::NotReady(_)) if Instant::now() < deadline => {
                    let _ = timeout_at(deadline, shared.lead.pause(&leader, &shared.handles.ids)).await;
                }
                ended => return ended,
            }
        }
    }

    /// Proposes one of the cluster's own operations that any node may propose: outcomes, acks, returned leases.
    pub(crate) async fn propose_internal<O: Op>(&self, op: O) -> Proposed<O> {
        let operation = Operation::internal(op).encode_to_vec();
        let charge = Charge::Cluster(self.shared.budget.reserve(operation.len()).await);
        let reply = self.take_to_leader(Bytes::from(operation), charge).await?;
        Ok(reply.answer_to::<O>())
    }

    /// Proposes an operation of the leader of `epoch`. Not ready if another leadership would append it.
    pub(crate) async fn propose_in<O: Op>(&self, epoch: u64, op: O) -> Proposed<O> {
        let shared = &self.shared;
        let operation = Operation::internal(op).encode_to_vec();
        let charge = Charge::Cluster(shared.budget.reserve(operation.len()).await);
        let Some(term) = shared.handles.cluster_time.term_of(epoch) else {
            return Err(ProposeError::NotReady("the epoch is over".to_owned()));
        };
        let node_id = *shared.handles.raft.node_id();
        let reply = self
            .write(Bytes::from(operation), Some(charge), Some(LeaderId { term, node_id }))
            .await?;
        Ok(reply.answer_to::<O>())
    }

    /// Proposes an operation that a leadership proposes once, or one at a time, so that nobody needs to count it.
    pub(crate) async fn propose_here(&self, operation: Bytes) -> Result<Reply, ProposeError> {
        self.write(operation, None, None).await
    }

    /// Keeps every further operation of this node from Raft until the result is dropped.
    #[cfg(feature = "failpoints")]
    pub async fn hold(&self) -> Option<tokio::sync::OwnedSemaphorePermit> {
        self.shared.queue.hold().await
    }

    /// Lets Raft append an operation, if this node leads (in leadership `leader`, if given); never forwards.
    async fn write(
        &self,
        operation: Bytes,
        charge: Option<Charge>,
        leader: Option<LeaderId>,
    ) -> Result<Reply, ProposeError> {
        let (handed_over, mut was_handed_over) = oneshot::channel();
        let (responder, mut answer) = ProgressResponder::complete_only();
        self.shared.queue.push(Waiting {
            operation,
            leader,
            wall_ms: self.wall_ms()?,
            handed_over,
            responder,
            charge,
        });
        let not_yet = || ProposeError::NotReady("the log takes no entries".to_owned());
        let mut in_raft = false;
        let answered = match timeout(TURN_DEADLINE, &mut answer).await {
            Ok(answered) => answered,
            Err(_) => {
                was_handed_over.close();
                in_raft = was_handed_over.try_recv().is_ok();
                if !in_raft {
                    return Err(not_yet());
                }
                let unknown = |_| ProposeError::OutcomeUnknown(format!("no answer within {ANSWER_DEADLINE:?}"));
                timeout(ANSWER_DEADLINE - TURN_DEADLINE, answer)
                    .await
                    .map_err(unknown)?
            }
        };
        let unknown = |reason: String| ProposeError::OutcomeUnknown(reason);
        match answered {
            Ok(Ok(written)) => Ok(written.data),
            Ok(Err(ClientWriteError::ForwardToLeader(_))) => Err(ProposeError::NotReady(
                "this node does not lead, or has no quorum".to_owned(),
            )),
            Ok(Err(error)) => Err(unknown(error.to_string())),
            Err(_) if !in_raft && was_handed_over.try_recv().is_err() => Err(not_yet()),
            Err(_) => Err(unknown("Raft dropped the request".to_owned())),
        }
    }

    /// Wall time for a command; 0 leaves replicated wall time unchanged, while the voters' clocks are unknown. Only a
    /// cluster without any wall time waits for the clocks, so that its first day is right.
    fn wall_ms(&self) -> Result<u64, ProposeError> {
        let shared = &self.shared;
        if let Some(wall_ms) = shared.handles.wall_time.stamp() {
            return Ok(wall_ms);
        }
        match query::applied(&*shared.handles.state.current()) {
            Ok(applied) if applied.wall_ms != 0 => Ok(0),
            Ok(_) => Err(ProposeError::NotReady(
                "the voters' clocks are not known yet".to_owned(),
            )),
            Err(error) => Err(ProposeError::NotReady(error.to_string())),
        }
    }

    async fn forward(&self, node: u64, address: &str, operation: Bytes) -> Result<Reply, ProposeError> {
        let asked = self
            .shared
            .handles
            .forwarder
            .ask(node, address, Kind::Operation(operation));
        match timeout(ANSWER_DEADLINE, asked).await {
            Ok(Ok(Answered::Reply(reply))) => Ok(reply),
            Ok(Ok(Answered::NotReady(refusal))) => Err(ProposeError::NotReady(refusal.reason)),
            Ok(Ok(Answered::NoRoom(refusal))) => Err(ProposeError::NoRoom(refusal.reason)),
            Ok(Ok(Answered::Overloaded(_))) => Err(ProposeError::Overloaded),
            Ok(Ok(Answered::ShareUsedUp(_))) => Err(ProposeError::ShareUsedUp),
            Ok(Ok(Answered::OutcomeUnknown(refusal))) => Err(ProposeError::OutcomeUnknown(refusal.reason)),
            Ok(Ok(Answered::ReadIndex(_))) => Err(ProposeError::OutcomeUnknown(
                "the leader sent an unexpected reply type".to_owned(),
            )),
            Ok(Err(Lost::Unsent(reason))) => Err(ProposeError::NotReady(reason)),
            Ok(Err(Lost::Unknown(reason))) => Err(ProposeError::OutcomeUnknown(reason)),
            Err(_) => Err(ProposeError::OutcomeUnknown(format!(
                "no answer within {ANSWER_DEADLINE:?}"
            ))),
        }
    }

    /// Proposes an operation that another node forwarded, if this node leads. It accepts every operation of a client,
    /// and those of the cluster's own operations that any node may propose.
    pub(crate) async fn propose_forwarded(&self, operation: Bytes) -> Result<Reply, ProposeError> {
        // The operation is decoded to check it; an entry that does not decode would also stop every node.
        let Ok(decoded) = Operation::decode(operation.clone()) else {
            return Ok(refused("an operation that does not decode"));
        };
        if !may_be_forwarded(&decoded) {
            return Ok(refused("an operation that only the leader itself may propose"));
        }
        self.check_room(&decoded)?;
        if is_clusters_own(&decoded) {
            let charge = Charge::Cluster(self.shared.budget.reserve(operation.len()).await);
            return self.write(operation, Some(charge), None).await;
        }
        let charge = Charge::Client(self.admit(Payer::of(&decoded), operation.len())?);
        drop(decoded);
        self.write(operation, Some(charge), None).await
    }
}

/// Whether a node proposes this for the cluster, and not for a client that waits.
fn is_clusters_own(operation: &Operation) -> bool {
    use operation::Op;
    matches!(
        operation.op,
        Some(Op::AckCursors(_) | Op::Outcome(_) | Op::ReturnLeases(_))
    )
}

fn may_be_forwarded(operation: &Operation) -> bool {
    use operation::Op;
    let has_principal = operation.principal.is_some();
    match &operation.op {
        Some(
            Op::CreateTeam(_)
            | Op::UpdateTeam(_)
            | Op::CreateKey(_)
            | Op::RevokeKey(_)
            | Op::RegisterAgent(_)
            | Op::DecideLogin(_)
            | Op::Send(_)
            | Op::SendBatch(_)
            | Op::MarkRead(_)
            | Op::Subscribe(_)
            | Op::Unsubscribe(_)
            | Op::RegisterWebhook(_)
            | Op::DeleteWebhook(_)
            | Op::RotateSigningKeys(_)
            | Op::CancelDelivery(_)
            | Op::Redrive(_)
            | Op::LeaseReads(_),
        ) => has_principal,
        // These carry no principal. Acks are cumulative and clamped by apply. Apply accepts only the first admin key. A
        // deposed leader still has outcomes and leases to return, and apply knows whether they count. A device that
        // logs in has no key yet.
        Some(
            Op::AckCursors(_)
            | Op::BootstrapAdmin(_)
            | Op::Outcome(_)
            | Op::ReturnLeases(_)
            | Op::StartLogin(_)
            | Op::ClaimLogin(_),
        ) => true,
        Some(
            Op::BeginEpoch(_)
            | Op::Tick(_)
            | Op::Sweep(_)
            | Op::Claim(_)
            | Op::Takeover(_)
            | Op::FanoutChunk(_)
            | Op::CloseEndpoint(_),
        )
        | None => false,
    }
}

fn refused(why: &str) -> Reply {
    let rejection = Rejection::new(agentpost_proto::command::ErrorCode::Invalid, why);
    Reply {
        reply: Some(reply::Reply::Rejection(rejection)),
    }
}

#[cfg(test)]
mod tests {
    use agentpost_proto::command::{BeginEpoch, Principal, Send, Sweep, Tick};

    use super::*;

    #[test]
    fn peers_forward_what_clients_may_ask_for_and_nothing_else() {
        let principal = Some(Principal::default());
        let send = || Some(operation::Op::Send(Send::default()));
        assert!(may_be_forwarded(&Operation {
            principal: principal.clone(),
            op: send()
        }));
        assert!(!may_be_forwarded(&Operation {
            principal: None,
            op: send()
        }));
        for op in [
            Some(operation::Op::BeginEpoch(BeginEpoch::default())),
            Some(operation::Op::Tick(Tick {})),
            Some(operation::Op::Sweep(Sweep::default())),
            None,
        ] {
            assert!(!may_be_forwarded(&Operation {
                principal: principal.clone(),
                op
            }));
        }
    }
}
