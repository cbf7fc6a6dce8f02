//! Connections to other nodes.
//!
//! A peer has one HTTP/2 connection per [`Purpose`], so that a snapshot or a burst of mail never stands in
//! front of a heartbeat. Connections are made when first used and made again after they broke; each begins
//! with the handshake. TCP alone would take minutes to notice a peer that vanished, so HTTP/2 pings it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use agentpost_proto::limits::PEER_MESSAGE_BYTES_MAX;
use agentpost_proto::peer::peer_client::PeerClient;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tonic::codegen::Service;
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint};

use super::handshake::{self, HandshakeError, Identity};

/// TCP and handshake together.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// HTTP/2 pings an idle or silent connection this often, and gives up when one stays unanswered as long.
pub const KEEPALIVE: Duration = Duration::from_secs(2);
/// Of one stream: a pipeline of append requests.
pub const STREAM_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
/// Of a connection.
pub const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;

/// What a connection is for; each has its own.
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

/// Open connections, by node, address and purpose.
type Channels = HashMap<(u64, String, Purpose), Channel>;

/// Makes and keeps connections. Cheap to clone.
#[derive(Clone)]
pub struct Dialer {
    identity: Arc<Identity>,
    channels: Arc<Mutex<Channels>>,
}

impl Dialer {
    /// Dials as `identity`.
    pub fn new(identity: Identity) -> Self {
        Dialer {
            identity: Arc::new(identity),
            channels: Arc::default(),
        }
    }

    /// A client of node `target` at `address`. Connects when used.
    pub fn client(&self, target: u64, address: &str, purpose: Purpose) -> PeerClient<Channel> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let channel = channels
            .entry((target, address.to_owned(), purpose))
            .or_insert_with(|| {
                let connector = Connector {
                    identity: Arc::clone(&self.identity),
                    target,
                    address: address.to_owned(),
                    purpose,
                    failing: Arc::default(),
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
            .max_decoding_message_size(PEER_MESSAGE_BYTES_MAX)
            .max_encoding_message_size(PEER_MESSAGE_BYTES_MAX)
    }

    /// Forgets the connections to nodes that are gone.
    pub fn forget(&self, is_gone: impl Fn(u64) -> bool) {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let mut gone: Vec<u64> = channels.keys().map(|(node, ..)| *node).collect();
        gone.dedup();
        gone.retain(|node| is_gone(*node));
        channels.retain(|(node, ..), _| !gone.contains(node));
    }

    /// Forgets all connections; those in use close when their last client goes.
    pub fn close(&self) {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// Opens a TCP connection and passes the handshake.
struct Connector {
    identity: Arc<Identity>,
    target: u64,
    address: String,
    purpose: Purpose,
    /// Whether the last attempt failed: only a change is worth a line in the log.
    failing: Arc<AtomicBool>,
}

impl Connector {
    fn report(&self) -> impl FnOnce(&Result<TokioIo<TcpStream>, HandshakeError>) + use<> {
        let (node, purpose, failing) = (self.target, self.purpose, Arc::clone(&self.failing));
        move |connected| match connected {
            Ok(_) => {
                failing.store(false, Ordering::Relaxed);
                tracing::debug!(node, ?purpose, "connected");
            }
            Err(error) if !failing.swap(true, Ordering::Relaxed) => {
                tracing::warn!(node, ?purpose, %error, "node not reached; trying on");
            }
            Err(_) => {}
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
