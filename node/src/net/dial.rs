//! Connections to other nodes.
//!
//! Each peer has one HTTP/2 connection per [`Purpose`], so that a heartbeat never waits behind a snapshot or a burst of
//! mail. A connection is opened at its first use, is reopened after it broke, and begins with the handshake. All of
//! them run on the threads of Raft, whoever uses them first. TCP alone takes minutes to notice that a peer vanished, so
//! HTTP/2 keep-alive pings run on every connection.

use std::collections::HashMap;
use std::mem::Discriminant;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use agentpost_proto::peer::peer_client::PeerClient;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tonic::codegen::Service;
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint};

use super::handshake::{self, HandshakeError, Identity};
use crate::base::repeats::Repeats;

/// Upper bound on the bytes of a message on the peer port: an append payload whose last entry has the maximal size, and
/// some reserve.
pub const MESSAGE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Time limit for the TCP connection and the handshake together.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Interval of HTTP/2 keep-alive pings, and the time after which an unanswered ping closes the connection.
pub const KEEPALIVE: Duration = Duration::from_secs(2);
/// HTTP/2 window of one stream; it holds a pipeline of append requests.
pub const STREAM_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
/// HTTP/2 window of one connection.
pub const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;

/// The use of a connection. Each purpose has a connection of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Replication of entries.
    Append,
    /// Heartbeats, votes, leader transfer, status: small and urgent.
    Control,
    /// Snapshot transfer.
    Snapshot,
    /// Operations, read barriers and questions of clients.
    Forward,
}

/// The attempts that failed, by node and kind of error.
type Failures = Arc<Repeats<(u64, Discriminant<HandshakeError>)>>;

/// Open connections, by node, address and purpose.
type Channels = HashMap<(u64, String, Purpose), Channel>;

/// Opens and keeps connections. Clones are cheap and share them.
#[derive(Clone)]
pub struct Dialer {
    identity: Arc<Identity>,
    channels: Arc<Mutex<Channels>>,
    failures: Failures,
    /// The runtime of all connections.
    threads: Handle,
}

impl Dialer {
    /// A dialer that proves `identity` in every handshake, and whose connections run on `threads`.
    pub fn new(identity: Identity, threads: Handle) -> Self {
        Dialer {
            identity: Arc::new(identity),
            channels: Arc::default(),
            failures: Arc::default(),
            threads,
        }
    }

    /// A client of node `target` at `address`. It connects at its first call.
    pub fn client(&self, target: u64, address: &str, purpose: Purpose) -> PeerClient<Channel> {
        let _threads = self.threads.enter();
        let mut channels = self.channels.lock();
        let channel = channels
            .entry((target, address.to_owned(), purpose))
            .or_insert_with(|| {
                let connector = Connector {
                    identity: Arc::clone(&self.identity),
                    target,
                    address: address.to_owned(),
                    purpose,
                    failures: Arc::clone(&self.failures),
                };
                Endpoint::from_static("http://peer")
                    .http2_keep_alive_interval(KEEPALIVE)
                    .keep_alive_timeout(KEEPALIVE)
                    .keep_alive_while_idle(true)
                    .initial_stream_window_size(STREAM_WINDOW_BYTES)
                    .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
                    .connect_with_connector_lazy(connector)
            });
        PeerClient::new(channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Drops the connections to every node for which `is_gone` returns true.
    pub fn forget(&self, is_gone: impl Fn(u64) -> bool) {
        let mut channels = self.channels.lock();
        let mut gone: Vec<u64> = channels.keys().map(|(node, ..)| *node).collect();
        gone.dedup();
        gone.retain(|node| is_gone(*node));
        channels.retain(|(node, ..), _| !gone.contains(node));
    }

    /// Drops all connections. One in use closes when its last client is dropped.
    pub fn close(&self) {
        self.channels.lock().clear();
    }
}

/// Opens a TCP connection and passes the handshake.
struct Connector {
    identity: Arc<Identity>,
    target: u64,
    address: String,
    purpose: Purpose,
    failures: Failures,
}

impl Connector {
    fn report(&self) -> impl FnOnce(&Result<TokioIo<TcpStream>, HandshakeError>) + use<> {
        let (node, purpose, failures) = (self.target, self.purpose, Arc::clone(&self.failures));
        move |connected| match connected {
            Ok(_) => tracing::debug!(node, ?purpose, "connected"),
            Err(error) => {
                if let Some(left_out) = failures.due((node, std::mem::discriminant(error))) {
                    tracing::warn!(node, ?purpose, %error, left_out, "connecting to node failed; retrying; check that it runs and that its peer port is reachable");
                }
            }
        }
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = HandshakeError;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let (identity, target, address) = (Arc::clone(&self.identity), self.target, self.address.clone());
        let connect = async move {
            let mut stream = TcpStream::connect(&address).await?;
            stream.set_nodelay(true)?;
            handshake::dial(&mut stream, &identity, target).await?;
            Ok(TokioIo::new(stream))
        };
        let report = self.report();
        let connect = tokio::time::timeout(CONNECT_TIMEOUT, connect);
        let connect = connect.map(|done| done.unwrap_or(Err(HandshakeError::Timeout)));
        connect.inspect(report).boxed()
    }
}
