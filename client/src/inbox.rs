//! Mail as it arrives: a WebSocket session that is opened again, on any of several nodes, whenever it ends.
//!
//! [`Inbox::next`] is a small state machine that the caller drives; nothing runs behind its back.
//!
//! ```text
//!            ┌── every node of this round failed ──┐
//!            ▼                                     │
//!   Pause ─► Waiting ─► Dial ─► Dialing ─► failed ─┴► Dial (next node, at once)
//!     ▲                            │
//!     └──────── lost ──────── Open ┘
//! ```
//!
//! The wait is 1, 2, 4 … 30 s and starts again at 1 s after each handshake. What was not acknowledged comes again after
//! a reconnect: a caller acknowledges when it has dealt with an event, and may see the last ones twice.

use std::sync::Arc;
use std::time::Duration;

use agentpost_proto::frame::{ClientFrame, ERR_AUTH_FAILED, ERR_SLOW_CONSUMER};
use agentpost_proto::secret::Secret;
use futures::{SinkExt, StreamExt};
use serde::Deserialize;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{Connector, MaybeTlsStream, WebSocketStream};

use crate::event::Event;
use crate::{Error, tls};

const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// TCP, TLS and the upgrade, and once more the handshake frames.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// A session that is silent for so long is asked for a sign of life …
const SILENCE: Duration = Duration::from_secs(20);
/// … and given up when none comes in this time: a node that lost power closes nothing.
const SIGN_OF_LIFE: Duration = Duration::from_secs(20);

/// What to listen to.
#[derive(Debug, Clone)]
pub struct Options {
    /// WebSocket URLs, the first dialled first; not empty.
    pub urls: Vec<String>,
    /// The API key.
    pub token: Secret,
    /// The key's team.
    pub team_id: String,
    /// `*`, `source:…`, `type:…` or `agent_to:…`; any of them lets an event pass.
    pub scopes: Vec<String>,
    /// Names a cursor. Without one, a single `agent_to` scope resumes from that agent's mailbox.
    pub client_id: Option<String>,
}

/// What happened.
#[derive(Debug)]
pub enum Notice {
    /// A node is dialled.
    Connecting {
        /// Its WebSocket URL.
        url: String,
    },
    /// The handshake succeeded.
    Connected {
        /// The cursor that the session resumes from.
        last_seq: u64,
        /// The id that the server uses for this session.
        client_id: String,
    },
    /// An event arrived; acknowledge it with [`Inbox::ack`].
    Event(Event),
    /// The cursor points below what the server keeps; the session goes on with the oldest kept event.
    CursorExpired {
        /// The oldest one kept.
        oldest_available_seq: u64,
    },
    /// The session ended.
    Disconnected {
        /// Why.
        reason: String,
    },
    /// A node could not be dialled, or refused the handshake.
    ConnectionFailed {
        /// Why.
        reason: String,
    },
    /// The next attempt begins after a pause.
    Reconnecting {
        /// The pause.
        after: Duration,
    },
}

/// A stream of [`Notice`]s that ends only when the server rejects the key.
pub struct Inbox {
    options: Options,
    tls: Arc<rustls::ClientConfig>,
    state: State,
    node: usize,
    failed: usize,
    pause: Duration,
}

enum State {
    Dial,
    Dialing,
    Open(Box<Session>),
    Pause,
    Waiting { until: Instant },
    Rejected { code: u32, message: String },
}

impl Inbox {
    /// A stream that dials with the first [`Inbox::next`].
    pub fn new(options: Options) -> Result<Self, Error> {
        if options.urls.is_empty() {
            return Err(Error::Invalid("no server URL given".to_owned()));
        }
        let tls = Arc::new(tls::config_for(&options.urls)?);
        Ok(Inbox {
            options,
            tls,
            state: State::Dial,
            node: 0,
            failed: 0,
            pause: PAUSE_MIN,
        })
    }

    /// The next thing that happens. Dropping the future loses no event.
    pub async fn next(&mut self) -> Result<Notice, Error> {
        loop {
            match &mut self.state {
                State::Dial => {
                    self.state = State::Dialing;
                    return Ok(Notice::Connecting {
                        url: self.url().to_owned(),
                    });
                }
                State::Dialing => return self.dial().await,
                State::Open(session) => match session.next().await {
                    Ok(Incoming::Event(event)) => return Ok(Notice::Event(event)),
                    Ok(Incoming::CursorExpired(seq)) => {
                        return Ok(Notice::CursorExpired {
                            oldest_available_seq: seq,
                        });
                    }
                    Err(Lost::Rejected { code, message }) => self.state = State::Rejected { code, message },
                    Err(Lost::Broken(reason)) => {
                        self.state = State::Pause;
                        self.node = (self.node + 1) % self.options.urls.len();
                        return Ok(Notice::Disconnected { reason });
                    }
                },
                State::Pause => {
                    let after = self.pause;
                    self.pause = (after * 2).min(PAUSE_MAX);
                    self.state = State::Waiting {
                        until: Instant::now() + after,
                    };
                    return Ok(Notice::Reconnecting { after });
                }
                State::Waiting { until } => {
                    sleep_until(*until).await;
                    self.state = State::Dial;
                }
                State::Rejected { code, message } => {
                    return Err(Error::Session {
                        code: *code,
                        message: message.clone(),
                    });
                }
            }
        }
    }

