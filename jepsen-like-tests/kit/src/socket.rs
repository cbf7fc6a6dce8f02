//! A WebSocket client for Kite's frames that resumes, repeats and acknowledges nothing on its own.
//!
//! [`RawSocket`] returns errors, for the fault tests. [`Socket`] panics when something else happens than a test
//! expects, and keeps a log of what it read.

mod expect;

use std::net::SocketAddr;

use agentpost_proto::frame::ServerFrame;
use anyhow::{Context as _, Result, anyhow, bail};
use futures::{SinkExt as _, StreamExt as _};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

pub use expect::{Ending, SOON, Socket, refused};

/// Bytes of a receive buffer that a server fills soon.
pub const NARROW_BYTES: u32 = 16 * 1024;

/// Bytes that [`RawSocket::peek`] looks at.
const PEEK_BYTES: usize = 64 * 1024;

/// The contents of a `connect` frame.
#[derive(Debug, Clone)]
pub struct Connect<'a> {
    /// An API key.
    pub key: &'a str,
    /// The id of the team that the key belongs to.
    pub team: &'a str,
    /// Scopes such as `agent_to:a` or `*`.
    pub scopes: &'a [&'a str],
    /// The name of the stored cursor.
    pub client_id: Option<&'a str>,
}

impl Connect<'_> {
    /// The frame; a test may change it before it sends it.
    pub fn frame(&self) -> Value {
        json!({
            "type": "connect", "version": 1, "token": self.key, "team_id": self.team,
            "scopes": self.scopes, "client_id": self.client_id,
        })
    }
}

/// An open WebSocket. None of its methods limits its own time.
pub struct RawSocket {
    stream: WebSocketStream<TcpStream>,
}

impl RawSocket {
    /// Opens a WebSocket to a node and sends nothing. `url` is the node's `http://HOST:PORT`; `receive_buffer` limits
    /// the bytes that wait in this machine for the reader.
    pub async fn open(url: &str, receive_buffer: Option<u32>) -> Result<Self> {
        let address = url.strip_prefix("http://").context("the URL of a node")?;
        let address: SocketAddr = address.trim_end_matches('/').parse()?;
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        if let Some(bytes) = receive_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        let stream = socket.connect(address).await?;
        stream.set_nodelay(true)?;
        let (stream, _) = tokio_tungstenite::client_async(format!("ws://{address}/ws"), stream).await?;
        Ok(RawSocket { stream })
    }

    /// Sends `connect` and waits for `connected`; returns its `last_seq`.
    pub async fn connect(&mut self, connect: &Connect<'_>) -> Result<u64> {
        self.send_json(&connect.frame()).await?;
        match self.frame::<Value>().await? {
            ServerFrame::Connected { last_seq, .. } => Ok(last_seq),
            ServerFrame::Error { code, message } => bail!("{code}: {message}"),
            _ => bail!("the first frame is not `connected`"),
        }
    }

    /// Sends any message.
    pub async fn send(&mut self, message: Message) -> Result<()> {
        Ok(self.stream.send(message).await?)
    }

    /// Sends a frame.
    pub async fn send_json(&mut self, frame: &Value) -> Result<()> {
        self.send(Message::text(frame.to_string())).await
    }

    /// Acknowledges everything up to `seq`.
    pub async fn ack(&mut self, seq: u64) -> Result<()> {
        self.send_json(&json!({ "type": "ack", "seq": seq })).await
    }

    /// The next message of any kind; `None` when the connection is closed. Dropping the future loses nothing.
    /// Pings are answered while this waits.
    pub async fn message(&mut self) -> Option<Result<Message>> {
        Some(self.stream.next().await?.map_err(|error| anyhow!(error)))
    }

    /// The next frame, with the event as an `E`; an error when the node closes the connection. Dropping the future
    /// loses nothing.
    pub async fn frame<E: DeserializeOwned>(&mut self) -> Result<ServerFrame<E>> {
        loop {
            match self.message().await.context("the connection ended")?? {
                Message::Text(text) => return serde_json::from_str(&text).with_context(|| format!("a frame: {text}")),
                Message::Close(_) => bail!("closed by the node"),
                Message::Ping(_) | Message::Pong(_) | Message::Binary(_) | Message::Frame(_) => {}
            }
        }
    }

    /// Bytes that have arrived and are not read yet, as many as fit into one look.
    pub async fn peek(&self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; PEEK_BYTES];
        let count = self.stream.get_ref().peek(&mut bytes).await?;
        bytes.truncate(count);
        Ok(bytes)
    }

    /// Sends a close frame. Dropping the socket closes the connection without one.
    pub async fn close(mut self) -> Result<()> {
        Ok(self.stream.close(None).await?)
    }
}
