//! Answers the requests of other nodes. The handshake has proven the sender of a connection; a message that claims
//! another sender is refused.

use std::pin::Pin;
use std::sync::Arc;

use agentpost_proto::id::{InvalidId, TeamId};
use agentpost_proto::limits::PAGE_MAX;
use agentpost_proto::peer::peer_server::Peer;
use agentpost_proto::peer::{
    self, AppendReply, AppendRequest, CallerReport, DelegatedCall, ForwardReply, ForwardRequest, Refusal, append_reply,
    forward_reply, forward_request, hand_over_reply,
};
use agentpost_raft_store::disk::snapshot::Snapshots;
use agentpost_raft_store::disk::types::{
    LogId, TypeConfig, entry_from_proto, log_id_from_proto, log_id_to_proto, vote_from_proto, vote_to_proto,
};
use bytes::Bytes;
use futures::stream::{Stream, StreamExt as _};
use openraft::raft::{
    AppendEntriesRequest, StreamAppendError, StreamAppendResult, TransferLeaderRequest, VoteRequest, VoteResponse,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::base::metrics::Metrics;
use crate::cluster::status::ClusterHandle;
use crate::net::lives::Lives;
use crate::net::shard_id::SHARD;
use crate::net::snapshot;
use crate::server::peer::admission::Admission;
use crate::server::peer::listener::PeerId;
use crate::shard::Raft;
use crate::shard::leader_loss::LeaderLoss;
use crate::shard::members::{change_from_proto, outcome_to_proto};
use crate::shard::proposer::{ProposeError, Proposer};
use crate::shard::reader::{NotReady, Reader};
use crate::shard::this_node::TransferError;
use crate::webhooks::caller::Caller;

/// Upper bound on the requests of one node that are carried out at a time. The leader's budget refuses most of them
/// earlier; beyond this number the stream is not read.
const FORWARDED_MAX: usize = 4_096;

/// The gRPC service of a node.
pub struct PeerService {
    pub raft: Raft,
    /// Proposes operations that followers forward.
    pub proposer: Proposer,
    /// Reports this node's status, changes the members, and answers read barriers.
    pub cluster: ClusterHandle,
    /// Answers whether the leader's process has ended.
    pub leader_loss: LeaderLoss,
    /// Makes the webhook calls that the leader delegates.
    pub caller: Caller,
    /// Receives snapshots.
    pub snapshots: Arc<Snapshots>,
    /// Whether this node may continue under its id.
    pub lives: Lives,
    /// Records when a leader is heard, and ends long streams.
    pub admission: Admission,
    pub metrics: Metrics,
}

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Peer for PeerService {
    type AppendStream = Replies<AppendReply>;
    type ForwardStream = Replies<ForwardReply>;
    type CallsStream = Replies<CallerReport>;

    async fn append(&self, request: Request<Streaming<AppendRequest>>) -> Result<Response<Self::AppendStream>, Status> {
        let from = sender(&request)?;
        let admission = self.admission.clone();
        let requests = request.into_inner().map(move |received| {
            admission.heard_leader();
            let append = received.and_then(|request| append_from_proto(request, from));
            append
                .inspect_err(|status| tracing::debug!(node = from, %status, "the replication stream from the leader broke; the leader opens a new one"))
                .ok()
        });
        // The first malformed request ends the stream; Raft accepts the ones before it.
        let requests = requests
            .take_while(|append| std::future::ready(append.is_some()))
            .filter_map(std::future::ready);
        let answers = self.raft.stream_append(requests).map(|answer| match answer {
            Ok(result) => Ok(append_to_proto(result)),
            Err(fatal) => Err(Status::unavailable(fatal.to_string())),
        });
        let answers = answers.take_until(self.admission.shutdown().clone().cancelled_owned());
        Ok(Response::new(Box::pin(answers)))
    }

    async fn vote(&self, request: Request<peer::VoteRequest>) -> Result<Response<peer::VoteReply>, Status> {
        let rpc = vote_request(request)?;
        let answer = self
            .raft
            .vote(rpc)
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Response::new(vote_reply(&answer)))
    }

    async fn pre_vote(&self, request: Request<peer::VoteRequest>) -> Result<Response<peer::VoteReply>, Status> {
        let rpc = vote_request(request)?;
        let answer = self
            .raft
            .pre_vote(rpc)
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Response::new(vote_reply(&answer)))
    }

    async fn transfer_leader(
        &self,
        request: Request<peer::TransferRequest>,
    ) -> Result<Response<peer::TransferReply>, Status> {
        let from = sender(&request)?;
        let request = request.into_inner();
        check_shard(request.shard)?;
        let vote = claimed(from, request.from_leader.as_ref())?;
        let rpc = TransferLeaderRequest::new(vote, request.to, request.last_log_id.as_ref().map(log_id_from_proto));
        let answer = self.raft.handle_transfer_leader(rpc).await;
        let answer = answer.map_err(|error| Status::unavailable(error.to_string()))?;
        if let Err(reason) = &answer {
            tracing::info!(%reason, "this node did not take over leadership; another voter will");
        }
        Ok(Response::new(peer::TransferReply {
            accepted: answer.is_ok(),
        }))
    }

    async fn snapshot_held(
        &self,
        request: Request<peer::SnapshotHeader>,
    ) -> Result<Response<peer::SnapshotHeldReply>, Status> {
        let from = sender(&request)?;
        let header = request.into_inner();
        claimed(from, header.vote.as_ref())?;
        Ok(Response::new(snapshot::held(header, &self.snapshots).await?))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<peer::SnapshotPart>>,
    ) -> Result<Response<peer::SnapshotReply>, Status> {
        let from = sender(&request)?;
        let (vote, snapshot) =
            snapshot::receive(request.into_inner(), &self.snapshots, |vote| claimed(from, vote)).await?;
        let installed = self.raft.install_full_snapshot(vote, snapshot).await;
        let installed = installed.map_err(|error| Status::unavailable(error.to_string()))?;
        self.metrics.snapshots_received.inc();
        Ok(Response::new(peer::SnapshotReply {
            vote: Some(vote_to_proto(&installed.vote)),
        }))
    }

    async fn forward(
        &self,
        request: Request<Streaming<ForwardRequest>>,
    ) -> Result<Response<Self::ForwardStream>, Status> {
        sender(&request)?;
        let (proposer, reader) = (self.proposer.clone(), self.cluster.reader.clone());
        let answers = request
            .into_inner()
            .map(move |received| {
                let (proposer, reader) = (proposer.clone(), reader.clone());
                async move { answer(received?, &proposer, &reader).await }
            })
            .buffer_unordered(FORWARDED_MAX);
        let answers = answers.take_until(self.admission.shutdown().clone().cancelled_owned());
        Ok(Response::new(Box::pin(answers)))
    }

    async fn calls(&self, request: Request<Streaming<DelegatedCall>>) -> Result<Response<Self::CallsStream>, Status> {
        let from = sender(&request)?;
        let delegated = request.into_inner().map(move |received| {
            received
                .and_then(|call| check_shard(call.shard).map(|()| call))
                .inspect_err(|status| tracing::debug!(node = from, %status, "the stream of webhook calls from the leader broke; the leader opens a new one"))
                .ok()
        });
        let delegated = delegated
            .take_while(|call| std::future::ready(call.is_some()))
            .filter_map(std::future::ready);
        let reports = self.caller.serve(delegated);
        let reports = reports.ok_or_else(|| Status::unavailable("this node takes no webhook calls while it stops"))?;
        let reports = ReceiverStream::new(reports).map(Ok);
        let reports = reports.take_until(self.admission.shutdown().clone().cancelled_owned());
        Ok(Response::new(Box::pin(reports)))
    }

    async fn status(&self, request: Request<peer::StatusRequest>) -> Result<Response<peer::StatusReply>, Status> {
        sender(&request)?;
        check_shard(request.into_inner().shard)?;
        Ok(Response::new(self.cluster.this_node.status()))
    }

    async fn hand_over(
        &self,
        request: Request<peer::HandOverRequest>,
    ) -> Result<Response<peer::HandOverReply>, Status> {
        sender(&request)?;
        let request = request.into_inner();
        check_shard(request.shard)?;
        let refused = self.cluster.this_node.hand_over(request.to).await.err();
        let refused = refused.map(|error| match error {
            TransferError::Invalid(reason) => hand_over_reply::Refused::Invalid(Refusal { reason }),
            TransferError::NotCaughtUp(reason) => hand_over_reply::Refused::NotCaughtUp(Refusal { reason }),
            TransferError::NotReady(reason) => hand_over_reply::Refused::NotReady(Refusal { reason }),
        });
        Ok(Response::new(peer::HandOverReply { refused }))
    }

    async fn change_members(
        &self,
        request: Request<peer::ChangeMembersRequest>,
    ) -> Result<Response<peer::ChangeMembersReply>, Status> {
        let from = sender(&request)?;
        let request = request.into_inner();
        check_shard(request.shard)?;
        let change = request.change.as_ref().map(change_from_proto);
        let change = change.ok_or_else(|| Status::invalid_argument("no change"))?;
        tracing::info!(
            node = from,
            ?change,
            "another node asked this leader to change the members"
        );
        let outcome = outcome_to_proto(self.cluster.members.change(change).await);
        Ok(Response::new(peer::ChangeMembersReply { outcome: Some(outcome) }))
    }

    async fn quarantine(&self, request: Request<peer::QuarantineRequest>) -> Result<Response<peer::Done>, Status> {
        let from = sender(&request)?;
        let request = request.into_inner();
        check_shard(request.shard)?;
        self.lives.lost(format!("node {from} says: {}", request.reason));
        Ok(Response::new(peer::Done {}))
    }

    async fn leader_gone(
        &self,
        request: Request<peer::LeaderGoneRequest>,
    ) -> Result<Response<peer::LeaderGoneReply>, Status> {
        sender(&request)?;
        let request = request.into_inner();
        check_shard(request.shard)?;
        let vote = request.leader.as_ref().map(vote_from_proto);
        let vote = vote.ok_or_else(|| Status::invalid_argument("no vote"))?;
        Ok(Response::new(self.leader_loss.answer(vote).await))
    }

    async fn presence(&self, request: Request<peer::PresenceRequest>) -> Result<Response<peer::PresenceReply>, Status> {
        sender(&request)?;
        let request = request.into_inner();
        let invalid = |error: InvalidId| Status::invalid_argument(error.to_string());
        let team = TeamId::from_slice(&request.team_id).map_err(invalid)?;
        if request.agents.len() > PAGE_MAX {
            return Err(Status::invalid_argument(format!("more than {PAGE_MAX} agents")));
        }
        let sessions = self.cluster.presence.sessions(team, &request.agents);
        Ok(Response::new(peer::PresenceReply { sessions }))
    }
}

