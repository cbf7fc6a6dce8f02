//! Reading while the caller is busy with an event. The WebSocket library answers a ping only when the socket is read,
//! and events may precede the ping; so events are read ahead, in order and within bounds. Beyond the bounds the socket
//! is not read: the server's writes wait then, and after a while it ends the session because its reader is too slow.

use std::collections::VecDeque;
use std::convert::Infallible;

use futures::SinkExt;
use tokio::time::sleep;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use super::{Lost, SILENCE, Socket};

/// Upper bound on the texts read ahead: as many small events as four batches of the server have.
const TEXTS_MAX: usize = 256;
/// Upper bound on the bytes of texts read ahead. The text that crosses the bound is kept, so the memory used is
/// at most this and one event.
const BYTES_MAX: usize = 4 * 1024 * 1024;

/// The texts that were read ahead, oldest first.
#[derive(Default)]
pub(super) struct Ahead {
    texts: VecDeque<Utf8Bytes>,
    bytes: usize,
    /// The reason why the socket ended after them.
    lost: Option<Lost>,
}

impl Ahead {
    /// The oldest text; what ended the socket comes after all texts.
    pub(super) fn next(&mut self) -> Option<Result<Utf8Bytes, Lost>> {
        match self.texts.pop_front() {
            Some(text) => {
                self.bytes -= text.len();
                Some(Ok(text))
            }
            None => self.lost.take().map(Err),
        }
    }

    fn push(&mut self, read: Result<Utf8Bytes, Lost>) {
        match read {
            Ok(text) => {
                self.bytes += text.len();
                self.texts.push_back(text);
            }
            Err(lost) => self.lost = Some(lost),
        }
    }

    fn is_full(&self) -> bool {
        self.texts.len() >= TEXTS_MAX || self.bytes >= BYTES_MAX
    }
}

impl Socket {
    /// Reads what comes, and so answers pings, until the future is dropped. [`Socket::frame`] returns it later.
    pub(crate) async fn read_ahead(&mut self) -> Infallible {
        while self.ahead.lost.is_none() {
            if self.ahead.is_full() {
                // Pings are not read now, so none is answered: this tells the server that the client is alive.
                sleep(SILENCE).await;
                if let Err(error) = self.stream.send(Message::Ping(Vec::new().into())).await {
                    self.ahead.push(Err(error.into()));
                }
            } else {
                let read = self.text().await;
                self.ahead.push(read);
            }
        }
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn texts_come_back_in_their_order_and_the_end_after_them() {
        let mut ahead = Ahead::default();
        assert!(ahead.next().is_none());
        for text in ["a", "bc"] {
            ahead.push(Ok(text.into()));
        }
        ahead.push(Err(Lost::Broken("gone".to_owned())));
        assert_eq!(ahead.next().unwrap().unwrap(), "a");
        assert_eq!(ahead.next().unwrap().unwrap(), "bc");
        assert!(matches!(ahead.next(), Some(Err(Lost::Broken(reason))) if reason == "gone"));
        assert!(ahead.next().is_none() && ahead.bytes == 0);
    }

    #[test]
    fn it_is_bounded_in_number_and_in_bytes() {
        let mut ahead = Ahead::default();
        for _ in 0..TEXTS_MAX {
            assert!(!ahead.is_full());
            ahead.push(Ok("{}".into()));
        }
        assert!(ahead.is_full());
        ahead.next();
        assert!(!ahead.is_full());
        ahead.push(Ok("x".repeat(BYTES_MAX).into()));
        ahead.next();
        assert!(ahead.is_full(), "one large text fills it");
        while ahead.next().is_some() {}
        assert!(!ahead.is_full());
    }
}
