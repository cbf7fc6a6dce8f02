//! A WebSocket session that is opened again, on any of several nodes, whenever it ends.
//!
//! [`Session::next`] is a small state machine that the caller drives; no task runs in the background.
//!
//! ```text
//!            ┌── every node of this round failed ──┐
//!            ▼                                     │
//!   Pause ─► Waiting ─► Dial ─► Dialing ─► failed ─┴► Dial (next node, at once)
//!     ▲                            │
//!     └──────── lost ──────── Open ┘
//! ```
//!
//! The pause is 1, 2, 4 … 30 s, and 1 s again after each handshake. What was not acknowledged comes again after a
//! reconnect: a caller acknowledges an event when it has dealt with it, and may see the last ones twice. A caller whose
//! work on an event takes minutes races it with [`Session::attend`]; one that cannot deal with an event calls
//! [`Session::reopen`].

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use agentpost_proto::frame::ClientFrame;
use agentpost_proto::secret::Secret;
use tokio::time::{Instant, sleep, sleep_until};

use super::event::Event;
use crate::Error;
use crate::socket::{Frame, Lost, Socket, ended_by};

const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// [`Session::attend`] takes over when a caller is busy for longer. Servers wait for pongs for minutes.
const BUSY_AFTER: Duration = Duration::from_secs(5);

/// The subscription of a session.
#[derive(Debug, Clone)]
pub(super) struct Options {
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

/// An event of a session.
#[derive(Debug)]
pub enum Notice {
    /// A node is dialled.
    Connecting {
        /// Its WebSocket URL.
        url: String,
    },
    /// A node has accepted the session.
    Connected {
        /// The cursor that the session resumes from.
        last_seq: u64,
        /// The id that the server uses for this session.
        client_id: String,
    },
    /// An event arrived; acknowledge it with [`Session::ack`].
    Event(Event),
    /// The server has removed events that the cursor had still before it. The session goes on with the oldest event
    /// that is kept.
    CursorExpired {
        /// The position of that event.
        oldest_available_seq: u64,
    },
    /// The team can send nothing for now. What it receives still arrives.
    BillingBlock {
        /// The server's sentence.
        reason: String,
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
    /// No node accepted the session, or it was lost: the next attempt begins after a pause.
    Reconnecting {
        /// The pause.
        after: Duration,
    },
}

/// A session of a key: events of its scopes, and [`Notice`]s of what happens to the connection. It ends only when the
/// server rejects the key.
pub struct Session {
    options: Options,
    tls: Arc<rustls::ClientConfig>,
    state: State,
    node: usize,
    failed: usize,
    pause: Duration,
    handed: Handed,
}

/// The events that the caller got in this session.
#[derive(Debug, Default)]
struct Handed {
    newest: u64,
    /// The position of the oldest event that it has not acknowledged.
    unacked: Option<u64>,
    /// Whether it has acknowledged anything.
    acked: bool,
}

enum State {
    Dial,
    Dialing,
    Open(Box<Socket>),
    Pause,
    Waiting { until: Instant },
    Rejected { code: u32, message: String },
}

impl Session {
    /// A session that dials with the first [`Session::next`].
    pub(super) fn new(options: Options, tls: Arc<rustls::ClientConfig>) -> Self {
        Session {
            options,
            tls,
            state: State::Dial,
            node: 0,
            failed: 0,
            pause: PAUSE_MIN,
            handed: Handed::default(),
        }
    }