/// The node at the other end of the connection.
fn sender<T>(request: &Request<T>) -> Result<u64, Status> {
    let peer = request.extensions().get::<PeerId>();
    peer.map(|peer| peer.0)
        .ok_or_else(|| Status::internal("a connection without a peer"))
}

fn check_shard(shard: u32) -> Result<(), Status> {
    if shard == SHARD {
        Ok(())
    } else {
        Err(Status::not_found(format!("no shard {shard} here")))
    }
}

/// Checks that a vote comes from its own candidate or leader.
fn claimed(from: u64, vote: Option<&peer::Vote>) -> Result<agentpost_raft_store::disk::types::Vote, Status> {
    match vote {
        Some(vote) if vote.node == from => Ok(vote_from_proto(vote)),
        Some(vote) => Err(Status::permission_denied(format!(
            "node {from} speaks for node {}",
            vote.node
        ))),
        None => Err(Status::invalid_argument("no vote")),
    }
}

/// Copies a command. A slice of the HTTP/2 buffer would keep the whole buffer alive in the log's tail and share one
/// contended reference count with hundreds of other entries.
fn detached(mut entry: peer::Entry) -> peer::Entry {
    entry.command = Bytes::copy_from_slice(&entry.command);
    entry
}

fn append_from_proto(request: AppendRequest, from: u64) -> Result<AppendEntriesRequest<TypeConfig>, Status> {
    check_shard(request.shard)?;
    let vote = claimed(from, request.vote.as_ref())?;
    let entries: Result<Vec<_>, _> = request
        .entries
        .into_iter()
        .map(|entry| entry_from_proto(detached(entry)))
        .collect();
    Ok(AppendEntriesRequest {
        vote,
        prev_log_id: request.prev.as_ref().map(log_id_from_proto),
        entries: entries.map_err(|malformed| Status::invalid_argument(malformed.to_string()))?,
        leader_commit: request.leader_commit.as_ref().map(log_id_from_proto),
    })
}

