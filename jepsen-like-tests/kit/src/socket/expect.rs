//! The socket of a test: each method panics when something else happens than it expects.
#![allow(clippy::unwrap_used)]

use std::panic::Location;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_tungstenite::tungstenite::Message;

use crate::eventually;

use super::{Connect, NARROW_BYTES, RawSocket};

/// Longer than any answer takes.
pub const SOON: Duration = Duration::from_secs(30);
/// How long [`Socket::silent`] listens.
const SILENCE: Duration = Duration::from_millis(300);

/// An open WebSocket with a log.
pub struct Socket {
    raw: RawSocket,
    /// All text frames so far.
    pub log: Vec<String>,
    ending: Ending,
}

/// How a session ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ending {
    /// The code of the error frame.
    pub error: Option<u64>,
    /// The code of the close frame.
    pub close: Option<u16>,
}

/// An error frame and a close frame with the same code.
pub fn refused(code: u16) -> Ending {
    Ending {
        error: Some(u64::from(code)),
        close: Some(code),
    }
}

impl Socket {
    /// Opens a socket and sends nothing. `url` is a node's `http://HOST:PORT`.
    pub async fn open(url: &str) -> Self {
        Self::try_open(url, None).await.unwrap()
    }

    /// Opens a socket with a small receive buffer.
    pub async fn open_narrow(url: &str) -> Self {
        Self::try_open(url, Some(NARROW_BYTES)).await.unwrap()
    }

    /// Opens a socket to a node that may be down.
    pub async fn try_open(url: &str, receive_buffer: Option<u32>) -> Result<Self> {
        Ok(Socket {
            raw: timeout(SOON, RawSocket::open(url, receive_buffer)).await??,
            log: Vec::new(),
            ending: Ending::default(),
        })
    }

    /// Opens a socket, connects, and reads `connected` and `quota_snapshot`. Returns the `last_seq` too.
    pub async fn connect(url: &str, connect: Connect<'_>) -> (Self, u64) {
        let mut socket = Self::open(url).await;
        let connected = socket.greet(connect).await;
        (socket, connected["last_seq"].as_u64().unwrap())
    }

    /// Connects on an open socket; returns `connected`.
    pub async fn greet(&mut self, connect: Connect<'_>) -> Value {
        self.say(&connect.frame()).await;
        let connected = self.frame().await;
        assert_eq!(connected["type"], "connected", "{connected}");
        let quota = self.frame().await;
        assert_eq!(quota["type"], "quota_snapshot", "{quota}");
        connected
    }

    /// Sends a frame.
    pub async fn say(&mut self, frame: &Value) {
        self.say_raw(Message::text(frame.to_string())).await;
    }

    /// Sends any message.
    pub async fn say_raw(&mut self, message: Message) {
        timeout(SOON, self.raw.send(message)).await.unwrap().unwrap();
    }

    /// Sends a message on a socket that may be closed. Reading tells whether it is.
    pub async fn try_say(&mut self, message: Message) {
        let _ = timeout(SOON, self.raw.send(message)).await;
    }

    /// Acknowledges everything up to `seq`.
    pub async fn ack(&mut self, seq: u64) {
        timeout(SOON, self.raw.ack(seq)).await.unwrap().unwrap();
    }

    /// Pings and waits for the pong. No frame may come first.
    pub async fn ping(&mut self) {
        self.say_raw(Message::Ping("are you there".into())).await;
        loop {
            match self.message().await.unwrap().unwrap() {
                Message::Pong(payload) => return assert_eq!(&payload[..], b"are you there"),
                Message::Ping(_) => {}
                other => panic!("instead of a pong: {other:?}"),
            }
        }
    }

    /// Proves that the node has read everything that was sent before. No frame may come first.
    pub async fn roundtrip(&mut self) {
        self.say(&json!({"type": "request", "id": "r", "method": "events.recent", "params": {"limit": 1}}))
            .await;
        let answer = self.frame().await;
        assert_eq!(answer["type"], "response", "{answer}");
    }

    /// Sends a request and waits for its response, past events, as the vendor's command line does. Returns `ok` and the
    /// payload.
    pub async fn ask(&mut self, method: &str, params: Value) -> (bool, Value) {
        let id = format!("ask {}", self.log.len());
        self.say(&json!({"type": "request", "id": id, "method": method, "params": params}))
            .await;
        loop {
            let frame = self.frame().await;
            if frame["type"] != "event" {
                let (expected, got) = ((&json!("response"), &json!(id)), (&frame["type"], &frame["id"]));
                assert_eq!(got, expected, "{frame}");
                return (frame["ok"].as_bool().unwrap(), frame["payload"].clone());
            }
        }
    }