    /// Acknowledges every event up to `seq`. A session that breaks before the server knows delivers them again.
    pub async fn ack(&mut self, seq: u64) {
        if let State::Open(session) = &mut self.state {
            // A failure shows in the next read.
            let _ = session.send(&ClientFrame::Ack { seq }).await;
        }
    }

    /// The node that is dialled or connected.
    pub fn url(&self) -> &str {
        &self.options.urls[self.node]
    }

    async fn dial(&mut self) -> Result<Notice, Error> {
        match Session::open(self.url(), self.tls.clone(), &self.options).await {
            Ok((session, last_seq, client_id)) => {
                self.state = State::Open(Box::new(session));
                self.failed = 0;
                self.pause = PAUSE_MIN;
                Ok(Notice::Connected { last_seq, client_id })
            }
            Err(Lost::Rejected { code, message }) => {
                let reason = format!("Server error ({code}): {message}");
                self.state = State::Rejected { code, message };
                Ok(Notice::ConnectionFailed { reason })
            }
            Err(Lost::Broken(reason)) => {
                self.failed += 1;
                self.node = (self.node + 1) % self.options.urls.len();
                let round_over = self.failed.is_multiple_of(self.options.urls.len());
                self.state = if round_over { State::Pause } else { State::Dial };
                Ok(Notice::ConnectionFailed { reason })
            }
        }
    }
}

/// One open socket.
struct Session {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    heard_at: Instant,
    asked_at: Option<Instant>,
}

enum Incoming {
    Event(Event),
    CursorExpired(u64),
}

/// Why there is no session any more.
enum Lost {
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

/// The server's frames, read more loosely than the server writes them: an event stays JSON, what is unknown is skipped.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Frame {
    Connected {
        last_seq: u64,
        client_id: String,
    },
    Event {
        seq: u64,
        event: Value,
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

impl Session {
    async fn open(
        url: &str,
        tls: Arc<rustls::ClientConfig>,
        options: &Options,
    ) -> Result<(Session, u64, String), Lost> {
        let late = |_| Lost::Broken(format!("no answer within {} s", DIAL_TIMEOUT.as_secs()));
        let connector = Some(Connector::Rustls(tls));
        let dial = tokio_tungstenite::connect_async_tls_with_config(url, None, true, connector);
        let (socket, _) = timeout(DIAL_TIMEOUT, Box::pin(dial)).await.map_err(late)??;
        let mut session = Session {
            socket,
            heard_at: Instant::now(),
            asked_at: None,
        };
        let hello = ClientFrame::Connect {
            version: 1,
            token: options.token.clone(),
            team_id: options.team_id.clone(),
            scopes: options.scopes.clone(),
            client_id: options.client_id.clone(),
        };
        session.send(&hello).await?;
        let (last_seq, client_id) = timeout(DIAL_TIMEOUT, session.greeted()).await.map_err(late)??;
        Ok((session, last_seq, client_id))
    }

    async fn greeted(&mut self) -> Result<(u64, String), Lost> {
        loop {
            match self.frame().await? {
                Frame::Connected { last_seq, client_id } => return Ok((last_seq, client_id)),
                Frame::Error { code, message } => return Err(ended_by(code, message)),
                Frame::Event { .. } | Frame::CursorExpired { .. } | Frame::Other => {}
            }
        }
    }

    async fn next(&mut self) -> Result<Incoming, Lost> {
        loop {
            match self.frame().await? {
                Frame::Event { seq, event } => {
                    if let Some(event) = Event::new(seq, event) {
                        return Ok(Incoming::Event(event));
                    }
                }
                Frame::CursorExpired { oldest_available_seq } => {
                    return Ok(Incoming::CursorExpired(oldest_available_seq));
                }
                Frame::Error { code, message } => return Err(ended_by(code, message)),
                Frame::Connected { .. } | Frame::Other => {}
            }
        }
    }

    /// The next frame that can be read.
    async fn frame(&mut self) -> Result<Frame, Lost> {
        loop {
            match self.message().await? {
                Message::Text(text) => {
                    if let Ok(frame) = serde_json::from_str(&text) {
                        return Ok(frame);
                    }
                }
                Message::Close(_) => return Err(Lost::Broken("the server closed the connection".to_owned())),
                // The library answers pings by itself.
                Message::Ping(_) | Message::Pong(_) | Message::Binary(_) | Message::Frame(_) => {}
            }
        }
    }

    /// The next message, watching over silence. What has arrived is read first: a caller who was busy for long must not
    /// take its own absence for the server's.
    async fn message(&mut self) -> Result<Message, Lost> {
        loop {
            let patience = match self.asked_at {
                Some(asked_at) => asked_at + SIGN_OF_LIFE,
                None => self.heard_at + SILENCE,
            };
            tokio::select! {
                biased;
                message = self.socket.next() => {
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
                    self.socket.send(Message::Ping(Vec::new().into())).await?;
                }
            }
        }
    }

    async fn send(&mut self, frame: &ClientFrame) -> Result<(), Lost> {
        let text = serde_json::to_string(frame).map_err(|e| Lost::Broken(e.to_string()))?;
        Ok(self.socket.send(Message::Text(text.into())).await?)
    }
}

fn ended_by(code: u32, message: String) -> Lost {
    match code {
        ERR_AUTH_FAILED => Lost::Rejected { code, message },
        _ if message.contains("Invalid token") => Lost::Rejected { code, message },
        ERR_SLOW_CONSUMER => Lost::Broken("slow consumer".to_owned()),
        _ => Lost::Broken(format!("Server error ({code}): {message}")),
    }
}
