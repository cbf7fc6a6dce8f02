//! A server that plays a script, for tests of clients. It answers HTTP requests with prepared answers, plays WebSocket
//! sessions step by step, and records every request.
//!
//! A step that fails does so in the client: the server sends the error frame of a rejected key, whose text says what was
//! expected. The client then ends with that text, and the test sees it.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::State;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::PATIENCE;

/// A request that the server received.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The method.
    pub method: Method,
    /// Path and query.
    pub path: String,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: String,
}

impl Seen {
    /// The text of a header; empty without the header.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("text"))
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect("a JSON body")
    }
}

/// A step of a WebSocket session. It begins when the server has received the `connect` frame.
#[derive(Debug, Clone)]
pub enum Step {
    /// Waits for a request and records it for [`ScriptedServer::requests`].
    Ask,
    /// Answers the last request with `ok` and the payload.
    Answer(bool, Value),
    /// Sends a frame.
    Say(String),
    /// Waits for this frame.
    Hear(Value),
    /// Drops the connection without a close frame.
    Hang,
    /// Pings a client that is busy with its first event, and waits for the pong. The client must acknowledge before it
    /// answers; the acknowledgement is kept for the next step.
    Ping,
    /// Waits for acknowledgements up to this sequence number.
    Acked(u64),
    /// Waits until the client closes the connection without another frame.
    Gone,
    /// Waits until this file exists.
    Await(PathBuf),
    /// Creates this file.
    Touch(PathBuf),
}

#[derive(Default)]
struct Script {
    answers: VecDeque<(u16, String)>,
    sessions: VecDeque<Vec<Step>>,
    seen: Vec<Seen>,
    hellos: Vec<Value>,
    requests: Vec<Value>,
}

type Shared = Arc<Mutex<Script>>;

/// A running server on a free port of loopback. Clones share the script.
#[derive(Clone)]
pub struct ScriptedServer {
    /// The HTTP base URL.
    pub base: String,
    script: Shared,
}

impl ScriptedServer {
    /// Starts a server without a script.
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let base = format!("http://{}", listener.local_addr().expect("an address"));
        let script = Shared::default();
        let app = axum::Router::new()
            .route("/ws", axum::routing::get(upgrade))
            .fallback(answer)
            .with_state(script.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        ScriptedServer { base, script }
    }

    /// The WebSocket URL.
    pub fn ws_url(&self) -> String {
        format!("{}/ws", self.base.replacen("http", "ws", 1))
    }

    /// Adds the answer to the next HTTP request. A request without a prepared answer gets a 500.
    pub fn answer(&self, status: u16, body: impl Into<String>) -> &Self {
        lock(&self.script).answers.push_back((status, body.into()));
        self
    }

    /// Adds the next WebSocket session.
    pub fn session(&self, steps: Vec<Step>) -> &Self {
        lock(&self.script).sessions.push_back(steps);
        self
    }

    /// Adds a session that greets the client, takes one request and answers it.
    pub fn session_that_answers(&self, ok: bool, payload: Value) -> &Self {
        self.session(vec![greeting(), Step::Ask, Step::Answer(ok, payload)])
    }

    /// The HTTP requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.script).seen.clone()
    }

    /// Method and parameters of the WebSocket requests so far.
    pub fn requests(&self) -> Vec<(String, Value)> {
        let method = |frame: &Value| frame["method"].as_str().unwrap_or_default().to_owned();
        let requests = &lock(&self.script).requests;
        requests
            .iter()
            .map(|frame| (method(frame), frame["params"].clone()))
            .collect()
    }

    /// The `connect` frames so far.
    pub fn hellos(&self) -> Vec<Value> {
        lock(&self.script).hellos.clone()
    }
}

/// The frame that accepts a session.
pub fn greeting() -> Step {
    Step::Say(json!({"type": "connected", "last_seq": 0, "client_id": "c"}).to_string())
}

/// Waits until a file exists.
pub async fn exists(path: &Path) {
    // Not `eventually`: sessions run on other threads, and its futures cannot be sent there.
    let wait = async {
        while !path.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, wait).await;
    waited.unwrap_or_else(|_| panic!("{} does not exist after {PATIENCE:?}", path.display()));
}

fn lock(script: &Shared) -> MutexGuard<'_, Script> {
    script.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn answer(State(script): State<Shared>, method: Method, uri: Uri, headers: HeaderMap, body: String) -> Response {
    let mut script = lock(&script);
    let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    script.seen.push(Seen {
        method,
        path,
        headers,
        body,
    });
    let (status, body) = script.answers.pop_front().unwrap_or((500, "no script".to_owned()));
    (StatusCode::from_u16(status).expect("an HTTP status"), body).into_response()
}