fn append_to_proto(result: StreamAppendResult<TypeConfig>) -> AppendReply {
    let matched = |id: LogId| append_reply::Outcome::Partial(log_id_to_proto(&id));
    let outcome = match result {
        Ok(id) => id.map_or(append_reply::Outcome::Success(peer::Done {}), matched),
        Err(StreamAppendError::Conflict(_)) => append_reply::Outcome::Conflict(peer::Done {}),
        Err(StreamAppendError::HigherVote(vote)) => append_reply::Outcome::HigherVote(vote_to_proto(&vote)),
    };
    AppendReply { outcome: Some(outcome) }
}

fn vote_request(request: Request<peer::VoteRequest>) -> Result<VoteRequest<TypeConfig>, Status> {
    let from = sender(&request)?;
    let request = request.into_inner();
    check_shard(request.shard)?;
    let vote = claimed(from, request.vote.as_ref())?;
    let last_log_id = request.last_log_id.as_ref().map(log_id_from_proto);
    Ok(VoteRequest {
        leadership_transfer: request.leadership_transfer,
        ..VoteRequest::new(vote, last_log_id)
    })
}

fn vote_reply(answer: &VoteResponse<TypeConfig>) -> peer::VoteReply {
    peer::VoteReply {
        vote: Some(vote_to_proto(&answer.vote)),
        granted: answer.vote_granted,
        last_log_id: answer.last_log_id.as_ref().map(log_id_to_proto),
    }
}

