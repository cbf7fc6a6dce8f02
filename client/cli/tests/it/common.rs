//! A server that answers from a script, and `kite` run against it in a home of its own.

pub mod cluster;
pub mod process;
pub mod steps;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::process::Output;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::State;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use tempfile::TempDir;
use tokio::process::Command;

/// Longer than anything here takes.
pub const PATIENCE: Duration = Duration::from_secs(30);

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
    /// Closes without a word.
    Hang,
    /// Pings a client that is busy with its first event and waits for the pong. An acknowledgement has to come first,
    /// and is kept for the next step.
    Ping,
    /// Waits for acknowledgements up to this one; anything else ends `kite` with an error that says so.
    Acked(u64),
    /// Waits until the client has gone; anything it still says ends the next session with an error that says so.
    Gone,
    /// Waits until there is such a file.
    Await(PathBuf),
    /// Makes such a file.
    Touch(PathBuf),
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
    let mut kept = VecDeque::new();
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
            other => {
                if let Err(fault) = steps::play(other, &mut socket, &mut kept).await {
                    return steps::accuse(&mut socket, &script, fault).await;
                }
            }
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

/// Waits for a state.
pub async fn eventually(mut reached: impl FnMut() -> bool) {
    let wait = async {
        while !reached() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("not reached in time");
}

/// A URL that refuses connections.
pub fn dead_base() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// A home folder and the variables of one user.
pub struct User {
    pub home: TempDir,
    variables: Vec<(String, String)>,
}

impl User {
    pub fn new() -> Self {
        User {
            home: tempfile::tempdir().unwrap(),
            variables: Vec::new(),
        }
    }

    /// With a key and these servers.
    pub fn of(servers: &str) -> Self {
        User::new()
            .with("KITE_API_KEY", "kite_key")
            .with("KITE_TEAM_ID", "team_1")
            .with("AGENTPOST_URLS", servers)
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn config_path(&self) -> std::path::PathBuf {
        self.home.path().join(".config/kite/config.toml")
    }

    /// The command line, with nothing of the caller's environment.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kite"));
        command
            .args(args)
            .env_clear()
            .env("HOME", self.home.path())
            .current_dir(self.home.path());
        command.envs(self.variables.iter().cloned()).kill_on_drop(true);
        command
    }

    pub async fn kite(&self, args: &[&str]) -> Output {
        tokio::time::timeout(PATIENCE, self.command(args).output())
            .await
            .expect("kite did not end")
            .unwrap()
    }
}

/// Exit code, stdout and stderr.
pub fn parts(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}
