//! The socket of a session: writes that detect a stalled reader, and the closing handshake.

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

/// Time limit for closing a socket.
pub const GOODBYE: Duration = Duration::from_secs(2);
/// Time limit for closing the socket of a client that was too slow, in multiples of its write timeout.
const SLOW_GOODBYE: u32 = 4;
/// The most bytes that the reason of a close frame may have.
const CLOSE_REASON_BYTES_MAX: usize = 120;

/// A frame of the client; `None` once the client has closed the connection.
pub type Received = Option<Result<Message, axum::Error>>;

/// Receives the client's frames while something else is being written. Never waits.
pub trait Inbound {
    /// Whether one more frame fits. If not, no more is read from the client until it has read its answers.
    fn has_room(&self) -> bool;
    /// Handles one frame.
    fn take(&mut self, received: Received) -> Result<(), End>;
    /// Handles one frame that arrives while the session is being closed.
    fn take_late(&mut self, message: Message);
    /// Advances the client's current request, so that a request which holds a resource does not wait for a slow reader.
    /// Returns when there is something new to write. Cancel-safe.
    fn work(&mut self) -> impl Future<Output = ()> + Send;
}

/// Why a session ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The client closed the connection.
    Gone,
    /// This node stops or cannot serve; the client should use another node.
    Elsewhere(&'static str),
    /// An error frame is sent, then the socket is closed with `close`.
    Refused {
        /// The code of the error frame.
        code: u32,
        /// The code of the close frame.
        close: u16,
        /// The text for people, in both frames.
        message: String,
    },
}

impl End {
    /// The key is not valid. The vendor's clients treat only this error as final.
    pub fn auth(message: impl Into<String>) -> Self {
        Self::refused(ERR_AUTH_FAILED, message)
    }

    /// A frame or a scope is malformed.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::refused(ERR_INVALID_MESSAGE, message)
    }

    /// The client reads too slowly. It can reconnect and resume without loss.
    pub fn slow(message: impl Into<String>) -> Self {
        Self::refused(ERR_SLOW_CONSUMER, message)
    }

    /// The team became blocked for the rest of the month after this session had begun.
    pub fn quota(message: impl Into<String>) -> Self {
        Self::refused(ERR_QUOTA_BLOCKED, message)
    }

    /// There is no quorum or no free place now. The vendor has no code for that. The error code 4003 makes its clients
    /// reconnect with growing pauses, and the close code 1013 ("try again later") tells the same to all other clients.
    pub fn busy(message: impl Into<String>) -> Self {
        End::Refused {
            code: ERR_RATE_LIMITED,
            close: close_code::AGAIN,
            message: message.into(),
        }
    }

    fn refused(code: u32, message: impl Into<String>) -> Self {
        // 4001-4005 lie in the range of private close codes, so error code and close code can be the same number.
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
    /// The longest time that a write may wait for the reader before the session ends.
    pub fn new(socket: WebSocket, stalled_max: Duration) -> Self {
        let (sink, stream) = socket.split();
        Link {
            sink,
            stream,
            stalled_max,
        }
    }

    /// The next frame of the client. Cancel-safe.
    pub async fn receive(&mut self) -> Received {
        self.stream.next().await
    }

    /// Buffers a message; [`Self::flush`] sends it.
    pub async fn feed(&mut self, message: Message, inbound: &mut impl Inbound) -> Result<(), End> {
        drive(self.sink.feed(message), &mut self.stream, inbound, self.stalled_max).await
    }

    /// Sends all buffered messages.
    pub async fn flush(&mut self, inbound: &mut impl Inbound) -> Result<(), End> {
        drive(self.sink.flush(), &mut self.stream, inbound, self.stalled_max).await
    }

    /// Buffers a message and sends it.
    pub async fn send(&mut self, message: Message, inbound: &mut impl Inbound) -> Result<(), End> {
        drive(self.sink.send(message), &mut self.stream, inbound, self.stalled_max).await
    }

    /// Sends the reason, closes, and waits for the client to close its side: closing a socket with unread input resets
    /// the connection, and a reset destroys data that the client has not read yet. Acks that a slow client sends in the
    /// meantime still count.
    pub async fn close(mut self, end: End, inbound: Option<&mut impl Inbound>) {
        let (error, code, reason, grace) = match end {
            End::Gone => {
                // This answers the client's close frame, if it sent one.
                let _ = timeout(GOODBYE, self.sink.close()).await;
                return;
            }
            End::Elsewhere(reason) => (None, close_code::RESTART, reason.to_owned(), GOODBYE),
            End::Refused { code, close, message } => {
                // A slow reader gets more time; it costs the memory of one event only.
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

/// Completes a write while it continues to read. Otherwise a client that reads only after its own writes complete would
/// block both sides for ever.
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
