//! Snapshots on the wire: a header that says what follows, then the files in the order of the manifest, cut
//! into chunks. The sender keeps to a rate, so that replication and mail have the rest of the network; the
//! receiver writes on a blocking thread and checks every length and checksum before Raft hears of it.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agentpost_proto::peer::peer_client::PeerClient;
use agentpost_proto::peer::{self, SnapshotChunk, SnapshotHeader, SnapshotPart, snapshot_part};
use agentpost_raft_store::disk::snapshot::{Receiver, Snapshot, SnapshotData, Snapshots};
use agentpost_raft_store::disk::types::{Vote, vote_from_proto, vote_to_proto};
use futures::stream::{self, Stream, StreamExt as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::shard_id::SHARD;

/// A sender that is silent this long is given up.
const SILENCE: Duration = Duration::from_secs(15);
/// Beside the time that the bytes take at their rate: syncing, checking and opening the other end's copy.
const GRACE: Duration = Duration::from_secs(60);
/// A transfer may be this much slower than its rate.
const SLOWDOWN: u32 = 8;
/// Chunks between the network and the disk.
const QUEUE: usize = 4;

/// How snapshots are sent.
#[derive(Debug, Clone, Copy)]
pub struct SendOptions {
    /// Not faster than this.
    pub bytes_per_s: u64,
}

impl SendOptions {
    /// How long so many bytes take at least.
    fn duration(self, bytes: u64) -> Duration {
        Duration::from_secs_f64(bytes as f64 / self.bytes_per_s as f64)
    }
}

/// Why a snapshot did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// This node cannot read its own disk.
    #[error("reading the snapshot: {0}")]
    Unreadable(io::Error),
    /// The other node refused it, or the connection broke.
    #[error(transparent)]
    Refused(#[from] Status),
    /// It takes too long.
    #[error("not taken in time")]
    Timeout,
}

/// Sends a snapshot to the node of `client` and waits until it is installed there. Returns that node's vote.
pub async fn send(
    client: &mut PeerClient<Channel>,
    vote: &Vote,
    snapshot: SnapshotData,
    options: SendOptions,
) -> Result<Vote, SendError> {
    let deadline = options.duration(snapshot.bytes()) * SLOWDOWN + GRACE;
    let unreadable: Arc<Mutex<Option<io::Error>>> = Arc::default();
    let parts = parts(vote, &snapshot, options, Arc::clone(&unreadable));
    let sent = timeout(deadline, client.snapshot(parts)).await;
    if let Some(error) = unreadable.lock().unwrap_or_else(PoisonError::into_inner).take() {
        return Err(SendError::Unreadable(error));
    }
    let reply = sent.map_err(|_| SendError::Timeout)??.into_inner();
    match &reply.vote {
        Some(vote) => Ok(vote_from_proto(vote)),
        None => Err(SendError::Refused(Status::internal("a snapshot answer without a vote"))),
    }
}

/// Header and chunks, paced. A read error ends the stream early and is left in `unreadable`.
fn parts(
    vote: &Vote,
    snapshot: &SnapshotData,
    options: SendOptions,
    unreadable: Arc<Mutex<Option<io::Error>>>,
) -> impl Stream<Item = SnapshotPart> + Send + use<> {
    let header = SnapshotHeader {
        shard: SHARD,
        vote: Some(vote_to_proto(vote)),
        meta: Some(snapshot.meta().clone()),
    };
    let header = SnapshotPart {
        part: Some(snapshot_part::Part::Header(header)),
    };
    let began = Instant::now();
    let paced = stream::unfold(
        (snapshot.chunks(), 0, unreadable),
        move |(mut chunks, sent, unreadable)| async move {
            let (file, data) = match chunks.next().await? {
                Ok(chunk) => chunk,
                Err(error) => {
                    *unreadable.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    return None;
                }
            };
            sleep_until(began + options.duration(sent)).await;
            let sent = sent + data.len() as u64;
            let part = SnapshotPart {
                part: Some(snapshot_part::Part::Chunk(SnapshotChunk { file, data })),
            };
            Some((part, (chunks, sent, unreadable)))
        },
    );
    stream::once(std::future::ready(header)).chain(paced)
}

/// Receives a snapshot to this node's disk, complete and verified. `claimed` judges the sender's vote.
pub async fn receive(
    mut parts: Streaming<SnapshotPart>,
    snapshots: &Arc<Snapshots>,
    claimed: impl Fn(Option<&peer::Vote>) -> Result<Vote, Status>,
) -> Result<(Vote, Snapshot), Status> {
    let Some(snapshot_part::Part::Header(header)) = next(&mut parts).await? else {
        return Err(Status::invalid_argument("a snapshot begins with its header"));
    };
    if header.shard != SHARD {
        return Err(Status::not_found(format!("no shard {} here", header.shard)));
    }
    let vote = claimed(header.vote.as_ref())?;
    let meta = header
        .meta
        .ok_or_else(|| Status::invalid_argument("a snapshot without a manifest"))?;
    let (chunks, queue) = mpsc::channel(QUEUE);
    let snapshots = Arc::clone(snapshots);
    let writing = tokio::task::spawn_blocking(move || write(snapshots.receive(meta)?, queue));
    while let Some(part) = next(&mut parts).await? {
        let snapshot_part::Part::Chunk(chunk) = part else {
            return Err(Status::invalid_argument("a second header"));
        };
        if chunks.send(chunk).await.is_err() {
            // The writer has ended; it tells why.
            break;
        }
    }
    drop(chunks);
    let received = writing.await.map_err(|panic| Status::internal(panic.to_string()))?;
    let snapshot = received.and_then(|data| data.into_snapshot().map_err(io::Error::other));
    let snapshot = snapshot.map_err(|error| Status::data_loss(format!("snapshot not usable: {error}")))?;
    Ok((vote, snapshot))
}

async fn next(parts: &mut Streaming<SnapshotPart>) -> Result<Option<snapshot_part::Part>, Status> {
    let received = timeout(SILENCE, parts.message())
        .await
        .map_err(|_| Status::deadline_exceeded("silence"))?;
    match received? {
        None => Ok(None),
        Some(SnapshotPart { part: Some(part) }) => Ok(Some(part)),
        Some(SnapshotPart { part: None }) => Err(Status::invalid_argument("an empty part")),
    }
}

fn write(mut receiver: Receiver, mut queue: mpsc::Receiver<SnapshotChunk>) -> io::Result<SnapshotData> {
    while let Some(chunk) = queue.blocking_recv() {
        receiver.chunk(chunk.file, &chunk.data)?;
    }
    receiver.finish()
}