    /// The payload of a request that must succeed.
    #[track_caller]
    pub fn answer(&mut self, method: &str, params: Value) -> impl Future<Output = Value> {
        let at = Location::caller();
        async move {
            let (ok, payload) = self.ask(method, params).await;
            assert!(ok, "{at}: {method}: {payload}");
            payload
        }
    }

    /// The error of a request that must fail.
    #[track_caller]
    pub fn refusal(&mut self, method: &str, params: Value) -> impl Future<Output = String> {
        let at = Location::caller();
        async move {
            let (ok, payload) = self.ask(method, params).await;
            assert!(!ok, "{at}: {method}: {payload}");
            assert_eq!(payload.as_object().unwrap().len(), 1, "{payload}");
            payload["error"].as_str().unwrap().to_owned()
        }
    }

    /// The next frame.
    pub async fn frame(&mut self) -> Value {
        self.frame_within(SOON).await.expect("a frame")
    }

    /// The next frame; `None` if none comes in this time.
    pub async fn frame_within(&mut self, within: Duration) -> Option<Value> {
        let deadline = Instant::now() + within;
        loop {
            match timeout_at(deadline, self.raw.message()).await {
                Err(_) => return None,
                Ok(Some(Ok(Message::Text(text)))) => {
                    self.log.push(text.to_string());
                    return Some(serde_json::from_str(&text).unwrap());
                }
                Ok(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => {}
                Ok(other) => panic!("instead of a frame: {other:?}"),
            }
        }
    }

    /// The seq and the body of the next frame, which must be an event.
    pub async fn event(&mut self) -> (u64, String) {
        let frame = self.frame().await;
        assert_eq!(frame["type"], "event", "{frame}");
        assert_eq!(frame["seq"], frame["event"]["kiteseq"]);
        let body = frame["event"]["data"]["body"].as_str().unwrap();
        (frame["seq"].as_u64().unwrap(), body.to_owned())
    }

    /// The bodies of the next events.
    pub async fn bodies(&mut self, count: usize) -> Vec<String> {
        let mut bodies = Vec::new();
        for _ in 0..count {
            bodies.push(self.event().await.1);
        }
        bodies
    }

    /// Asserts that no frame comes for a while. On a slow machine it may miss a frame, but it never fails without one.
    pub async fn silent(&mut self) {
        let frame = self.frame_within(SILENCE).await;
        assert_eq!(frame, None, "expected silence");
    }

    /// The next frame other than `error`; `None` when the socket is closed. [`Self::ended`] tells how it ended.
    pub async fn frame_or_ending(&mut self) -> Option<Value> {
        loop {
            match self.message().await {
                Some(Ok(Message::Text(text))) => {
                    self.log.push(text.to_string());
                    let frame: Value = serde_json::from_str(&text).unwrap();
                    if frame["type"] != "error" {
                        return Some(frame);
                    }
                    assert!(frame["message"].as_str().is_some_and(|m| !m.is_empty()));
                    self.ending.error = frame["code"].as_u64();
                }
                Some(Ok(Message::Close(frame))) => self.ending.close = frame.map(|f| f.code.into()),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return None,
            }
        }
    }

    /// Waits, without reading anything, until unread bytes contain `text`.
    pub async fn arrived(&self, text: &str) {
        eventually(format!("unread bytes with {text:?}"), async || {
            let bytes = self.raw.peek().await.unwrap();
            String::from_utf8_lossy(&bytes).contains(text).then_some(())
        })
        .await;
    }

    async fn message(&mut self) -> Option<Result<Message>> {
        timeout(SOON, self.raw.message()).await.expect("a message in time")
    }

    /// How the session ended, as far as it was read.
    pub fn ended(&self) -> Ending {
        self.ending.clone()
    }

    /// Reads to the end, past events.
    pub async fn ending(&mut self) -> Ending {
        while self.frame_or_ending().await.is_some() {}
        self.ended()
    }

    /// Closes the connection without a close frame.
    pub fn cut(self) {
        drop(self.raw);
    }
}
