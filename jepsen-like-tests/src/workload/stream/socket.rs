//! A WebSocket to one node, without the features of the client library: it does not resume or retry, and it returns
//! every frame.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use futures::{SinkExt as _, StreamExt as _};
use serde::Deserialize;
use serde_json::json;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::cluster::Team;
use crate::record::history::Item;
use crate::workload::send::key_of;

/// Time limit for the whole handshake. A node that is stopped for less than this answers late, and the client accepts
/// it.
const DIAL: Duration = Duration::from_secs(6);
/// Receive buffer of a reader that should block the node soon.
const NARROW_BYTES: u32 = 16 * 1024;

/// An open session.
pub struct Socket {
    stream: WebSocketStream<TcpStream>,
    /// The seq that it resumes from.
    pub last_seq: u64,
}

/// The frames of a node.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Frame {
    Connected {
        last_seq: u64,
    },
    Event {
        seq: u64,
        event: Event,
    },
    CursorExpired {
        oldest_available_seq: u64,
    },
    Error {
        code: u32,
        message: String,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Event {
    id: String,
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    body: String,
    to: String,
}

/// A frame for the caller.
pub enum Brought {
    /// An event, and the agent that it names as its receiver.
    Event(Item, String),
    /// Events before this seq were removed.
    Expired(u64),
}

impl Socket {
    /// Connects to a node as a client with a name, for one inbox.
    pub async fn open(url: &str, team: &Team, agent: &str, client: &str, narrow: bool) -> Result<Self> {
        let opening = Box::pin(Self::dial(url, team, agent, client, narrow));
        timeout(DIAL, opening)
            .await
            .context("the node did not answer the handshake in time")?
    }

    async fn dial(url: &str, team: &Team, agent: &str, client: &str, narrow: bool) -> Result<Self> {
        let address = url.strip_prefix("http://").context("the URL of a node")?;
        let address = address.trim_end_matches('/').parse()?;
        let socket = TcpSocket::new_v4()?;
        if narrow {
            socket.set_recv_buffer_size(NARROW_BYTES)?;
        }
        let stream = socket.connect(address).await?;
        stream.set_nodelay(true)?;
        let (stream, _) = tokio_tungstenite::client_async(format!("ws://{address}/ws"), stream).await?;
        let mut socket = Socket { stream, last_seq: 0 };
        let hello = json!({
            "type": "connect", "version": 1, "token": team.key, "team_id": team.id,
            "scopes": [format!("agent_to:{agent}")], "client_id": client,
        });
        socket.stream.send(Message::text(hello.to_string())).await?;
        match socket.frame().await? {
            Frame::Connected { last_seq } => socket.last_seq = last_seq,
            Frame::Error { code, message } => bail!("{code}: {message}"),
            _ => bail!("the first frame is not `connected`"),
        }
        Ok(socket)
    }

    /// Waits for the next frame; an error when the session is over. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<Brought> {
        loop {
            match self.frame().await? {
                Frame::Event { seq, event } => {
                    let item = Item {
                        id: event.id,
                        key: key_of(&event.data.body),
                        seq: Some(seq),
                    };
                    return Ok(Brought::Event(item, event.data.to));
                }
                Frame::CursorExpired { oldest_available_seq } => return Ok(Brought::Expired(oldest_available_seq)),
                Frame::Error { code, message } => bail!("{code}: {message}"),
                Frame::Connected { .. } | Frame::Other => {}
            }
        }
    }

    /// Acknowledges everything up to a seq; an error when the session is over.
    pub async fn ack(&mut self, seq: u64) -> Result<()> {
        let ack = json!({"type": "ack", "seq": seq});
        Ok(timeout(DIAL, self.stream.send(Message::text(ack.to_string()))).await??)
    }

    /// Closes the session with a close frame; dropping the value just closes the connection.
    pub async fn close(mut self) {
        // The node may not answer any more.
        let _ = timeout(Duration::from_secs(1), self.stream.close(None)).await;
    }

    async fn frame(&mut self) -> Result<Frame> {
        loop {
            match self.stream.next().await.context("the connection ended")?? {
                Message::Text(text) => return serde_json::from_str(&text).with_context(|| format!("a frame: {text}")),
                Message::Close(_) => bail!("closed by the node"),
                // The library answers pings.
                Message::Ping(_) | Message::Pong(_) | Message::Binary(_) | Message::Frame(_) => {}
            }
        }
    }
}
