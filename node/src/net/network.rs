//! Raft's network: openraft's calls to other nodes, over gRPC.
//!
//! Replication is a pipeline: append requests are sent on one stream without waiting for their answers, which arrive in
//! order. The stream ends when its oldest answer is overdue, so a peer that vanished without closing the connection
//! does not block replication; Raft then opens the next stream, after a pause if the peer is unreachable. Every other
//! call has a deadline.
//!
//! A follower that rejects an entry which it acknowledged to this leader earlier has lost it, through damage that its
//! own start did not detect. openraft would stop the sound leader over such an answer, so the answer is not passed on:
//! the follower is told to enter quarantine instead.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use agentpost_proto::peer::peer_client::PeerClient;
use agentpost_proto::peer::{self, append_reply};
use agentpost_raft_store::disk::snapshot::SnapshotData;
use agentpost_raft_store::disk::types::{
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
use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::dial::{Dialer, Purpose};
use super::shard_id::SHARD;
use super::snapshot::{self, SendError, SendOptions};
use super::transfers::Transfers;
use crate::base::metrics::Metrics;

/// An append request that is unanswered for this long ends its stream.
const APPEND_DEADLINE: Duration = Duration::from_secs(3);
/// Time limit for connecting and the first response headers of a stream.
const OPEN_DEADLINE: Duration = Duration::from_millis(1500);
/// Pauses between attempts to reach a peer. They are short, so that a restarted node hears from its leader at once.
const BACKOFF_MS: [u64; 4] = [20, 50, 100, 200];

/// Creates Raft's clients of the other nodes.
#[derive(Clone)]
pub struct Network {
    dialer: Dialer,
    sending: SendOptions,
    metrics: Metrics,
    acknowledged: Acknowledged,
    transfers: Transfers,
}

/// Raft's client of one other node, for one purpose.
pub struct Peer {
    target: u64,
    client: PeerClient<Channel>,
    /// A connection of its own, so that urgent calls do not wait behind requests on `client`.
    control: PeerClient<Channel>,
    acknowledged: Acknowledged,
    sending: SendOptions,
    metrics: Metrics,
    transfers: Transfers,
}

impl Network {
    /// A network that connects through `dialer`.
    pub fn new(dialer: Dialer, sending: SendOptions, metrics: Metrics) -> Self {
        Network {
            dialer,
            sending,
            metrics,
            acknowledged: Acknowledged::default(),
            transfers: Transfers::default(),
        }
    }

    /// The snapshots on their way to other nodes.
    pub fn transfers(&self) -> Transfers {
        self.transfers.clone()
    }

    fn peer(&self, target: u64, member: &Member, purpose: Purpose) -> Peer {
        let client = self.dialer.client(target, &member.peer_addr, purpose);
        Peer {
            target,
            client,
            control: self.dialer.client(target, &member.peer_addr, Purpose::Control),
            acknowledged: self.acknowledged.clone(),
            sending: self.sending,
            metrics: self.metrics.clone(),
            transfers: self.transfers.clone(),
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

/// The last entry that each follower acknowledged, and the vote under which this node led then. Clones share it.
#[derive(Clone, Default)]
struct Acknowledged(Arc<Mutex<BTreeMap<u64, (Vote, LogId)>>>);

impl Acknowledged {
    fn note(&self, node: u64, vote: Vote, id: LogId) {
        let mut all = self.0.lock();
        let known = all.entry(node).or_insert((vote, id));
        if known.0 != vote || known.1 < id {
            *known = (vote, id);
        }
    }

    /// Whether a follower acknowledged this entry under this vote.
    fn holds(&self, node: u64, vote: Vote, id: LogId) -> bool {
        let all = self.0.lock();
        all.get(&node).is_some_and(|known| known.0 == vote && known.1 >= id)
    }
}

/// An append request without an answer.
struct InFlight {
    vote: Vote,
    prev: Option<LogId>,
    /// The last entry that the follower has once it accepts the request.
    last: Option<LogId>,
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
        let largest = self.metrics.raft.append_request_bytes_max.clone();
        let mut requests = input.map(move |request| {
            let entry = InFlight {
                vote: request.vote,
                prev: request.prev_log_id,
                last: request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id),
                sent: Instant::now(),
            };
            sent.lock().push_back(entry);
            let request = append_to_proto(request);
            let bytes = request.entries.iter().map(|entry| entry.command.len()).sum::<usize>();
            largest.inner().fetch_max(bytes as i64, Ordering::Relaxed);
            request
        });
        Box::pin(async move {
            // openraft applies its back-off inside the request stream. So the first request is taken before connecting;
            // otherwise a peer that refuses connections would be dialled in a busy loop.
            let Some(first) = requests.next().await else {
                return Ok(futures::stream::empty().boxed());
            };
            let requests = futures::stream::once(std::future::ready(first)).chain(requests);
            let answers = within(OPEN_DEADLINE, self.client.append(requests)).await?.into_inner();
            let mut overdue = interval(APPEND_DEADLINE / 4);
            overdue.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let state = Some((answers, pipeline, overdue));
            let peer = &*self;
            let answers: BoxStream<'s, AppendAnswer> =
                Box::pin(futures::stream::unfold(state, move |state| async move {
                    let (mut answers, pipeline, mut overdue) = state?;
                    let answer = peer.next_answer(&mut answers, &pipeline, &mut overdue).await?;
                    // A rejection or an error ends the pipeline, because the follower rejects the later requests as well.
                    let state = matches!(answer, Ok(Ok(_))).then_some((answers, pipeline, overdue));
                    Some((answer, state))
                }));
            Ok(answers)
        })
    }
}

impl Peer {
    async fn next_answer(
        &self,
        answers: &mut Streaming<peer::AppendReply>,
        pipeline: &Pipeline,
        overdue: &mut tokio::time::Interval,
    ) -> Option<AppendAnswer> {
        loop {
            tokio::select! {
                answer = answers.message() => {
                    return match answer {
                        Ok(Some(reply)) => Some(self.append_from_proto(reply, pipeline)),
                        Ok(None) => None,
                        Err(status) => Some(Err(rpc_error(status))),
                    };
                }
                _ = overdue.tick() => {
                    let oldest = pipeline.lock().front().map(|r| r.sent);
                    if oldest.is_some_and(|sent| sent.elapsed() > APPEND_DEADLINE) {
                        return Some(Err(network_error("append request unanswered")));
                    }
                }
            }
        }
    }

    fn append_from_proto(&self, reply: peer::AppendReply, pipeline: &Pipeline) -> AppendAnswer {
        let Some(request) = pipeline.lock().pop_front() else {
            return Err(network_error("an append answer without a request"));
        };
        let has = |id: LogId| self.acknowledged.note(self.target, request.vote, id);
        match reply.outcome {
            Some(append_reply::Outcome::Partial(matched)) => {
                let matched = log_id_from_proto(&matched);
                has(matched);
                Ok(Ok(Some(matched)))
            }
            Some(append_reply::Outcome::Success(_)) => {
                request.last.into_iter().for_each(has);
                Ok(Ok(None))
            }
            Some(append_reply::Outcome::Conflict(_)) => match request.prev {
                Some(prev) if self.acknowledged.holds(self.target, request.vote, prev) => Err(self.went_back(prev)),
                Some(prev) => Ok(Err(StreamAppendError::Conflict(prev))),
                None => Err(network_error("a conflict before the first entry")),
            },
            Some(append_reply::Outcome::HigherVote(vote)) => {
                Ok(Err(StreamAppendError::HigherVote(vote_from_proto(&vote))))
            }
            None => Err(network_error("an empty append answer")),
        }
    }

    /// The follower has lost an entry that it acknowledged, so it must stop taking part.
    fn went_back(&self, entry: LogId) -> RPCError<TypeConfig> {
        let reason = format!("this node does not have entry {entry}, which it had acknowledged to the leader");
        tracing::error!(
            node = self.target,
            reason,
            "a follower lost entries that it had acknowledged and is sent into quarantine; replace its disk, then run: agentpost node rejoin"
        );
        let mut control = self.control.clone();
        let request = peer::QuarantineRequest { shard: SHARD, reason };
        // If this call is lost, the follower's next rejection repeats it.
        tokio::spawn(async move { within(OPEN_DEADLINE, control.quarantine(request)).await });
        RPCError::Unreachable(Unreachable::new(&io::Error::other("the follower's log went back")))
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
        // The other node's reason does not matter here: the remedy is to ask again once it has the log.
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
        let covered = snapshot.meta.last_log_id.map_or(0, |last| last.index);
        let _under_way = self.transfers.begin(self.target, covered);
        let sending = snapshot::send(&mut self.client, &vote, snapshot.snapshot, self.sending);
        let vote = tokio::select! {
            sent = sending => sent.map_err(streaming_error)?,
            closed = cancel => return Err(StreamingError::Closed(closed)),
        };
        self.metrics.snapshots_sent.inc();
        Ok(SnapshotResponse::new(vote))
    }
}

/// Runs a call with a deadline.
async fn within<T>(
    deadline: Duration,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, RPCError<TypeConfig>> {
    match timeout(deadline, call).await {
        Ok(done) => done.map_err(rpc_error),
        Err(_) => Err(network_error("no answer in time")),
    }
}

/// Raft backs off from an unreachable peer; after any other failure it asks again at once.
fn rpc_error(status: Status) -> RPCError<TypeConfig> {
    match status.code() {
        Code::Unavailable => RPCError::Unreachable(Unreachable::new(&status)),
        _ => RPCError::Network(NetworkError::new(&status)),
    }
}

fn network_error(what: &str) -> RPCError<TypeConfig> {
    RPCError::Network(NetworkError::new(&io::Error::other(what.to_owned())))
}

/// A node that cannot read its own disk must stop, so that error is a storage error.
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