    /// The next event, or what happened to the connection. Dropping the future loses no event.
    ///
    /// # Errors
    /// [`Error::Session`] if the server does not accept the key, the team or the scopes. It is final.
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
                State::Open(socket) => match incoming(socket).await {
                    Ok(notice) => {
                        if let Notice::Event(event) = &notice {
                            self.handed.event(event.seq);
                        }
                        return Ok(notice);
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

    /// Acknowledges every event up to `seq`. If the session is not open, or breaks before the server has read it, the
    /// events come again; [`Session::next`] tells of it.
    pub async fn ack(&mut self, seq: u64) {
        // A failure shows in the next read.
        let _ = self.acknowledge(seq).await;
    }

    /// [`Session::ack`] that reports whether the frame was written.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the session is not open, or breaks.
    pub async fn acknowledge(&mut self, seq: u64) -> Result<(), Error> {
        let unavailable = |reason: String| Error::Unavailable { reason, answer: None };
        let State::Open(socket) = &mut self.state else {
            return Err(unavailable("the session is not open".to_owned()));
        };
        self.handed.ack(seq);
        socket.send(&ClientFrame::Ack { seq }).await.map_err(|lost| match lost {
            Lost::Rejected { message, .. } => unavailable(message),
            Lost::Broken(reason) => unavailable(reason),
        })
    }

    /// Keeps the session open while the caller works on an event for minutes: answers pings, and reads ahead, within
    /// bounds, what [`Session::next`] returns later. It never returns: race it with the work.
    ///
    /// For a client that never acknowledges, the server counts an answered ping as an acknowledgement. So this first
    /// acknowledges what came before the events in work.
    pub async fn attend(&mut self) -> Infallible {
        sleep(BUSY_AFTER).await;
        if let Some(seq) = self.handed.dealt_with() {
            self.ack(seq).await;
        }
        match &mut self.state {
            State::Open(socket) => socket.read_ahead().await,
            _ => std::future::pending().await,
        }
    }

    /// Ends the session and begins another one at the same node after `pause`, so that what was not acknowledged comes
    /// again.
    pub async fn reopen(&mut self, pause: Duration) {
        self.close().await;
        self.pause = pause;
    }

    /// Ends the session in good order. [`Session::next`] would begin another one.
    pub async fn close(&mut self) {
        if let State::Open(socket) = &mut self.state {
            socket.close().await;
            self.state = State::Pause;
        }
    }

    /// The WebSocket URL of the node that is dialled or connected.
    pub fn url(&self) -> &str {
        &self.options.urls[self.node]
    }

    async fn dial(&mut self) -> Result<Notice, Error> {
        let hello = ClientFrame::Connect {
            version: 1,
            token: self.options.token.clone(),
            team_id: self.options.team_id.clone(),
            scopes: self.options.scopes.clone(),
            client_id: self.options.client_id.clone(),
        };
        match Socket::open(self.url(), self.tls.clone(), &hello).await {
            Ok((socket, last_seq, client_id)) => {
                self.state = State::Open(Box::new(socket));
                self.failed = 0;
                self.pause = PAUSE_MIN;
                self.handed = Handed::default();
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

impl Handed {
    fn event(&mut self, seq: u64) {
        self.newest = seq;
        self.unacked = self.unacked.or(Some(seq));
    }

    fn ack(&mut self, seq: u64) {
        self.acked = true;
        if let Some(oldest) = self.unacked {
            self.unacked = (seq < self.newest).then(|| oldest.max(seq + 1));
        }
    }

    /// The position up to which everything is dealt with while events are in work. `None` if the caller has
    /// acknowledged something in this session, or has nothing in work.
    fn dealt_with(&self) -> Option<u64> {
        self.unacked.filter(|_| !self.acked)?.checked_sub(1)
    }
}

async fn incoming(socket: &mut Socket) -> Result<Notice, Lost> {
    loop {
        match socket.frame().await? {
            Frame::Event { seq, event } => {
                if let Some(event) = Event::new(seq, event) {
                    return Ok(Notice::Event(event));
                }
            }
            Frame::CursorExpired {
                oldest_available_seq, ..
            } => {
                return Ok(Notice::CursorExpired { oldest_available_seq });
            }
            Frame::BillingBlock { reason, .. } => return Ok(Notice::BillingBlock { reason }),
            Frame::Error { code, message } => return Err(ended_by(code, message)),
            Frame::Connected { .. } | Frame::QuotaSnapshot { .. } | Frame::Response { .. } | Frame::Other => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seqs_before_the_first_unacknowledged_event_are_dealt_with() {
        let mut handed = Handed::default();
        assert_eq!(handed.dealt_with(), None);
        handed.event(7);
        handed.event(9);
        assert_eq!(handed.dealt_with(), Some(6), "said once, before the caller's first");
        handed.ack(6);
        assert_eq!(handed.dealt_with(), None);

        let mut handed = Handed::default();
        handed.event(7);
        handed.ack(7);
        assert_eq!((handed.unacked, handed.dealt_with()), (None, None));
    }
}
