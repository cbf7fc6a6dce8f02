//! What Raft sends, over gRPC.
//!
//! Replication is a pipeline: append requests flow on one stream without waiting for their answers, which
//! come back in order. A stream whose oldest answer is overdue is given up, so a peer that was cut off
//! without a word does not hold replication; Raft then opens the next stream, after a pause when the peer
//! cannot be reached at all. Every other call has a deadline.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agentpost_proto::peer::peer_client::PeerClient;
use agentpost_proto::peer::{self, append_reply};
use agentpost_raft_store::snapshot::SnapshotData;
use agentpost_raft_store::types::{
    LogId, Member, TypeConfig, Vote, entry_to_proto, log_id_from_proto, log_id_to_proto, vote_from_proto, vote_to_proto,
};
use futures::future::BoxFuture;
use futures::stream::{BoxStream, Stream, StreamExt as _};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{
    Backoff, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption, RaftNetworkFactory,
};
use openraft::raft::{
    AppendEntriesRequest, SnapshotResponse, StreamAppendError, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{ErrorSubject, ErrorVerb, StorageError};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::dial::{Dialer, Purpose};
use super::snapshot::{self, SendError, SendOptions};
use crate::metrics::Metrics;

/// The only shard there is today.
pub const SHARD: u32 = 0;

/// An append request that stays unanswered this long ends its stream.
const APPEND_DEADLINE: Duration = Duration::from_secs(3);
/// Opening a stream: connecting, and the first headers.
const OPEN_DEADLINE: Duration = Duration::from_millis(1500);
/// While a peer cannot be reached. Short: a restarted node shall not wait for its leader.
const BACKOFF_MS: [u64; 4] = [20, 50, 100, 200];

/// Makes the clients through which Raft reaches the other nodes.
#[derive(Clone)]
pub struct Network {
    dialer: Dialer,
    sending: SendOptions,
    metrics: Metrics,
}

/// Raft's way to one other node, for one purpose.
pub struct Peer {
    client: PeerClient<Channel>,
    sending: SendOptions,
    metrics: Metrics,
}

impl Network {
    /// Reaches nodes through `dialer`.
    pub fn new(dialer: Dialer, sending: SendOptions, metrics: Metrics) -> Self {
        Network {
            dialer,
            sending,
            metrics,
        }
    }

    fn peer(&self, target: u64, member: &Member, purpose: Purpose) -> Peer {
        let client = self.dialer.client(target, &member.peer_addr, purpose);
        Peer {
            client,
            sending: self.sending,
            metrics: self.metrics.clone(),
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &Member) -> Peer {
        self.peer(target, node, Purpose::Append)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &Member) -> Peer {
        self.peer(target, node, Purpose::Control)
    }

    async fn new_snapshot_client(&mut self, target: u64, node: &Member) -> Peer {
        self.peer(target, node, Purpose::Snapshot)
    }
}

impl NetBackoff<TypeConfig> for Peer {
    fn backoff(&self) -> Option<Backoff> {
        let last = BACKOFF_MS[BACKOFF_MS.len() - 1];
        let delays = BACKOFF_MS.into_iter().chain(std::iter::repeat(last));
        Some(Backoff::new(delays.map(Duration::from_millis)))
    }
}

/// A request on its way.
struct InFlight {
    prev: Option<LogId>,
    sent: Instant,
}

/// Requests without an answer, oldest first.
type Pipeline = Arc<Mutex<VecDeque<InFlight>>>;

type AppendAnswer = Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>;

impl NetStreamAppend<TypeConfig> for Peer {
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, AppendAnswer>, RPCError<TypeConfig>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
    {
        let pipeline = Pipeline::default();
        let sent = Arc::clone(&pipeline);
        let mut requests = input.map(move |request| {
            let entry = InFlight {
                prev: request.prev_log_id,
                sent: Instant::now(),
            };
            sent.lock().unwrap_or_else(PoisonError::into_inner).push_back(entry);
            append_to_proto(request)
        });
        Box::pin(async move {
            // openraft pauses after an error when it is asked for a request, so it is asked before connecting:
            // otherwise a peer that refuses connections would be dialled without end.
            let Some(first) = requests.next().await else {
                return Ok(futures::stream::empty().boxed());
            };
            let requests = futures::stream::once(std::future::ready(first)).chain(requests);
            let answers = within(OPEN_DEADLINE, self.client.append(requests)).await?.into_inner();
            let mut overdue = interval(APPEND_DEADLINE / 4);
            overdue.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let state = Some((answers, pipeline, overdue));
            let answers: BoxStream<'s, AppendAnswer> = Box::pin(futures::stream::unfold(state, |state| async move {
                let (mut answers, pipeline, mut overdue) = state?;
                let answer = next_answer(&mut answers, &pipeline, &mut overdue).await?;
                // A refusal or an error ends the pipeline: what follows it was refused as well.
                let state = matches!(answer, Ok(Ok(_))).then_some((answers, pipeline, overdue));
                Some((answer, state))
            }));
            Ok(answers)
        })
    }
}

