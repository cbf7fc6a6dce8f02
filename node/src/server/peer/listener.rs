//! The listener of the peer port: HTTP/2 sees a connection only after the handshake.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt as _;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use super::admission::Admission;
use crate::base::metrics::Metrics;
use crate::base::repeats::Repeats;
use crate::base::task_watch::TaskWatch;
use crate::net::handshake::{self, Identity};
use crate::shard::leader_loss::ClosedConnections;

/// Upper bound on the handshakes at a time. Further connections wait in the TCP backlog.
const HANDSHAKES_MAX: usize = 128;

/// The node at the other end of an accepted connection, as the handshake proved it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerId(pub u64);

/// An accepted connection.
pub struct PeerStream {
    tcp: TcpStream,
    peer: PeerId,
    closed: Pin<Box<WaitForCancellationFutureOwned>>,
    hints: ClosedConnections,
}

impl Drop for PeerStream {
    fn drop(&mut self) {
        self.hints.note(self.peer.0);
    }
}

/// The parts of a node that its peer port needs.
pub struct PeerPort {
    pub listener: TcpListener,
    /// Proves to other nodes who this node is.
    pub identity: Identity,
    /// The nodes that may connect.
    pub admission: Admission,
    pub metrics: Metrics,
    /// Learns of each connection that closes.
    pub hints: ClosedConnections,
    pub shutdown: CancellationToken,
}

/// Accepts connections until the shutdown. Then open connections are closed too, because their streams never end on their
/// own; the same happens to the connections of a node that [`Admission`] removes.
pub fn listen(port: PeerPort, watch: &TaskWatch) -> ReceiverStream<io::Result<PeerStream>> {
    let PeerPort {
        listener,
        identity,
        admission,
        metrics,
        hints,
        shutdown,
    } = port;
    let (accepted, incoming) = mpsc::channel(16);
    let shared = Arc::new((identity, admission));
    let slots = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let (refused, not_accepted) = (Arc::new(Repeats::default()), Repeats::default());
    let stop = shutdown.clone();
    let accepting = async move {
        loop {
            // Cannot fail: the semaphore is never closed.
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
                return;
            };
            let (mut tcp, address) = match listener.accept().await {
                Ok(connection) => connection,
                Err(error) => {
                    // The cause is most likely a lack of file descriptors; without a pause the loop would spin.
                    if let Some(left_out) = not_accepted.due(()) {
                        tracing::warn!(%error, left_out, "accepting a peer connection failed; trying again; raise the limit of open files if there are too many");
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (shared, accepted, metrics) = (Arc::clone(&shared), accepted.clone(), metrics.clone());
            let (hints, refused) = (hints.clone(), Arc::clone(&refused));
            tokio::spawn(async move {
                let _slot = slot;
                let shaken = async {
                    tcp.set_nodelay(true)?;
                    handshake::accept(&mut tcp, &shared.0, |id| shared.1.admits(id)).await
                };
                match shaken.await {
                    Ok(peer) => {
                        let Some(closed) = shared.1.enter(peer) else { return };
                        let closed = Box::pin(closed.cancelled_owned());
                        let _ = accepted
                            .send(Ok(PeerStream {
                                tcp,
                                peer: PeerId(peer),
                                closed,
                                hints,
                            }))
                            .await;
                    }
                    Err(error) => {
                        metrics.handshakes_refused.inc();
                        if let Some(left_out) = refused.due((address.ip(), std::mem::discriminant(&error))) {
                            tracing::warn!(%address, %error, left_out, "a peer connection was refused; the error says why");
                        }
                    }
                }
            });
        }
    };
    let accepting = stop.clone().run_until_cancelled_owned(accepting).map(|_| ());
    tokio::spawn(watch.until(&stop, "listener of the peer port", accepting));
    ReceiverStream::new(incoming)
}

impl PeerStream {
    /// Fails once the node stops or the peer is removed from the cluster.
    fn check_open(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.closed.as_mut().poll(cx) {
            Poll::Pending => Ok(()),
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionAborted.into()),
        }
    }
}

impl Connected for PeerStream {
    type ConnectInfo = PeerId;

    fn connect_info(&self) -> PeerId {
        self.peer
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check_open(cx)?;
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
