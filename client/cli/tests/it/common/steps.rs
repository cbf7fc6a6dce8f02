//! Steps of a session that watch what the client does. A fault is told to `kite` itself, as the refusal of its key, so
//! that it ends at once and the test sees the sentence on its stderr.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::ws::{Message, WebSocket};
use serde_json::json;

use super::{PATIENCE, Script, Step};

/// What arrived while something else was waited for.
pub(super) type Kept = VecDeque<Message>;

pub(super) async fn play(step: Step, socket: &mut WebSocket, kept: &mut Kept) -> Result<(), String> {
    match step {
        Step::Ping => ping(socket, kept).await,
        Step::Acked(seq) => acked(seq, socket, kept).await,
        Step::Gone => gone(socket, kept).await,
        Step::Await(path) => {
            exists(&path).await;
            Ok(())
        }
        Step::Touch(path) => std::fs::write(&path, "").map_err(|e| e.to_string()),
        _ => unreachable!("played by the caller"),
    }
}

/// Ends the session, or the next one if the client has left this one.
pub(super) async fn accuse(socket: &mut WebSocket, script: &Arc<Mutex<Script>>, fault: String) {
    let frame = json!({"type": "error", "code": 4001, "message": format!("the test's server: {fault}")}).to_string();
    script
        .lock()
        .unwrap()
        .sessions
        .push_front(vec![Step::Say(frame.clone())]);
    let _ = socket.send(Message::Text(frame.into())).await;
}

/// Waits for a file.
pub async fn exists(path: &Path) {
    let wait = async {
        while !path.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, wait).await;
    waited.unwrap_or_else(|_| panic!("no {} in time", path.display()));
}

async fn ping(socket: &mut WebSocket, kept: &mut Kept) -> Result<(), String> {
    let payload = "are you there?";
    let sent = socket.send(Message::Ping(payload.into())).await;
    sent.map_err(|e| e.to_string())?;
    loop {
        match socket.recv().await {
            Some(Ok(Message::Pong(answer))) if answer == payload => {
                let acked = kept.iter().any(|message| matches!(message, Message::Text(_)));
                return acked.then_some(()).ok_or("a pong before any ack".to_owned());
            }
            Some(Ok(message)) => kept.push_back(message),
            end => return Err(format!("no pong but {end:?}")),
        }
    }
}

async fn next(socket: &mut WebSocket, kept: &mut Kept) -> Option<Message> {
    match kept.pop_front() {
        Some(message) => Some(message),
        None => socket.recv().await?.ok(),
    }
}

async fn acked(wanted: u64, socket: &mut WebSocket, kept: &mut Kept) -> Result<(), String> {
    loop {
        match next(socket, kept).await {
            Some(Message::Text(text)) => {
                let frame: serde_json::Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
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

async fn gone(socket: &mut WebSocket, kept: &mut Kept) -> Result<(), String> {
    loop {
        match next(socket, kept).await {
            Some(Message::Text(text)) => return Err(format!("expected nothing more, not {text}")),
            Some(Message::Close(_)) | None => return Ok(()),
            Some(_) => {}
        }
    }
}

/// Sends a frame.
pub fn say(frame: serde_json::Value) -> Step {
    Step::Say(frame.to_string())
}

/// Greets.
pub fn connected(last_seq: u64) -> Step {
    say(json!({"type": "connected", "last_seq": last_seq, "client_id": "c"}))
}

/// Mail number `seq` from agent-beta to agent-alpha.
pub fn mail(seq: u64) -> Step {
    of_type(seq, "com.kite.agent.message", "https://getkite.sh/agents/agent-beta")
}

/// An event number `seq`, with its summary.
pub fn of_type(seq: u64, kind: &str, source: &str) -> Step {
    say(json!({"type": "event", "seq": seq, "event": {
        "specversion": "1.0", "id": format!("event-{seq}"), "type": kind, "source": source,
        "datacontenttype": "application/json", "time": "2026-04-30T10:00:00.000Z",
        "data": {"body": "hello", "from": "agent-beta", "to": "agent-alpha"},
        "kiteseq": seq, "kitesummary": format!("summary {seq}"),
    }}))
}

/// Refuses the key, which ends `kite`.
pub fn refusal() -> Step {
    say(json!({"type": "error", "code": 4001, "message": "over"}))
}

/// What `kite` says of [`refusal`].
pub const REFUSED: &str = "Error: Server error (4001): over";
