//! One WebSocket session to one node. It does not resume or retry, and it returns every frame that concerns mail.

use std::time::Duration;

use agentpost_proto::frame::ServerFrame;
use agentpost_testkit::socket::{Connect, NARROW_BYTES, RawSocket};
use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use tokio::time::timeout;

use crate::cluster::Team;
use crate::record::history::Item;
use crate::workload::message::key_of;

/// Time limit for the whole handshake. A node that is stopped for less than this answers late, and the client accepts
/// it.
const HANDSHAKE: Duration = Duration::from_secs(6);

/// An open session.
pub struct Session {
    socket: RawSocket,
    /// The seq that it resumes from.
    pub last_seq: u64,
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

/// A frame that concerns mail.
pub enum MailFrame {
    /// A message, and the agent that it names as its receiver.
    Message(Item, String),
    /// Messages before this seq were removed.
    Expired(u64),
}

impl Session {
    /// Connects to a node as a client with a name, for one inbox. A `narrow` session has a small receive buffer, so
    /// that a slow reader blocks the node soon.
    pub async fn open(url: &str, team: &Team, agent: &str, client: &str, narrow: bool) -> Result<Self> {
        let opening = Box::pin(async {
            let mut socket = RawSocket::open(url, narrow.then_some(NARROW_BYTES)).await?;
            let scope = format!("agent_to:{agent}");
            let connect = Connect {
                key: &team.key,
                team: &team.id,
                scopes: &[&scope],
                client_id: Some(client),
            };
            let last_seq = socket.connect(&connect).await?;
            Ok(Session { socket, last_seq })
        });
        let opened = timeout(HANDSHAKE, opening).await;
        opened.context("the node did not answer the handshake in time")?
    }

    /// Waits for the next frame; an error when the session is over. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<MailFrame> {
        loop {
            match self.socket.frame::<Event>().await? {
                ServerFrame::Event { seq, event } => {
                    let item = Item {
                        id: event.id,
                        key: key_of(&event.data.body),
                        seq: Some(seq),
                    };
                    return Ok(MailFrame::Message(item, event.data.to));
                }
                ServerFrame::CursorExpired {
                    oldest_available_seq, ..
                } => return Ok(MailFrame::Expired(oldest_available_seq)),
                ServerFrame::Error { code, message } => bail!("{code}: {message}"),
                _ => {}
            }
        }
    }

    /// Acknowledges everything up to a seq; an error when the session is over.
    pub async fn ack(&mut self, seq: u64) -> Result<()> {
        timeout(HANDSHAKE, self.socket.ack(seq)).await?
    }

    /// Closes the session with a close frame; dropping the value just closes the connection.
    pub async fn close(self) {
        // The node may not answer any more.
        let _ = timeout(Duration::from_secs(1), self.socket.close()).await;
    }
}