/// Carries out a forwarded request. It is never forwarded a second time.
async fn answer(request: ForwardRequest, proposer: &Proposer, reader: &Reader) -> Result<ForwardReply, Status> {
    check_shard(request.shard)?;
    let outcome = match request.kind {
        Some(forward_request::Kind::Operation(operation)) => match proposer.propose_forwarded(operation).await {
            Ok(reply) => forward_reply::Outcome::Reply(reply),
            Err(ProposeError::OutcomeUnknown(reason)) => forward_reply::Outcome::OutcomeUnknown(Refusal { reason }),
            Err(ProposeError::NoRoom(reason)) => forward_reply::Outcome::NoRoom(Refusal { reason }),
            Err(ProposeError::Overloaded) => forward_reply::Outcome::Overloaded(peer::Done {}),
            Err(ProposeError::ShareUsedUp) => forward_reply::Outcome::ShareUsedUp(peer::Done {}),
            Err(ProposeError::NotReady(reason)) => forward_reply::Outcome::NotReady(Refusal { reason }),
        },
        Some(forward_request::Kind::ReadIndex(_)) => match reader.read_index_for_peer().await {
            Ok(index) => forward_reply::Outcome::ReadIndex(index),
            Err(NotReady(reason)) => forward_reply::Outcome::NotReady(Refusal { reason }),
        },
        None => forward_reply::Outcome::NotReady(Refusal {
            reason: "an empty request".to_owned(),
        }),
    };
    Ok(ForwardReply {
        id: request.id,
        outcome: Some(outcome),
    })
}
