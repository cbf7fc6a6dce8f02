//! Decodes the text frames of clients and encodes the frames sent to them.

use agentpost_proto::cloudevent::CloudEvent;
use agentpost_proto::frame::{ClientFrame, ServerFrame};
use agentpost_proto::record;
use axum::extract::ws::Utf8Bytes;
use serde_json::Value;

use crate::wire::json::explain;

/// Decodes a text frame. `None` means that it is ignored: an unknown type may belong to a later version, and an ack
/// never fails. The error is sent to the client.
pub fn read(text: &str) -> Result<Option<ClientFrame>, String> {
    let error = match serde_json::from_str(text) {
        Ok(frame) => return Ok(Some(frame)),
        Err(error) => error,
    };
    let value: Value = serde_json::from_str(text).map_err(|e| format!("not JSON: {}", explain(&e)))?;
    let text = |name: &str| value.get(name).and_then(Value::as_str);
    match (text("type"), text("id")) {
        (None, _) => Err("a frame is a JSON object with a string \"type\"".to_owned()),
        // A request whose id is readable gets an answer, even if the rest is malformed.
        (Some("request"), Some(id)) => Ok(Some(ClientFrame::Request {
            id: id.to_owned(),
            method: String::new(),
            params: Value::Null,
        })),
        (Some("connect" | "request"), _) => Err(format!("malformed frame: {}", explain(&error))),
        (Some(_), _) => Ok(None),
    }
}

/// Encodes a frame.
pub fn text(frame: &ServerFrame) -> Utf8Bytes {
    // Strings, integers and JSON values always encode.
    serde_json::to_string(frame).unwrap_or_default().into()
}

/// Encodes the event of a message at `seq`, addressed to `receiver`, or as it was sent if that is `None`.
pub fn event(message: &record::Message, receiver: Option<&str>, seq: u64, source_prefix: &str) -> Utf8Bytes {
    let event = match receiver {
        Some(receiver) => CloudEvent::received(message, receiver, seq, source_prefix),
        None => CloudEvent::of(message, seq, source_prefix),
    };
    text(&ServerFrame::Event { seq, event })
}

/// Tells a client at `after_seq` that events up to `removed_seq` may be gone.
pub fn expired(after_seq: u64, removed_seq: u64, oldest_available_seq: u64) -> Utf8Bytes {
    let message = format!("events up to {removed_seq} may have been removed by retention; resuming after {after_seq}");
    text(&ServerFrame::CursorExpired {
        oldest_available_seq,
        message,
    })
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
    fn a_malformed_request_with_an_id_can_be_answered() {
        for text in [
            r#"{"type":"request","id":"1"}"#,
            r#"{"type":"request","id":"1","method":7}"#,
            r#"{"type":"request","id":"1","method":null,"params":{}}"#,
        ] {
            let Ok(Some(ClientFrame::Request { id, method, .. })) = read(text) else {
                panic!("{text}")
            };
            assert_eq!((id.as_str(), method.as_str()), ("1", ""), "{text}");
        }
    }

    #[test]
    fn unknown_frames_are_ignored_and_malformed_ones_are_errors() {
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
            r#"{"type":"request","id":7,"method":"keys.list"}"#,
            &deep,
        ] {
            assert!(read(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn the_body_of_an_object_is_sent_as_json_text() {
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
