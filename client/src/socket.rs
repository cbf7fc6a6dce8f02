//! One WebSocket to one node: TCP, TLS, the first two frames, then one frame after another. A socket that stays silent is
//! given up. [`crate::kite::Session`] listens on it, [`crate::kite::rpc`] sends one request.

mod ahead;

use std::sync::Arc;
use std::time::Duration;

use agentpost_proto::frame::{ClientFrame, ERR_AUTH_FAILED, ERR_SLOW_CONSUMER, ServerFrame};
use agentpost_proto::limits::{WS_MESSAGE_BYTES_MAX, WS_WRITE_BUFFER_BYTES_MAX};
use futures::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message, Utf8Bytes};
use tokio_tungstenite::{Connector, MaybeTlsStream, WebSocketStream};

/// For TCP, TLS and the upgrade together, and again for the first two frames.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// A socket that was silent for this time is pinged …
const SILENCE: Duration = Duration::from_secs(20);
/// … and given up if nothing comes in this time: a node that lost power closes no connection.
const SIGN_OF_LIFE: Duration = Duration::from_secs(20);
/// How long a closing socket waits for the server's close frame.
const GOODBYE: Duration = Duration::from_secs(1);

/// An open socket.
pub(crate) struct Socket {
    stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
    heard_at: Instant,
    asked_at: Option<Instant>,
    ahead: ahead::Ahead,
}

/// Why there is no socket any more.
#[derive(Debug)]
pub(crate) enum Lost {
    /// Reconnecting would meet the same refusal.
    Rejected {
        code: u32,
        message: String,
    },
    Broken(String),
}

impl From<tungstenite::Error> for Lost {
    fn from(error: tungstenite::Error) -> Self {
        Lost::Broken(error.to_string())
    }
}

/// A frame of the server. Its event stays JSON: a server may send more or fewer attributes than this version knows.
pub(crate) type Frame = ServerFrame<Value>;

/// By default the library reads messages of up to 64 MiB and buffers writes without bound. No frame of a node is larger
/// than the node's own write buffer.
fn bounds() -> WebSocketConfig {
    WebSocketConfig::default()
        .max_message_size(Some(WS_WRITE_BUFFER_BYTES_MAX))
        .max_frame_size(Some(WS_WRITE_BUFFER_BYTES_MAX))
        .max_write_buffer_size(WS_MESSAGE_BYTES_MAX)
}

impl Socket {
    /// Dials a node, sends the `connect` frame and waits for `connected`; returns the cursor and the id of the session, too.
    pub(crate) async fn open(
        url: &str,
        tls: Arc<rustls::ClientConfig>,
        hello: &ClientFrame,
    ) -> Result<(Socket, u64, String), Lost> {
        let late = |_| Lost::Broken(format!("no answer within {} s", DIAL_TIMEOUT.as_secs()));
        let connector = Some(Connector::Rustls(tls));
        let dial = tokio_tungstenite::connect_async_tls_with_config(url, Some(bounds()), true, connector);
        let (stream, _) = timeout(DIAL_TIMEOUT, Box::pin(dial)).await.map_err(late)??;
        let mut socket = Socket {
            stream,
            heard_at: Instant::now(),
            asked_at: None,
            ahead: ahead::Ahead::default(),
        };
        socket.send(hello).await?;
        let (last_seq, client_id) = timeout(DIAL_TIMEOUT, socket.greeted()).await.map_err(late)??;
        Ok((socket, last_seq, client_id))
    }

    async fn greeted(&mut self) -> Result<(u64, String), Lost> {
        loop {
            match self.frame().await? {
                Frame::Connected { last_seq, client_id } => return Ok((last_seq, client_id)),
                Frame::Error { code, message } => return Err(ended_by(code, message)),
                Frame::QuotaSnapshot { .. }
                | Frame::Event { .. }
                | Frame::Response { .. }
                | Frame::CursorExpired { .. }
                | Frame::BillingBlock { .. }
                | Frame::Other => {}
            }
        }
    }

    /// The next frame that can be read.
    pub(crate) async fn frame(&mut self) -> Result<Frame, Lost> {
        loop {
            let text = match self.ahead.next() {
                Some(read) => read?,
                None => self.text().await?,
            };
            if let Ok(frame) = serde_json::from_str(&text) {
                return Ok(frame);
            }
        }
    }

    /// The next text from the socket.
    async fn text(&mut self) -> Result<Utf8Bytes, Lost> {
        loop {
            match self.message().await? {
                Message::Text(text) => return Ok(text),
                Message::Close(_) => return Err(Lost::Broken("the server closed the connection".to_owned())),
                // The library answers pings.
                Message::Ping(_) | Message::Pong(_) | Message::Binary(_) | Message::Frame(_) => {}
            }
        }
    }

    /// The next message. Pings a silent server and gives it up. What has arrived is read before the time is looked at: a
    /// caller that was busy for long must not mistake its own silence for the server's.
    async fn message(&mut self) -> Result<Message, Lost> {
        loop {
            let patience = match self.asked_at {
                Some(asked_at) => asked_at + SIGN_OF_LIFE,
                None => self.heard_at + SILENCE,
            };
            tokio::select! {
                biased;
                message = self.stream.next() => {
                    self.heard_at = Instant::now();
                    self.asked_at = None;
                    let closed = || Lost::Broken("connection closed".to_owned());
                    return Ok(message.ok_or_else(closed)??);
                }
                () = sleep_until(patience) => {
                    if self.asked_at.is_some() {
                        return Err(Lost::Broken("the server went silent".to_owned()));
                    }
                    self.asked_at = Some(Instant::now());
                    self.stream.send(Message::Ping(Vec::new().into())).await?;
                }
            }
        }
    }

    /// Writes a frame.
    pub(crate) async fn send(&mut self, frame: &ClientFrame) -> Result<(), Lost> {
        let text = serde_json::to_string(frame).map_err(|e| Lost::Broken(e.to_string()))?;
        Ok(self.stream.send(Message::Text(text.into())).await?)
    }

    /// Closes the socket in good order. What still arrives is read: unread bytes would make the operating system reset the
    /// connection, and the server might lose the last acknowledgements.
    pub(crate) async fn close(&mut self) {
        let goodbye = async {
            let _ = self.stream.close(None).await;
            while let Some(Ok(_)) = self.stream.next().await {}
        };
        let _ = timeout(GOODBYE, goodbye).await;
    }
}

/// Whether reconnecting may help after an `error` frame.
pub(crate) fn ended_by(code: u32, message: String) -> Lost {
    match code {
        ERR_AUTH_FAILED => Lost::Rejected { code, message },
        _ if message.contains("Invalid token") => Lost::Rejected { code, message },
        ERR_SLOW_CONSUMER => Lost::Broken("slow consumer".to_owned()),
        _ => Lost::Broken(format!("Server error ({code}): {message}")),
    }
}