async fn upgrade(State(script): State<Shared>, upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(move |socket| play(socket, script))
}

async fn play(socket: WebSocket, script: Shared) {
    let mut session = Session {
        socket,
        script,
        kept: VecDeque::new(),
    };
    let Some(hello) = session.next_json().await else {
        return;
    };
    let steps = {
        let mut script = lock(&session.script);
        script.hellos.push(hello);
        script.sessions.pop_front().unwrap_or_default()
    };
    for step in steps {
        match session.step(step).await {
            Ok(true) => {}
            Ok(false) => return,
            Err(fault) => return session.accuse(fault).await,
        }
    }
    let _ = session.socket.send(Message::Close(None)).await;
}

/// A session that is being played.
struct Session {
    socket: WebSocket,
    script: Shared,
    /// Messages that arrived while a step waited for another one.
    kept: VecDeque<Message>,
}

impl Session {
    /// Plays a step. False if the session ends here.
    async fn step(&mut self, step: Step) -> Result<bool, String> {
        match step {
            Step::Ask => match self.next_json().await {
                Some(request) => lock(&self.script).requests.push(request),
                None => return Ok(false),
            },
            Step::Answer(ok, payload) => {
                let id = lock(&self.script).requests.last().map(|frame| frame["id"].clone());
                let response = json!({"type": "response", "id": id, "ok": ok, "payload": payload});
                return Ok(self.say(response.to_string()).await);
            }
            Step::Say(text) => return Ok(self.say(text).await),
            Step::Hear(expected) => {
                let heard = self.next_json().await;
                if heard.as_ref() != Some(&expected) {
                    return Err(format!("expected {expected}, not {heard:?}"));
                }
            }
            Step::Hang => return Ok(false),
            Step::Ping => self.ping().await?,
            Step::Acked(seq) => self.acked(seq).await?,
            Step::Gone => self.gone().await?,
            Step::Await(path) => exists(&path).await,
            Step::Touch(path) => std::fs::write(&path, "").map_err(|e| e.to_string())?,
        }
        Ok(true)
    }

    /// Tells the client of a fault; if it has left, the next session begins with it.
    async fn accuse(&mut self, fault: String) {
        let frame = json!({"type": "error", "code": 4001, "message": format!("the test's server: {fault}")});
        let frame = frame.to_string();
        lock(&self.script).sessions.push_front(vec![Step::Say(frame.clone())]);
        let _ = self.socket.send(Message::Text(frame.into())).await;
    }

    /// Sends a frame. False if the client has left.
    async fn say(&mut self, text: String) -> bool {
        self.socket.send(Message::Text(text.into())).await.is_ok()
    }

    async fn next(&mut self) -> Option<Message> {
        match self.kept.pop_front() {
            Some(message) => Some(message),
            None => self.socket.recv().await?.ok(),
        }
    }

    async fn next_json(&mut self) -> Option<Value> {
        while let Some(message) = self.next().await {
            if let Message::Text(text) = message {
                return Some(serde_json::from_str(&text).unwrap_or_else(|_| Value::String(text.to_string())));
            }
        }
        None
    }

    async fn ping(&mut self) -> Result<(), String> {
        let payload = "are you there?";
        let sent = self.socket.send(Message::Ping(payload.into())).await;
        sent.map_err(|e| e.to_string())?;
        loop {
            match self.socket.recv().await {
                Some(Ok(Message::Pong(answer))) if answer == payload => {
                    let acked = self.kept.iter().any(|message| matches!(message, Message::Text(_)));
                    return acked.then_some(()).ok_or("a pong before any ack".to_owned());
                }
                Some(Ok(message)) => self.kept.push_back(message),
                end => return Err(format!("no pong but {end:?}")),
            }
        }
    }

    async fn acked(&mut self, wanted: u64) -> Result<(), String> {
        loop {
            match self.next().await {
                Some(Message::Text(text)) => {
                    let frame: Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
                    match frame["seq"].as_u64().filter(|_| frame["type"] == "ack") {
                        Some(seq) if seq < wanted => {}
                        Some(seq) if seq == wanted => return Ok(()),
                        _ => return Err(format!("expected the ack of {wanted}, not {text}")),
                    }
                }
                Some(Message::Ping(_) | Message::Pong(_)) => {}
                end => return Err(format!("expected the ack of {wanted}, not {end:?}")),
            }
        }
    }

    async fn gone(&mut self) -> Result<(), String> {
        loop {
            match self.next().await {
                Some(Message::Text(text)) => return Err(format!("expected no further frame, not {text}")),
                Some(Message::Close(_)) | None => return Ok(()),
                Some(_) => {}
            }
        }
    }
}
