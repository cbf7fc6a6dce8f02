//! Snapshots on the wire: a header with the manifest, then the files in the order of the manifest, cut into chunks. Files
//! that the receiver has from a transfer that broke off are left out. The
//! sender limits its rate, so that replication and mail keep the rest of the network. The receiver writes on a blocking
//! thread and checks every length and checksum before it hands the snapshot to Raft.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use agentpost_proto::peer::peer_client::PeerClient;
use agentpost_proto::peer::{self, SnapshotChunk, SnapshotHeader, SnapshotHeldReply, SnapshotPart, snapshot_part};
use agentpost_raft_store::disk::snapshot::{Receiver, Snapshot, SnapshotData, Snapshots};
use agentpost_raft_store::disk::types::{Vote, vote_from_proto, vote_to_proto};
use futures::stream::{self, Stream, StreamExt as _};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::shard_id::SHARD;

/// A transfer ends if no chunk arrives for this long.
const SILENCE: Duration = Duration::from_secs(15);
/// Added to the time for the bytes themselves: the receiver syncs, checks and opens its copy.
const GRACE: Duration = Duration::from_secs(60);
/// A transfer may take this many times as long as its rate implies.
const SLOWDOWN: u32 = 8;
/// Chunks between the network and the disk.
const QUEUE: usize = 4;

/// How snapshots are sent.
#[derive(Debug, Clone, Copy)]
pub struct SendOptions {
    /// Upper bound on the rate, in bytes per second.
    pub bytes_per_s: u64,
}

impl SendOptions {
    /// The shortest time in which `bytes` may be sent.
    fn duration(self, bytes: u64) -> Duration {
        Duration::from_secs_f64(bytes as f64 / self.bytes_per_s as f64)
    }
}

/// Why a snapshot was not installed on the other node.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// This node cannot read its own disk.
    #[error("reading the snapshot: {0}")]
    Unreadable(io::Error),
    /// The other node refused it, or the connection broke.
    #[error(transparent)]
    Refused(#[from] Status),
    /// The deadline passed.
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
    let mut header = SnapshotHeader {
        shard: SHARD,
        vote: Some(vote_to_proto(vote)),
        meta: Some(snapshot.meta().clone()),
        held: Vec::new(),
    };
    let held = timeout(SILENCE, client.snapshot_held(header.clone())).await;
    header.held = held.map_err(|_| SendError::Timeout)??.into_inner().files;
    let parts = parts(header, &snapshot, options, Arc::clone(&unreadable));
    let sent = timeout(deadline, client.snapshot(parts)).await;
    if let Some(error) = unreadable.lock().take() {
        return Err(SendError::Unreadable(error));
    }
    let reply = sent.map_err(|_| SendError::Timeout)??.into_inner();
    match &reply.vote {
        Some(vote) => Ok(vote_from_proto(vote)),
        None => Err(SendError::Refused(Status::internal("a snapshot answer without a vote"))),
    }
}

/// The header and the chunks, at the configured rate. A read error ends the stream early and is stored in `unreadable`.
fn parts(
    header: SnapshotHeader,
    snapshot: &SnapshotData,
    options: SendOptions,
    unreadable: Arc<Mutex<Option<io::Error>>>,
) -> impl Stream<Item = SnapshotPart> + Send + use<> {
    let chunks = snapshot.chunks(&header.held);
    let header = SnapshotPart {
        part: Some(snapshot_part::Part::Header(header)),
    };
    let began = Instant::now();
    let paced = stream::unfold(
        (chunks, 0, unreadable),
        move |(mut chunks, sent, unreadable)| async move {
            let (file, data) = match chunks.next().await? {
                Ok(chunk) => chunk,
                Err(error) => {
                    *unreadable.lock() = Some(error);
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

/// Says which files of a snapshot this node already has.
pub async fn held(header: SnapshotHeader, snapshots: &Arc<Snapshots>) -> Result<SnapshotHeldReply, Status> {
    if header.shard != SHARD {
        return Err(Status::not_found(format!("no shard {} here", header.shard)));
    }
    let meta = header
        .meta
        .ok_or_else(|| Status::invalid_argument("a snapshot without a manifest"))?;
    let snapshots = Arc::clone(snapshots);
    let files = tokio::task::spawn_blocking(move || snapshots.held(&meta)).await;
    let files = files.map_err(|panic| Status::internal(panic.to_string()))?;
    Ok(SnapshotHeldReply { files })
}

/// Receives a whole snapshot to this node's disk and verifies it. `claimed` checks the sender's vote.
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
    let writing = tokio::task::spawn_blocking(move || write(snapshots.receive(meta, &header.held)?, queue));
    while let Some(part) = next(&mut parts).await? {
        let snapshot_part::Part::Chunk(chunk) = part else {
            return Err(Status::invalid_argument("a second header"));
        };
        if chunks.send(chunk).await.is_err() {
            // The writer has ended; its result below says why.
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