async fn next_answer(
    answers: &mut Streaming<peer::AppendReply>,
    pipeline: &Pipeline,
    overdue: &mut tokio::time::Interval,
) -> Option<AppendAnswer> {
    loop {
        tokio::select! {
            answer = answers.message() => {
                return match answer {
                    Ok(Some(reply)) => Some(append_from_proto(reply, pipeline)),
                    Ok(None) => None,
                    Err(status) => Some(Err(rpc_error(status))),
                };
            }
            _ = overdue.tick() => {
                let oldest = pipeline.lock().unwrap_or_else(PoisonError::into_inner).front().map(|r| r.sent);
                if oldest.is_some_and(|sent| sent.elapsed() > APPEND_DEADLINE) {
                    return Some(Err(network_error("append request unanswered")));
                }
            }
        }
    }
}

fn append_to_proto(request: AppendEntriesRequest<TypeConfig>) -> peer::AppendRequest {
    peer::AppendRequest {
        shard: SHARD,
        vote: Some(vote_to_proto(&request.vote)),
        prev: request.prev_log_id.as_ref().map(log_id_to_proto),
        entries: request.entries.iter().map(entry_to_proto).collect(),
        leader_commit: request.leader_commit.as_ref().map(log_id_to_proto),
    }
}

fn append_from_proto(reply: peer::AppendReply, pipeline: &Pipeline) -> AppendAnswer {
    let Some(request) = pipeline.lock().unwrap_or_else(PoisonError::into_inner).pop_front() else {
        return Err(network_error("an append answer without a request"));
    };
    match reply.outcome {
        Some(append_reply::Outcome::Partial(matched)) => Ok(Ok(Some(log_id_from_proto(&matched)))),
        Some(append_reply::Outcome::Success(_)) => Ok(Ok(None)),
        Some(append_reply::Outcome::Conflict(_)) => match request.prev {
            Some(prev) => Ok(Err(StreamAppendError::Conflict(prev))),
            None => Err(network_error("a conflict before the first entry")),
        },
        Some(append_reply::Outcome::HigherVote(vote)) => Ok(Err(StreamAppendError::HigherVote(vote_from_proto(&vote)))),
        None => Err(network_error("an empty append answer")),
    }
}

impl NetVote<TypeConfig> for Peer {
    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let reply = within(option.hard_ttl(), self.client.vote(vote_request(&rpc))).await?;
        vote_response(reply.into_inner())
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let reply = within(option.hard_ttl(), self.client.pre_vote(vote_request(&rpc))).await?;
        vote_response(reply.into_inner())
    }
}

fn vote_request(rpc: &VoteRequest<TypeConfig>) -> peer::VoteRequest {
    peer::VoteRequest {
        shard: SHARD,
        vote: Some(vote_to_proto(&rpc.vote)),
        last_log_id: rpc.last_log_id.as_ref().map(log_id_to_proto),
        leadership_transfer: rpc.leadership_transfer,
    }
}

fn vote_response(reply: peer::VoteReply) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
    let vote = reply
        .vote
        .as_ref()
        .ok_or_else(|| network_error("a vote answer without a vote"))?;
    let last_log_id = reply.last_log_id.as_ref().map(log_id_from_proto);
    Ok(VoteResponse::new(vote_from_proto(vote), last_log_id, reply.granted))
}

impl NetTransferLeader<TypeConfig> for Peer {
    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let request = peer::TransferRequest {
            shard: SHARD,
            from_leader: Some(vote_to_proto(req.from_leader())),
            to: *req.to_node_id(),
            last_log_id: req.last_log_id().map(log_id_to_proto),
        };
        let reply = within(option.hard_ttl(), self.client.transfer_leader(request))
            .await?
            .into_inner();
        if reply.accepted {
            return Ok(Ok(()));
        }
        // The details stay at the other node: the cure is the same, ask again once it has the log.
        let expected = req.last_log_id().copied();
        Ok(Err(openraft::raft::TransferLeaderError::LogNotFlushed {
            expected,
            actual: None,
        }))
    }
}

impl NetSnapshot<TypeConfig> for Peer {
    type SnapshotData = SnapshotData;

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: openraft::type_config::alias::SnapshotOf<TypeConfig, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let sending = snapshot::send(&mut self.client, &vote, snapshot.snapshot, self.sending);
        let vote = tokio::select! {
            sent = sending => sent.map_err(streaming_error)?,
            closed = cancel => return Err(StreamingError::Closed(closed)),
        };
        self.metrics.snapshots_sent.inc();
        Ok(SnapshotResponse::new(vote))
    }
}

/// Bounds a call.
async fn within<T>(
    deadline: Duration,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, RPCError<TypeConfig>> {
    match timeout(deadline, call).await {
        Ok(done) => done.map_err(rpc_error),
        Err(_) => Err(network_error("no answer in time")),
    }
}

/// A peer that cannot be reached is left alone for a moment; after any other failure Raft asks again at once.
fn rpc_error(status: Status) -> RPCError<TypeConfig> {
    match status.code() {
        Code::Unavailable => RPCError::Unreachable(Unreachable::new(&status)),
        _ => RPCError::Network(NetworkError::new(&status)),
    }
}

fn network_error(what: &str) -> RPCError<TypeConfig> {
    RPCError::Network(NetworkError::new(&io::Error::other(what.to_owned())))
}

/// A node that cannot read its own disk must not go on.
fn streaming_error(error: SendError) -> StreamingError<TypeConfig> {
    match error {
        SendError::Unreadable(error) => {
            let error = StorageError::from_io_error(ErrorSubject::Snapshot(None), ErrorVerb::Read, error);
            StreamingError::StorageError(error)
        }
        SendError::Refused(status) => rpc_error(status).into(),
        SendError::Timeout => network_error("snapshot not taken in time").into(),
    }
}
