//! Our frames and those of the vendor's own crate are exchangeable, in both directions.
#![allow(clippy::unwrap_used)]

use agentpost_proto::cloudevent::{self, CloudEvent};
use agentpost_proto::command::BodyKind;
use agentpost_proto::frame::{self as ours, ClientFrame, ServerFrame};
use agentpost_proto::record;
use kite_protocol::agent_message::{self, AgentMessage};
use kite_protocol::{ClientMessage, ServerMessage};
use serde_json::json;

fn message(body: &str, kind: BodyKind) -> record::Message {
    record::Message {
        id: uuid::Uuid::from_u128(0x0192_f0e1_0000_7000_8000_0000_0000_0001)
            .as_bytes()
            .to_vec()
            .into(),
        seq: 42,
        from: "agent-beta".to_owned(),
        to: "agent-alpha".to_owned(),
        r#type: "task.result".to_owned(),
        body_kind: kind as i32,
        body: body.to_owned().into(),
        thread_id: "thread-abc123".to_owned(),
        created_at_ms: 1_777_543_200_123,
        ..Default::default()
    }
}

fn as_theirs(frame: &ServerFrame) -> ServerMessage {
    serde_json::from_str(&serde_json::to_string(frame).unwrap()).unwrap()
}

#[test]
fn every_frame_that_we_send_is_one_of_theirs() {
    let connected = ServerFrame::Connected {
        last_seq: 5,
        client_id: "c".to_owned(),
    };
    assert!(matches!(as_theirs(&connected), ServerMessage::Connected { last_seq: 5, client_id } if client_id == "c"));
    let quota = ServerFrame::QuotaSnapshot {
        provider: "agentpost".to_owned(),
        events_used: 42,
        events_limit: 9_007_199_254_740_991,
        current_period_end: "2026-12-01T00:00:00.000Z".to_owned(),
    };
    assert!(matches!(
        as_theirs(&quota),
        ServerMessage::QuotaSnapshot { events_used: 42, .. }
    ));
    let response = ServerFrame::Response {
        id: "r".to_owned(),
        ok: false,
        payload: json!({"error": "x"}),
    };
    assert!(
        matches!(as_theirs(&response), ServerMessage::Response { ok: false, payload, .. } if payload["error"] == "x")
    );
    let expired = ServerFrame::CursorExpired {
        oldest_available_seq: 9,
        message: "gone".to_owned(),
    };
    assert!(matches!(
        as_theirs(&expired),
        ServerMessage::CursorExpired {
            oldest_available_seq: 9,
            ..
        }
    ));
    let error = ServerFrame::Error {
        code: ours::ERR_SLOW_CONSUMER,
        message: "slow".to_owned(),
    };
    assert!(matches!(
        as_theirs(&error),
        ServerMessage::Error {
            code: kite_protocol::ERR_SLOW_CONSUMER,
            ..
        }
    ));
}

#[test]
fn every_event_that_we_send_is_agent_mail_to_their_parser() {
    let long = "ä".repeat(500);
    for (body, kind) in [
        ("Here are the results you asked for.", BodyKind::Text),
        (r#"{"nested":{"list":[1,2.5,null]}}"#, BodyKind::Object),
        ("", BodyKind::Text),
        ("quotes \" and \u{1} control \n and 🦀", BodyKind::Text),
        (long.as_str(), BodyKind::Text),
    ] {
        let event = CloudEvent::of(&message(body, kind), 42, cloudevent::SOURCE_PREFIX);
        let ServerMessage::Event { seq, event } = as_theirs(&ServerFrame::Event { seq: 42, event }) else {
            panic!("not an event")
        };
        assert_eq!(seq, 42);
        let event = serde_json::from_value(event).unwrap();
        assert_eq!(kite_protocol::get_kiteseq(&event), Some(42));
        assert!(
            kite_protocol::get_kitesummary(&event)
                .unwrap()
                .starts_with("[agent msg] agent-beta → agent-alpha")
        );
        let mail = AgentMessage::from_event(&event).unwrap();
        assert_eq!((mail.from.as_str(), mail.to.as_str()), ("agent-beta", "agent-alpha"));
        assert_eq!(mail.body, body);
        assert_eq!(mail.thread_id.as_deref(), Some("thread-abc123"));
        assert_eq!(mail.reply_to_id, None);
    }
}

#[test]
fn our_constants_are_theirs() {
    assert_eq!(cloudevent::EVENT_TYPE, agent_message::EVENT_TYPE);
    assert_eq!(cloudevent::SOURCE_PREFIX, agent_message::SOURCE_PREFIX);
    assert_eq!(ours::ERR_AUTH_FAILED, kite_protocol::ERR_AUTH_FAILED);
    assert_eq!(ours::ERR_INVALID_MESSAGE, kite_protocol::ERR_INVALID_MESSAGE);
    assert_eq!(ours::ERR_RATE_LIMITED, kite_protocol::ERR_RATE_LIMITED);
    assert_eq!(ours::ERR_SLOW_CONSUMER, kite_protocol::ERR_SLOW_CONSUMER);
    assert_eq!(ours::ERR_QUOTA_BLOCKED, kite_protocol::ERR_QUOTA_BLOCKED);
    let short = AgentMessage::new("a", "b", "short");
    assert_eq!(cloudevent::summary("a", "b", "short"), short.summary());
    let long = AgentMessage::new("a", "b", "x".repeat(100));
    assert_eq!(cloudevent::summary("a", "b", &long.body), long.summary());
}

#[test]
fn every_frame_that_their_client_sends_is_one_of_ours() {
    let connect = |client_id: Option<&str>| ClientMessage::Connect {
        version: 1,
        token: "kite_abc12345_secret".to_owned(),
        team_id: "team_123".to_owned(),
        scopes: vec!["source:github".to_owned(), "type:push".to_owned()],
        client_id: client_id.map(str::to_owned),
    };
    let theirs = [
        connect(None),
        connect(Some("my-agent")),
        ClientMessage::Ack { seq: u64::MAX },
        ClientMessage::Request {
            id: "1".to_owned(),
            method: "keys.list".to_owned(),
            params: json!({"deep": [1, {}]}),
        },
    ];
    for frame in theirs {
        let text = serde_json::to_string(&frame).unwrap();
        let ours = agentpost_node::ws::frame::read(&text).unwrap().unwrap();
        match (frame, ours) {
            (
                ClientMessage::Connect {
                    version,
                    token,
                    team_id,
                    scopes,
                    client_id,
                },
                ClientFrame::Connect {
                    version: v,
                    token: t,
                    team_id: i,
                    scopes: s,
                    client_id: c,
                },
            ) => assert_eq!((version, token, team_id, scopes, client_id), (v, t, i, s, c)),
            (ClientMessage::Ack { seq }, ClientFrame::Ack { seq: s }) => assert_eq!(seq, s),
            (ClientMessage::Request { id, method, .. }, ClientFrame::Request { id: i, method: m, .. }) => {
                assert_eq!((id, method), (i, m));
            }
            (theirs, ours) => panic!("{theirs:?} became {ours:?}"),
        }
    }
}
