//! Our frames and those of the vendor's own crate are exchangeable in both directions. `cloudevents.rs` tests the events.

use agentpost_node::server::ws::frame;
use agentpost_proto::cloudevent::{self, CloudEvent};
use agentpost_proto::frame::{self as ours, ClientFrame};
use agentpost_proto::record;
use agentpost_proto::secret::Secret;
use agentpost_testkit::socket::Socket;
use kite_protocol::agent_message::{self, AgentMessage};
use kite_protocol::{ClientMessage, ServerMessage};
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::common::office::{Office, office};
use crate::common::web::{Call, Team, new_key};

type ServerFrame = ours::ServerFrame;

/// Converts a frame through the text that crosses the socket.
fn crossed<T: DeserializeOwned>(frame: &impl Serialize) -> T {
    let text = text(frame);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

fn text(frame: &impl Serialize) -> String {
    serde_json::to_string(frame).unwrap()
}

/// The fields of a frame.
fn said(frame: &impl Serialize) -> Value {
    serde_json::to_value(frame).unwrap()
}

/// Any JSON, with floats that both sides print alike.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i32>().prop_map(|n| Value::from(f64::from(n) / 4.0)),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        let object = prop::collection::btree_map(any::<String>(), inner.clone(), 0..6);
        prop_oneof![
            prop::collection::vec(inner, 0..6).prop_map(Value::from),
            object.prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

fn any_event() -> impl Strategy<Value = CloudEvent> {
    let texts = (any::<String>(), any::<String>(), any::<String>(), 0..=i64::MAX as u64);
    texts.prop_map(|(from, body, topic, seq)| {
        let message = record::Message {
            id: vec![7; 16].into(),
            from,
            to: "agent-alpha".to_owned(),
            topic,
            body: body.into(),
            ..Default::default()
        };
        CloudEvent::of(&message, seq, cloudevent::SOURCE_PREFIX)
    })
}

fn any_server_frame() -> impl Strategy<Value = ServerFrame> {
    let words = any::<String>;
    prop_oneof![
        (any::<u64>(), words()).prop_map(|(last_seq, client_id)| ServerFrame::Connected { last_seq, client_id }),
        (words(), any::<i64>(), any::<i64>(), words()).prop_map(
            |(provider, events_used, events_limit, current_period_end)| ServerFrame::QuotaSnapshot {
                provider,
                events_used,
                events_limit,
                current_period_end,
            }
        ),
        (any::<u64>(), any_event()).prop_map(|(seq, event)| ServerFrame::Event { seq, event }),
        (words(), any::<bool>(), any_json()).prop_map(|(id, ok, payload)| ServerFrame::Response { id, ok, payload }),
        (any::<u64>(), words()).prop_map(|(oldest_available_seq, message)| ServerFrame::CursorExpired {
            oldest_available_seq,
            message,
        }),
        (words(), words(), any::<bool>(), any_json()).prop_map(|(provider, reason, retryable, action)| {
            ServerFrame::BillingBlock {
                provider,
                reason,
                retryable,
                action,
            }
        }),
        (any::<u32>(), words()).prop_map(|(code, message)| ServerFrame::Error { code, message }),
    ]
}

fn any_client_frame() -> impl Strategy<Value = ClientMessage> {
    let words = any::<String>;
    let scopes = prop::collection::vec(words(), 0..4);
    let connect = (any::<u32>(), words(), words(), scopes, prop::option::of(words()));
    prop_oneof![
        connect.prop_map(|(version, token, team_id, scopes, client_id)| ClientMessage::Connect {
            version,
            token,
            team_id,
            scopes,
            client_id,
        }),
        any::<u64>().prop_map(|seq| ClientMessage::Ack { seq }),
        (words(), words(), any_json()).prop_map(|(id, method, params)| ClientMessage::Request { id, method, params }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn our_server_frames_mean_the_same_in_their_types(frame in any_server_frame()) {
        let theirs: ServerMessage = crossed(&frame);
        prop_assert_eq!(said(&theirs), said(&frame));
        // Their serialization parses as ours.
        let back: ServerFrame = crossed(&theirs);
        prop_assert_eq!(said(&back), said(&frame));
    }

    #[test]
    fn their_client_frames_mean_the_same_in_our_types(frame in any_client_frame()) {
        let text = serde_json::to_string(&frame).unwrap();
        let ours = frame::read(&text).unwrap().unwrap();
        prop_assert_eq!(said(&ours), said(&frame));
        // Our client's serialization parses as theirs.
        let back: ClientMessage = crossed(&ours);
        prop_assert_eq!(said(&back), said(&frame));
    }
}

/// Compares the bytes with kite-wire.md.
#[test]
fn frames_are_written_as_theirs_are() {
    let (team_id, client_id) = ("t".to_owned(), "c".to_owned());
    for (ours, theirs) in [
        (
            text(&ClientFrame::Connect {
                version: 1,
                token: Secret("kite_x".to_owned()),
                team_id: team_id.clone(),
                scopes: vec!["agent_to:a".to_owned()],
                client_id: None,
            }),
            r#"{"type":"connect","version":1,"token":"kite_x","team_id":"t","scopes":["agent_to:a"],"client_id":null}"#,
        ),
        (text(&ClientFrame::Ack { seq: 42 }), r#"{"type":"ack","seq":42}"#),
        (
            text(&ServerFrame::Connected { last_seq: 5, client_id }),
            r#"{"type":"connected","last_seq":5,"client_id":"c"}"#,
        ),
        (
            text(&ServerFrame::Response {
                id: "u".to_owned(),
                ok: true,
                payload: json!({}),
            }),
            r#"{"type":"response","id":"u","ok":true,"payload":{}}"#,
        ),
        (
            text(&ServerFrame::BillingBlock {
                provider: "p".to_owned(),
                reason: "r".to_owned(),
                retryable: false,
                action: json!({}),
            }),
            r#"{"type":"billing_block","provider":"p","reason":"r","retryable":false,"action":{}}"#,
        ),
        (
            text(&ServerFrame::Error {
                code: 4005,
                message: "m".to_owned(),
            }),
            r#"{"type":"error","code":4005,"message":"m"}"#,
        ),
    ] {
        assert_eq!(ours, theirs);
    }
}

/// Fields that either side may leave out, write as null, or add.
#[test]
fn absent_and_unknown_fields_are_read_alike() {
    for (text, meant) in [
        (
            r#"{"type":"connect","version":1,"token":"k","team_id":"t","scopes":["*"]}"#,
            json!({"type": "connect", "version": 1, "token": "k", "team_id": "t", "scopes": ["*"], "client_id": null}),
        ),
        (
            r#"{"client_id":null,"scopes":[],"x":{"y":[]},"team_id":"t","token":"k","version":1,"type":"connect"}"#,
            json!({"type": "connect", "version": 1, "token": "k", "team_id": "t", "scopes": [], "client_id": null}),
        ),
        (
            r#"{"type":"request","id":"1","method":"m"}"#,
            json!({"type": "request", "id": "1", "method": "m", "params": null}),
        ),
        (
            r#"{"type":"request","id":"1","method":"m","params":null,"timeout":5}"#,
            json!({"type": "request", "id": "1", "method": "m", "params": null}),
        ),
        (
            r#"{"type":"ack","seq":0,"more":true}"#,
            json!({"type": "ack", "seq": 0}),
        ),
    ] {
        let ours = frame::read(text).unwrap().unwrap();
        let theirs: ClientMessage = serde_json::from_str(text).unwrap();
        assert_eq!((said(&ours), said(&theirs)), (meant.clone(), meant), "{text}");
    }
    for (text, meant) in [
        (
            r#"{"type":"response","id":"1","ok":true}"#,
            json!({"type": "response", "id": "1", "ok": true, "payload": null}),
        ),
        (
            r#"{"type":"connected","last_seq":1,"client_id":"c","server":"x"}"#,
            json!({"type": "connected", "last_seq": 1, "client_id": "c"}),
        ),
        (
            r#"{"type":"billing_block","provider":"p","reason":"r","retryable":true,"action":null,"x":1}"#,
            json!({"type": "billing_block", "provider": "p", "reason": "r", "retryable": true, "action": null}),
        ),
    ] {
        let ours: ServerFrame = serde_json::from_str(text).unwrap();
        let theirs: ServerMessage = serde_json::from_str(text).unwrap();
        assert_eq!((said(&ours), said(&theirs)), (meant.clone(), meant), "{text}");
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
}

async fn say(socket: &mut Socket, frame: &ClientMessage) {
    socket
        .say_raw(Message::text(serde_json::to_string(frame).unwrap()))
        .await;
}

/// A conversation over a real socket in which the client uses only their types.
#[tokio::test(flavor = "multi_thread")]
async fn their_client_converses_with_a_cluster() {
    let office = office().await;
    let connect = |scopes: &[&str], token: &str| ClientMessage::Connect {
        version: 1,
        token: token.to_owned(),
        team_id: office.team.id.clone(),
        scopes: scopes.iter().map(|s| (*s).to_owned()).collect(),
        client_id: None,
    };
    let bodies = ["plain", "quotes \" and \n", "🦀".repeat(40).as_str(), ""].map(str::to_owned);
    for (at, body) in bodies.iter().enumerate() {
        let mail =
            json!({"from": "agent-beta", "to": "agent-alpha", "body": body, "thread_id": "t", "reply_to_id": "r"});
        Call::post("/api/v1/agents/messages", &mail)
            .bearer(&office.team.key)
            .to(&office.urls[at % 3])
            .await
            .ok();
    }
    let object = json!({"toAgentId": "agent-alpha", "type": "task.done", "body": {"a": [1, 2.5]}});
    Call::post("/v1/messages", &object)
        .key(&office.team.key)
        .agent("gamma")
        .to(&office.urls[0])
        .await
        .ok();

    let mut socket = Socket::open(&office.urls[1]).await;
    say(&mut socket, &connect(&["agent_to:agent-alpha"], &office.team.key)).await;
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
    let mut refused = Socket::open(&office.urls[2]).await;
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
}

/// The next frame in their types.
async fn heard(socket: &mut Socket) -> ServerMessage {
    serde_json::from_value(socket.frame().await).unwrap()
}

/// The methods of their management commands in order, and the fields that the commands read.
const COMMANDS: [(&str, &str, &[&str]); 7] = [
    (
        "events.recent",
        r#"{"limit": 100}"#,
        &[
            "events/0/seq",
            "events/0/created_at",
            "events/0/event/type",
            "events/0/event/kitesummary",
        ],
    ),
    (
        "dashboard.stats",
        "{}",
        &["team_id", "webhooks_today", "active_endpoints", "active_api_keys"],
    ),
    (
        "dashboard.stats",
        "null",
        &["current_key_permissions/0", "plan_name", "active_sources_limit"],
    ),
    (
        "keys.create",
        r#"{"name": "ci", "scopes": ["*"], "permissions": ["read"], "expires_at": null}"#,
        &["id", "key_prefix", "api_key"],
    ),
    (
        "keys.list",
        "{}",
        &[
            "team_id",
            "keys/0/created_at",
            "keys/2/id",
            "keys/2/name",
            "keys/2/key_prefix",
        ],
    ),
    ("keys.list", "{}", &["keys/2/revoked"]),
    ("keys.revoke", r#"{"id": "MADE"}"#, &["id"]),
];

async fn ask(socket: &mut Socket, method: &str, params: Value) -> (bool, Value) {
    let request = ClientMessage::Request {
        id: method.to_uppercase(),
        method: method.to_owned(),
        params,
    };
    say(socket, &request).await;
    match heard(socket).await {
        ServerMessage::Response { id, ok, payload } => {
            assert_eq!(id, method.to_uppercase());
            (ok, payload)
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn their_management_commands_find_what_they_read() {
    let office = Office::start(1, "").await;
    let url = office.urls[0].as_str();
    let limits = json!({"monthly_events": 1});
    let team = Team::with_limits(url, &office.admin, "management", &limits).await;
    let boss = json!({"name": "boss", "permissions": ["admin"]});
    let (_, token) = new_key(url, &office.admin, &team.id, &boss).await;
    let mail = json!({"from": "agent-beta", "to": "agent-alpha", "body": "hello"});
    let send = Call::post("/api/v1/agents/messages", &mail).bearer(&team.key);
    send.to(url).await.ok();

    let mut socket = Socket::open(url).await;
    let connect = ClientMessage::Connect {
        version: 1,
        token,
        team_id: team.id.clone(),
        scopes: vec!["*".to_owned()],
        client_id: None,
    };
    say(&mut socket, &connect).await;
    let connected = heard(&mut socket).await;
    assert!(matches!(connected, ServerMessage::Connected { last_seq: 1, .. }));
    let quota = heard(&mut socket).await;
    assert!(matches!(
        quota,
        ServerMessage::QuotaSnapshot {
            events_used: 1,
            events_limit: 1,
            ..
        }
    ));
    let blocked = heard(&mut socket).await;
    assert!(matches!(blocked, ServerMessage::BillingBlock { retryable: true, .. }));

    let mut made = String::new();
    for (method, params, fields) in COMMANDS {
        let params = serde_json::from_str(&params.replace("MADE", &made)).unwrap();
        let (ok, payload) = ask(&mut socket, method, params).await;
        assert!(ok, "{method}: {payload}");
        for field in fields {
            let value = payload.pointer(&format!("/{field}"));
            assert!(
                value.is_some_and(|value| !value.is_null()),
                "{method} {field}: {payload}"
            );
        }
        if method == "keys.create" {
            made = payload["id"].as_str().unwrap().to_owned();
        }
        for event in payload["events"].as_array().into_iter().flatten() {
            let event = serde_json::from_value(event["event"].clone()).unwrap();
            assert_eq!(AgentMessage::from_event(&event).unwrap().body, "hello");
        }
    }
    for method in ["hooks.list", "no.such"] {
        let (ok, payload) = ask(&mut socket, method, Value::Null).await;
        assert!(!ok && payload["error"].is_string(), "{payload}");
    }
}
