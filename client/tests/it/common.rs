//! A server that answers from a script.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: Method,
    pub path: String,
    pub headers: HeaderMap,
    pub body: String,
}

impl Seen {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// One step of a WebSocket session.
#[derive(Debug, Clone)]
pub enum Step {
    /// Waits for a request; it then stands in [`Stub::requests`].
    Ask,
    /// Answers the last request: `ok` and the payload.
    Answer(bool, serde_json::Value),
    /// Sends a frame.
    Say(String),
    /// Waits for this frame.
    Hear(serde_json::Value),
    /// Closes without a close frame.
    Hang,
    /// Waits until the client has gone.
    Gone,
}

#[derive(Default)]
struct Script {
    answers: VecDeque<(u16, String)>,
    sessions: VecDeque<Vec<Step>>,
    seen: Vec<Seen>,
    hellos: Vec<serde_json::Value>,
    requests: Vec<serde_json::Value>,
}

/// A server on a port of its own.
#[derive(Clone)]
pub struct Stub {
    pub base: String,
    script: Arc<Mutex<Script>>,
}

impl Stub {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let script = Arc::new(Mutex::new(Script::default()));
        let app = axum::Router::new()
            .route("/ws", axum::routing::get(upgrade))
            .fallback(answer)
            .with_state(script.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Stub { base, script }
    }

    pub fn ws_url(&self) -> String {
        agentpost::urls::ws_url(&self.base).unwrap()
    }

    /// Answers the next request so; without a script it is a 500.
    pub fn answer(&self, status: u16, body: impl Into<String>) -> &Self {
        self.script.lock().unwrap().answers.push_back((status, body.into()));
        self
    }

    /// Plays the next session so.
    pub fn session(&self, steps: Vec<Step>) -> &Self {
        self.script.lock().unwrap().sessions.push_back(steps);
        self
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.script.lock().unwrap().seen.clone()
    }

    /// Plays the next session so: greets, takes one request and answers it.
    pub fn session_that_answers(&self, ok: bool, payload: serde_json::Value) -> &Self {
        self.session(vec![greeting(), Step::Ask, Step::Answer(ok, payload)])
    }

    /// Method and parameters of the requests over sockets.
    pub fn requests(&self) -> Vec<(String, serde_json::Value)> {
        let requests = self.script.lock().unwrap().requests.clone();
        let method = |frame: &serde_json::Value| frame["method"].as_str().unwrap_or_default().to_owned();
        requests
            .into_iter()
            .map(|frame| (method(&frame), frame["params"].clone()))
            .collect()
    }

    /// The `connect` frames.
    pub fn hellos(&self) -> Vec<serde_json::Value> {
        self.script.lock().unwrap().hellos.clone()
    }
}

/// The first frame of a session that may begin.
pub fn greeting() -> Step {
    Step::Say(serde_json::json!({"type": "connected", "last_seq": 0, "client_id": "c"}).to_string())
}

async fn answer(
    State(script): State<Arc<Mutex<Script>>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: String,
) -> Response {
    let mut script = script.lock().unwrap();
    let path = uri.path_and_query().unwrap().to_string();
    script.seen.push(Seen {
        method,
        path,
        headers,
        body,
    });
    let (status, body) = script.answers.pop_front().unwrap_or((500, "no script".to_owned()));
    (StatusCode::from_u16(status).unwrap(), body).into_response()
}

async fn upgrade(State(script): State<Arc<Mutex<Script>>>, upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(move |socket| play(socket, script))
}

async fn play(mut socket: WebSocket, script: Arc<Mutex<Script>>) {
    let Some(hello) = next_json(&mut socket).await else {
        return;
    };
    let steps = {
        let mut script = script.lock().unwrap();
        script.hellos.push(hello);
        script.sessions.pop_front().unwrap_or_default()
    };
    for step in steps {
        match step {
            Step::Ask => match next_json(&mut socket).await {
                Some(request) => script.lock().unwrap().requests.push(request),
                None => return,
            },
            Step::Answer(ok, payload) => {
                let id = script.lock().unwrap().requests.last().unwrap()["id"].clone();
                let response = serde_json::json!({"type": "response", "id": id, "ok": ok, "payload": payload});
                socket.send(Message::Text(response.to_string().into())).await.unwrap();
            }
            Step::Say(text) => socket.send(Message::Text(text.into())).await.unwrap(),
            Step::Hear(expected) => assert_eq!(next_json(&mut socket).await, Some(expected)),
            Step::Hang => return,
            Step::Gone => while let Some(Ok(_)) = socket.recv().await {},
        }
    }
    let _ = socket.send(Message::Close(None)).await;
}

async fn next_json(socket: &mut WebSocket) -> Option<serde_json::Value> {
    while let Some(Ok(message)) = socket.recv().await {
        if let Message::Text(text) = message {
            return Some(serde_json::from_str(&text).unwrap());
        }
    }
    None
}

/// A URL that refuses connections.
pub fn dead_base() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}
