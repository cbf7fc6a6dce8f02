//! A WebSocket client for tests: speaks the vendor's frames, never acks by itself.
#![allow(dead_code, clippy::unwrap_used)]

use std::time::Duration;

use agentpost_node::server::{http, ws};
use futures::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::common::NodeHandles;

/// How long anything may take.
pub const SOON: Duration = Duration::from_secs(30);

/// What a client asks for.
#[derive(Clone)]
pub struct Connect<'a> {
    pub key: &'a str,
    pub team: &'a str,
    pub scopes: &'a [&'a str],
    pub client_id: Option<&'a str>,
}

pub struct Socket {
    stream: WebSocketStream<TcpStream>,
    /// Every text frame as it came.
    pub log: Vec<String>,
    ending: Ending,
}

/// How a session ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ending {
    /// Of the error frame.
    pub error: Option<u64>,
    /// Of the close frame.
    pub close: Option<u16>,
}

impl Socket {
    /// Opens a socket and says nothing. `url` is a node's `http://host:port`.
    pub async fn open(url: &str) -> Self {
        Self::try_open(url, None).await.unwrap()
    }

    /// The same with a small receive buffer.
    pub async fn open_narrow(url: &str) -> Self {
        Self::try_open(url, Some(16 * 1024)).await.unwrap()
    }

    pub async fn try_open(url: &str, receive_buffer: Option<u32>) -> Result<Self, String> {
        let address = url.trim_start_matches("http://").trim_end_matches('/');
        let socket = TcpSocket::new_v4().unwrap();
        if let Some(bytes) = receive_buffer {
            socket.set_recv_buffer_size(bytes).unwrap();
        }
        let stream = socket
            .connect(address.parse().unwrap())
            .await
            .map_err(|e| e.to_string())?;
        stream.set_nodelay(true).unwrap();
        let request = format!("ws://{address}/ws");
        let (stream, _) = timeout(SOON, tokio_tungstenite::client_async(request, stream))
            .await
            .map_err(|e| e.to_string())?
            .map_err(|e| e.to_string())?;
        Ok(Socket {
            stream,
            log: Vec::new(),
            ending: Ending::default(),
        })
    }

    /// Opens, connects, and reads `connected` and `quota_snapshot`. Returns `last_seq` too.
    pub async fn connect(url: &str, connect: Connect<'_>) -> (Self, u64) {
        let mut socket = Self::open(url).await;
        let connected = socket.greet(connect).await;
        (socket, connected["last_seq"].as_u64().unwrap())
    }

    /// Connects on an open socket; returns `connected`.
    pub async fn greet(&mut self, connect: Connect<'_>) -> Value {
        self.say(&connect_frame(&connect)).await;
        let connected = self.frame().await;
        assert_eq!(connected["type"], "connected", "{connected}");
        let quota = self.frame().await;
        assert_eq!(quota["type"], "quota_snapshot", "{quota}");
        connected
    }

    pub async fn say(&mut self, frame: &Value) {
        self.say_raw(Message::text(frame.to_string())).await;
    }

    pub async fn say_raw(&mut self, message: Message) {
        timeout(SOON, self.stream.send(message)).await.unwrap().unwrap();
    }

    /// The same on a socket that may be gone; then reading tells.
    pub async fn try_say(&mut self, message: Message) {
        let _ = timeout(SOON, self.stream.send(message)).await;
    }

    pub async fn ack(&mut self, seq: u64) {
        self.say(&json!({"type": "ack", "seq": seq})).await;
    }

    /// Pings, and waits for the pong.
    pub async fn ping(&mut self) {
        self.say_raw(Message::Ping("are you there".into())).await;
        loop {
            match timeout(SOON, self.stream.next()).await.unwrap().unwrap().unwrap() {
                Message::Pong(payload) => return assert_eq!(&payload[..], b"are you there"),
                Message::Ping(_) => {}
                other => panic!("instead of a pong: {other:?}"),
            }
        }
    }

    /// Proves that the node has read everything that was said before.
    pub async fn roundtrip(&mut self) {
        self.say(&json!({"type": "request", "id": "r", "method": "events.recent", "params": {"limit": 1}}))
            .await;
        let answer = self.frame().await;
        assert_eq!(answer["type"], "response", "{answer}");
    }

