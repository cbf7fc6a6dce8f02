//! Our frames and those of the vendor's own crate are exchangeable, in both directions.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/web.rs"]
#[allow(dead_code)]
mod web;
mod ws_client;

use agentpost_proto::cloudevent::{self, CloudEvent};
use agentpost_proto::command::BodyKind;
use agentpost_proto::frame::{self as ours, ClientFrame, ServerFrame};
use agentpost_proto::record;
use kite_protocol::agent_message::{self, AgentMessage};
use kite_protocol::{ClientMessage, ServerMessage};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use common::TestCluster;
use web::{Call, Team};
use ws_client::Socket;

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
fn topic_mail_is_agent_mail_to_their_parser() {
    let message = record::Message {
        to: String::new(),
        topic: "news".to_owned(),
        ..message("hi", BodyKind::Text)
    };
    let prefix = cloudevent::SOURCE_PREFIX;
    for (event, to) in [
        (CloudEvent::of(&message, 42, prefix), "topic:news"),
        (CloudEvent::received(&message, "agent-alpha", 42, prefix), "agent-alpha"),
    ] {
        assert_eq!(event.data.topic.as_deref(), Some("news"));
        let ServerMessage::Event { event, .. } = as_theirs(&ServerFrame::Event { seq: 42, event }) else {
            panic!("not an event")
        };
        let mail = AgentMessage::from_event(&serde_json::from_value(event).unwrap()).unwrap();
        assert_eq!((mail.to.as_str(), mail.body.as_str()), (to, "hi"));
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
            ) => assert_eq!((version, token, team_id, scopes, client_id), (v, t.0, i, s, c)),
            (ClientMessage::Ack { seq }, ClientFrame::Ack { seq: s }) => assert_eq!(seq, s),
            (ClientMessage::Request { id, method, .. }, ClientFrame::Request { id: i, method: m, .. }) => {
                assert_eq!((id, method), (i, m));
            }
            (theirs, ours) => panic!("{theirs:?} became {ours:?}"),
        }
    }
}

async fn say(socket: &mut Socket, frame: &ClientMessage) {
    socket
        .say_raw(Message::text(serde_json::to_string(frame).unwrap()))
        .await;
}

/// A conversation in their types alone, over a real socket: none of our frames on the client's side.
#[tokio::test(flavor = "multi_thread")]
async fn their_client_converses_with_a_cluster() {
    let cluster = TestCluster::start(3).await;
    let (urls, admin) = (cluster.urls(), cluster.admin_key());
    let team = Team::create(&urls[0], &admin, "conformance").await;
    let connect = |scopes: &[&str], token: &str| ClientMessage::Connect {
        version: 1,
        token: token.to_owned(),
        team_id: team.id.clone(),
        scopes: scopes.iter().map(|s| (*s).to_owned()).collect(),
        client_id: None,
    };
    let bodies = ["plain", "quotes \" and \n", "🦀".repeat(40).as_str(), ""].map(str::to_owned);
    for (at, body) in bodies.iter().enumerate() {
        let mail =
            json!({"from": "agent-beta", "to": "agent-alpha", "body": body, "thread_id": "t", "reply_to_id": "r"});
        Call::post("/api/v1/agents/messages", &mail)
            .bearer(&team.key)
            .to(&urls[at % 3])
            .await
            .ok();
    }
    let object = json!({"toAgentId": "agent-alpha", "type": "task.done", "body": {"a": [1, 2.5]}});
    Call::post("/v1/messages", &object)
        .key(&team.key)
        .agent("gamma")
        .to(&urls[0])
        .await
        .ok();

    let mut socket = Socket::open(&urls[1]).await;
    say(&mut socket, &connect(&["agent_to:agent-alpha"], &team.key)).await;
    for _ in 0..2 + bodies.len() + 1 {
        socket.frame().await;
    }
    say(&mut socket, &ClientMessage::Ack { seq: 2 }).await;
    let request = ClientMessage::Request {
        id: "q".to_owned(),
        method: "events.recent".to_owned(),
        params: Value::Null,
    };
    say(&mut socket, &request).await;
    socket.frame().await;
    let mut refused = Socket::open(&urls[2]).await;
    say(&mut refused, &connect(&["*"], "kite_wrong")).await;
    refused.ending().await;

    let mut seen = Vec::new();
    for text in socket.log.iter().chain(&refused.log) {
        match serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}")) {
            ServerMessage::Event { event, .. } => {
                let event = serde_json::from_value(event).unwrap();
                seen.push(AgentMessage::from_event(&event).unwrap().body);
            }
            ServerMessage::Connected { .. } => seen.push("connected".to_owned()),
            ServerMessage::QuotaSnapshot { .. } => seen.push("quota".to_owned()),
            ServerMessage::Response { .. } => seen.push("response".to_owned()),
            ServerMessage::Error { code, .. } => seen.push(code.to_string()),
            other => panic!("{other:?}"),
        }
    }
    let mut expected = vec!["connected".to_owned(), "quota".to_owned()];
    expected.extend(bodies);
    expected.extend([r#"{"a":[1,2.5]}"#, "response", "4001"].map(str::to_owned));
    assert_eq!(seen, expected);
    cluster.stop().await;
}
