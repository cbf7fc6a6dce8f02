//! Steps of scripted sessions with `kite`.

use agentpost_testkit::scripted_server::Step;
use serde_json::json;

/// Sends a frame.
pub fn say(frame: serde_json::Value) -> Step {
    Step::Say(frame.to_string())
}

/// Accepts the session.
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

/// What `kite` prints after [`refusal`].
pub const REFUSED: &str = "Error: Server error (4001): over";