    /// Asks, as the vendor's command line does: waits for the answer and skips events. Returns `ok` and the payload.
    pub async fn ask(&mut self, method: &str, params: Value) -> (bool, Value) {
        let id = format!("ask {}", self.log.len());
        self.say(&json!({"type": "request", "id": id, "method": method, "params": params}))
            .await;
        loop {
            let frame = self.frame().await;
            if frame["type"] != "event" {
                assert_eq!(
                    (&frame["type"], &frame["id"]),
                    (&json!("response"), &json!(id)),
                    "{frame}"
                );
                return (frame["ok"].as_bool().unwrap(), frame["payload"].clone());
            }
        }
    }

    /// The payload of what is not refused.
    #[track_caller]
    pub fn answer(&mut self, method: &str, params: Value) -> impl Future<Output = Value> {
        let at = std::panic::Location::caller();
        let method = method.to_owned();
        async move {
            let (ok, payload) = self.ask(&method, params).await;
            assert!(ok, "{at}: {method}: {payload}");
            payload
        }
    }

    /// The error of what is refused.
    #[track_caller]
    pub fn refusal(&mut self, method: &str, params: Value) -> impl Future<Output = String> {
        let at = std::panic::Location::caller();
        let method = method.to_owned();
        async move {
            let (ok, payload) = self.ask(&method, params).await;
            assert!(!ok, "{at}: {method}: {payload}");
            assert_eq!(payload.as_object().unwrap().len(), 1, "{payload}");
            payload["error"].as_str().unwrap().to_owned()
        }
    }

    /// The next frame.
    pub async fn frame(&mut self) -> Value {
        self.frame_within(SOON).await.expect("a frame")
    }

    /// The next frame, if one comes. Pings are answered beneath.
    pub async fn frame_within(&mut self, within: Duration) -> Option<Value> {
        let deadline = Instant::now() + within;
        loop {
            match timeout_at(deadline, self.stream.next()).await {
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

    /// The next frame, which has to be an event: its seq and body.
    pub async fn event(&mut self) -> (u64, String) {
        let frame = self.frame().await;
        assert_eq!(frame["type"], "event", "{frame}");
        assert_eq!(frame["seq"], frame["event"]["kiteseq"]);
        (
            frame["seq"].as_u64().unwrap(),
            frame["event"]["data"]["body"].as_str().unwrap().to_owned(),
        )
    }

    /// The bodies of the next events.
    pub async fn bodies(&mut self, count: usize) -> Vec<String> {
        let mut bodies = Vec::new();
        for _ in 0..count {
            bodies.push(self.event().await.1);
        }
        bodies
    }

    /// Asserts that nothing comes for a while.
    pub async fn silent(&mut self) {
        let frame = self.frame_within(Duration::from_millis(300)).await;
        assert_eq!(frame, None, "expected silence");
    }

    /// The next frame that is not an error, or none when the socket has closed; [`Self::ended`] tells how.
    pub async fn frame_or_ending(&mut self) -> Option<Value> {
        loop {
            match timeout(SOON, self.stream.next()).await.expect("something happens") {
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

    /// How it ended.
    pub fn ended(&self) -> Ending {
        self.ending.clone()
    }

    /// Reads to the end, past events.
    pub async fn ending(&mut self) -> Ending {
        while self.frame_or_ending().await.is_some() {}
        self.ended()
    }

    /// Breaks the connection without a word.
    pub fn cut(self) {
        drop(self.stream);
    }
}

pub fn connect_frame(connect: &Connect<'_>) -> Value {
    json!({
        "type": "connect", "version": 1, "token": connect.key, "team_id": connect.team,
        "scopes": connect.scopes, "client_id": connect.client_id,
    })
}

/// An error frame and a close frame with the same code.
pub fn refused(code: u16) -> Ending {
    Ending {
        error: Some(u64::from(code)),
        close: Some(code),
    }
}

/// Serves `/ws` of a node once more, with other times.
pub async fn serve_with(services: NodeHandles, options: ws::ws_state::SessionOptions) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (shutdown, tasks) = (services.lifetime.shutdown.clone(), services.lifetime.tasks.clone());
    let router = ws::route::route_with(services.services.clone(), services.ws(), options);
    tokio::spawn(http::serve::serve(listener, router, shutdown, tasks));
    url
}
