//! The socket: writes that notice a stalled reader, and goodbyes.

use std::pin::pin;
use std::time::Duration;

use agentpost_proto::frame::{
    ERR_AUTH_FAILED, ERR_INVALID_MESSAGE, ERR_QUOTA_BLOCKED, ERR_RATE_LIMITED, ERR_SLOW_CONSUMER, ServerFrame,
};
use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use futures::stream::{SplitSink, SplitStream};
use futures::{Sink, SinkExt as _, StreamExt as _};
use tokio::time::{sleep, timeout};

use super::frame;

/// How long a goodbye may take.
pub const GOODBYE: Duration = Duration::from_secs(2);
/// The same for a client that was too slow, in lengths of its longest write.
const SLOW_GOODBYE: u32 = 4;
/// Bytes of a close frame's reason.
const CLOSE_REASON_BYTES_MAX: usize = 120;

/// What a client sends, or none when it hung up.
pub type Received = Option<Result<Message, axum::Error>>;

/// Takes in what a client sends while something else is being written. Never waits.
pub trait Inbound {
    /// Whether one more frame fits. If not, the client is not read until it reads its answers.
    fn has_room(&self) -> bool;
    /// Takes one frame in.
    fn take(&mut self, received: Received) -> Result<(), End>;
    /// Takes one frame in that comes while the session is being closed.
    fn take_late(&mut self, message: Message);
    /// Goes on with what the client asked for: what that holds must not wait for a slow reader. Returns when
    /// there is something new to write. Cancel-safe.
    fn work(&mut self) -> impl Future<Output = ()> + Send;
}

/// Why a session ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The client left.
    Gone,
    /// This node stops, or cannot serve: go to another one.
    Elsewhere(&'static str),
    /// An error frame tells, then the socket is closed with `close`.
    Refused {
        /// Of the error frame.
        code: u32,
        /// Of the close frame.
        close: u16,
        /// For people.
        message: String,
    },
}

impl End {
    /// The one error that the vendor's clients take as final.
    pub fn auth(message: impl Into<String>) -> Self {
        Self::refused(ERR_AUTH_FAILED, message)
    }

    /// A frame or scope that cannot be read.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::refused(ERR_INVALID_MESSAGE, message)
    }

    /// The reader does not keep up. Reconnecting resumes without loss.
    pub fn slow(message: impl Into<String>) -> Self {
        Self::refused(ERR_SLOW_CONSUMER, message)
    }

    /// The team can send nothing more this month. Only for a session that began before it was so.
    pub fn quota(message: impl Into<String>) -> Self {
        Self::refused(ERR_QUOTA_BLOCKED, message)
    }

    /// Not now: no quorum, or no place. The vendor has no code for it; this one makes its clients come back
    /// with growing pauses, and 1013 ("try again later") says it to all others.
    pub fn busy(message: impl Into<String>) -> Self {
        End::Refused {
            code: ERR_RATE_LIMITED,
            close: close_code::AGAIN,
            message: message.into(),
        }
    }

    fn refused(code: u32, message: impl Into<String>) -> Self {
        // 4001-4005 lie in the range for private close codes: the same number says the same twice.
        End::Refused {
            code,
            close: code as u16,
            message: message.into(),
        }
    }
}

/// Both directions of a socket.
pub struct Link {
    sink: SplitSink<WebSocket, Message>,
    stream: SplitStream<WebSocket>,
    stalled_max: Duration,
}

impl Link {
    /// A write that waits for the reader longer than `stalled_max` ends the session.
    pub fn new(socket: WebSocket, stalled_max: Duration) -> Self {
        let (sink, stream) = socket.split();
        Link {
            sink,
            stream,
            stalled_max,
        }
    }

    /// What comes next. Cancel-safe.
    pub async fn receive(&mut self) -> Received {
        self.stream.next().await
    }

    /// Hands a message to the socket; [`Self::flush`] makes sure that it leaves.
    pub async fn feed(&mut self, message: Message, inbound: &mut impl Inbound) -> Result<(), End> {
        drive(self.sink.feed(message), &mut self.stream, inbound, self.stalled_max).await
    }

    /// Writes out what was fed.
    pub async fn flush(&mut self, inbound: &mut impl Inbound) -> Result<(), End> {
        drive(self.sink.flush(), &mut self.stream, inbound, self.stalled_max).await
    }

    /// Both.
    pub async fn send(&mut self, message: Message, inbound: &mut impl Inbound) -> Result<(), End> {
        drive(self.sink.send(message), &mut self.stream, inbound, self.stalled_max).await
    }

    /// Says why, closes, and waits for the client to hang up: closing a socket with unread input resets the
    /// connection, and a reset destroys what the client has not read yet. What a slow client still acks while
    /// it reads up to the goodbye counts.
    pub async fn close(mut self, end: End, inbound: Option<&mut impl Inbound>) {
        let (error, code, reason, grace) = match end {
            End::Gone => {
                // Answers the client's close frame if there was one.
                let _ = timeout(GOODBYE, self.sink.close()).await;
                return;
            }
            End::Elsewhere(reason) => (None, close_code::RESTART, reason.to_owned(), GOODBYE),
            End::Refused { code, close, message } => {
                // A slow reader gets its time: what is held for it is one event.
                let slow = code == ERR_SLOW_CONSUMER;
                let grace = if slow { self.stalled_max * SLOW_GOODBYE } else { GOODBYE };
                let error = ServerFrame::Error {
                    code,
                    message: message.clone(),
                };
                (Some(error), close, message, grace)
            }
        };
        let reason = reason[..reason.floor_char_boundary(CLOSE_REASON_BYTES_MAX)].to_owned();
        let Link {
            mut sink, mut stream, ..
        } = self;
        let say = async {
            if let Some(error) = error {
                sink.feed(Message::Text(frame::text(&error))).await?;
            }
            let close = CloseFrame {
                code,
                reason: reason.into(),
            };
            sink.send(Message::Close(Some(close))).await
        };
        let mut inbound = inbound.filter(|_| code != ERR_AUTH_FAILED as u16);
        let hear = async {
            while let Some(Ok(message)) = stream.next().await {
                if let Some(inbound) = &mut inbound {
                    inbound.take_late(message);
                }
            }
        };
        let _ = timeout(grace, futures::future::join(say, hear)).await;
    }
}

/// Completes a write while reading on: a client that waits for its own writes before it reads must not block
/// both sides for ever.
async fn drive(
    write: impl Future<Output = Result<(), <SplitSink<WebSocket, Message> as Sink<Message>>::Error>>,
    stream: &mut SplitStream<WebSocket>,
    inbound: &mut impl Inbound,
    stalled_max: Duration,
) -> Result<(), End> {
    let mut write = pin!(write);
    let mut stalled = pin!(sleep(stalled_max));
    loop {
        tokio::select! {
            biased;
            written = &mut write => return written.map_err(|_| End::Gone),
            received = stream.next(), if inbound.has_room() => inbound.take(received)?,
            () = inbound.work() => {}
            () = &mut stalled => {
                let message = format!("the reader took nothing for {} s", stalled_max.as_secs());
                return Err(End::slow(message));
            }
        }
    }
}
