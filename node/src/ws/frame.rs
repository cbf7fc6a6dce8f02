//! Frames as text: what a client sent, and what it is sent.

use agentpost_proto::cloudevent::CloudEvent;
use agentpost_proto::frame::{ClientFrame, ServerFrame};
use agentpost_proto::record;
use axum::extract::ws::Utf8Bytes;
use serde_json::Value;

use crate::http::json::explain;

/// RPC methods of the vendor's protocol that come later.
const LATER_METHODS: &[&str] = &[
    "events.recent",
    "dashboard.stats",
    "keys.list",
    "keys.create",
    "keys.revoke",
    "hooks.list",
    "hooks.create",
    "hooks.deactivate",
    "hooks.rotate_secret",
    "hooks.github.prepare_install",
];

/// What a text frame says; none if it says nothing to us: an unknown type is for a later version, and an ack
/// never fails. The error goes to the client.
pub fn read(text: &str) -> Result<Option<ClientFrame>, String> {
    let error = match serde_json::from_str(text) {
        Ok(frame) => return Ok(Some(frame)),
        Err(error) => error,
    };
    let value: Value = serde_json::from_str(text).map_err(|e| format!("not JSON: {}", explain(&e)))?;
    match value.get("type").and_then(Value::as_str) {
        None => Err("a frame is a JSON object with a string \"type\"".to_owned()),
        Some("connect" | "request") => Err(format!("malformed frame: {}", explain(&error))),
        Some(_) => Ok(None),
    }
}

/// Encodes a frame.
pub fn text(frame: &ServerFrame) -> Utf8Bytes {
    // Strings, integers and JSON values always encode.
    serde_json::to_string(frame).unwrap_or_default().into()
}

/// Encodes the event of a message that stands at `seq`, as `receiver` got it or as it was sent.
pub fn event(message: &record::Message, receiver: Option<&str>, seq: u64, source_prefix: &str) -> Utf8Bytes {
    let event = match receiver {
        Some(receiver) => CloudEvent::received(message, receiver, seq, source_prefix),
        None => CloudEvent::of(message, seq, source_prefix),
    };
    text(&ServerFrame::Event { seq, event })
}

/// The answer to a request, until the methods exist.
pub fn answer(id: String, method: &str) -> ServerFrame {
    let error = if LATER_METHODS.contains(&method) {
        format!("{method} is not supported yet")
    } else {
        format!("unknown method {:?}", method.chars().take(64).collect::<String>())
    };
    ServerFrame::Response {
        id,
        ok: false,
        payload: serde_json::json!({ "error": error }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use agentpost_proto::command::BodyKind;

    use super::*;

    #[test]
    fn frames_of_the_vendors_client() {
        let connect =
            r#"{"type":"connect","version":1,"token":"kite_x","team_id":"t","scopes":["agent_to:a"],"client_id":null}"#;
        assert!(matches!(
            read(connect),
            Ok(Some(ClientFrame::Connect { client_id: None, .. }))
        ));
        assert!(matches!(
            read(r#"{"type":"ack","seq":42}"#),
            Ok(Some(ClientFrame::Ack { seq: 42 }))
        ));
        assert!(matches!(
            read(r#"{"type":"request","id":"1","method":"m"}"#),
            Ok(Some(ClientFrame::Request { .. }))
        ));
    }

    #[test]
    fn what_is_not_understood_is_ignored_and_what_is_broken_is_told() {
        for ignored in [
            r#"{"type":"nack","seq":1}"#,
            r#"{"type":"ack"}"#,
            r#"{"type":"ack","seq":-1}"#,
            r#"{"type":"ack","seq":1.5}"#,
        ] {
            assert_eq!(read(ignored), Ok(None), "{ignored}");
        }
        let deep = format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000));
        for broken in [
            "",
            "hello",
            "{",
            "[]",
            "1",
            "{}",
            r#"{"type":1}"#,
            r#"{"type":"connect"}"#,
            r#"{"type":"request"}"#,
            &deep,
        ] {
            assert!(read(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn an_objects_body_travels_as_its_json_text() {
        let message = record::Message {
            id: vec![1; 16].into(),
            from: "b".to_owned(),
            to: "a".to_owned(),
            r#type: "task.done".to_owned(),
            body_kind: BodyKind::Object as i32,
            body: r#"{"ok":true}"#.into(),
            ..Default::default()
        };
        let frame: Value = serde_json::from_str(&event(&message, None, 7, "https://getkite.sh/agents/")).unwrap();
        assert_eq!(frame["seq"], 7);
        assert_eq!(frame["event"]["kiteseq"], 7);
        assert_eq!(frame["event"]["data"]["body"], r#"{"ok":true}"#);
        assert_eq!(frame["event"]["data"]["type"], "task.done");
        assert_eq!(frame["event"]["source"], "https://getkite.sh/agents/b");
    }
}
