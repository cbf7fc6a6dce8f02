//! What a session answers and how it ends, on three nodes.
#![allow(clippy::unwrap_used)]

mod world;

use std::time::Duration;

use agentpost_node::server::ws;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use world::common::eventually;
use world::web::{Call, Team};
use world::ws_client::{Ending, Socket, connect_frame, refused, serve_with};
use world::{World, connect};

/// Says one thing first and returns how the socket ends.
async fn first_words(url: &str, words: Message) -> Ending {
    let mut socket = Socket::open(url).await;
    socket.say_raw(words).await;
    socket.ending().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_session_answers() {
    let world = World::start().await;
    tokio::join!(
        the_greeting(&world),
        refusals_come_in_band(&world),
        garbage_ends_a_session_and_the_unknown_does_not(&world),
        requests_are_answered_in_order(&world),
        scopes_decide_what_is_seen(&world),
        mail_of_both_faces_arrives_alike(&world),
        teams_see_only_their_own(&world),
        plain_http_is_told(&world),
    );
    world.cluster.stop().await;
}

async fn the_greeting(world: &World) {
    let limits = json!({"monthly_events": 5, "daily_sends": 0});
    let team = Team::with_limits(&world.urls[0], &world.admin, "greeting", &limits).await;
    world.send(0, &team, "alpha", "x").await;
    let mut socket = Socket::open(&world.urls[1]).await;
    socket.say(&connect_frame(&connect(&team, &["*"], None))).await;
    let connected = socket.frame().await;
    assert_eq!(connected["type"], "connected");
    assert_eq!(connected["last_seq"], 1);
    assert!(!connected["client_id"].as_str().unwrap().is_empty(), "{connected}");
    let quota = socket.frame().await;
    assert_eq!(
        (&quota["type"], &quota["provider"]),
        (&json!("quota_snapshot"), &json!("agentpost"))
    );
    assert_eq!((&quota["events_used"], &quota["events_limit"]), (&json!(1), &json!(5)));
    assert!(
        quota["current_period_end"]
            .as_str()
            .unwrap()
            .ends_with("-01T00:00:00.000Z"),
        "{quota}"
    );
    let mut named = Socket::open(&world.urls[1]).await;
    let connected = named.greet(connect(&team, &["*"], Some("mine"))).await;
    assert_eq!(connected["client_id"], "mine");
    let mut empty = Socket::open(&world.urls[1]).await;
    let connected = empty.greet(connect(&team, &["*"], Some(""))).await;
    assert_ne!(connected["client_id"], "");
}

async fn refusals_come_in_band(world: &World) {
    let team = world.team("refusals").await;
    let other = world.team("another").await;
    let (_, narrow) = world
        .key(
            &team,
            json!({"name": "n", "permissions": ["read"], "scopes": ["agent_to:a"]}),
        )
        .await;
    let url = &world.urls[2];
    let all = &["*"][..];
    let stranger = Team {
        key: "kite_00000000_00000000000000000000000000000000".to_owned(),
        ..team.clone()
    };
    let foreign = Team {
        key: other.key.clone(),
        ..team.clone()
    };
    let nowhere = Team {
        id: String::new(),
        ..team.clone()
    };
    let long = Team {
        key: "k".repeat(10_000),
        ..team.clone()
    };
    let named = |client_id| connect(&team, all, Some(client_id));
    let (too_long, many) = ("x".repeat(200), vec!["type:x"; 65]);
    for (request, code) in [
        (connect(&stranger, all, None), 4001),
        (connect(&foreign, all, None), 4001),
        (connect(&nowhere, all, None), 4001),
        (connect(&long, all, None), 4001),
        (connect(&team, &[], None), 4001),
        (connect(&narrow, &["agent_to:b"], None), 4001),
        (connect(&team, &["topic:x"], None), 4002),
        (connect(&team, &["agent_to:a b"], None), 4002),
        (connect(&team, &many, None), 4002),
        (named("line\nbreak"), 4002),
        (named(&too_long), 4002),
    ] {
        let words = connect_frame(&request);
        assert_eq!(
            first_words(url, Message::text(words.to_string())).await,
            refused(code),
            "{words}"
        );
    }
    let mut version = connect_frame(&connect(&team, all, None));
    version["version"] = json!(2);
    let mut tokenless = connect_frame(&connect(&team, all, None));
    tokenless["token"] = Value::Null;
    for words in [
        version.to_string(),
        tokenless.to_string(),
        r#"{"type":"ack","seq":1}"#.to_owned(),
        r#"{"type":"hello"}"#.to_owned(),
        "hello".to_owned(),
        "[".repeat(200_000),
    ] {
        assert_eq!(
            first_words(url, Message::text(words.clone())).await,
            refused(4002),
            "{words:.100}"
        );
    }
    assert_eq!(first_words(url, Message::binary("{}")).await, refused(4002));
    let huge = format!(r#"{{"type":"connect","token":"{}"}}"#, "x".repeat(300 * 1024));
    assert_eq!(first_words(url, Message::text(huge)).await, refused(4002));
}

async fn garbage_ends_a_session_and_the_unknown_does_not(world: &World) {
    let team = world.team("garbage").await;
    let (mut socket, _) = world.listen(0, &team, &["*"], None).await;
    for ignored in [
        r#"{"type":"nack","seq":1}"#,
        r#"{"type":"ack","seq":"1"}"#,
        r#"{"type":"hello","connect":{}}"#,
    ] {
        socket.say_raw(Message::text(ignored)).await;
    }
    socket.ping().await;
    world.send(1, &team, "a", "still here").await;
    assert_eq!(socket.event().await.1, "still here");
    let again = connect_frame(&connect(&team, &["*"], None)).to_string();
    for garbage in [
        "{",
        "[]",
        "{}",
        r#"{"type":7}"#,
        r#"{"type":"request"}"#,
        again.as_str(),
    ] {
        let (mut socket, _) = world.listen(0, &team, &["*"], None).await;
        socket.say_raw(Message::text(garbage)).await;
        assert_eq!(socket.ending().await, refused(4002), "{garbage}");
    }
}

async fn requests_are_answered_in_order(world: &World) {
    let team = world.team("requests").await;
    world.send(0, &team, "a", "old").await;
    let (mut socket, _) = world.listen(1, &team, &["*"], None).await;
    for at in 0..100 {
        socket
            .say(&json!({"type": "request", "id": format!("r{at}"), "method": "events.recent"}))
            .await;
    }
    for at in 0..100 {
        let answer = socket.frame().await;
        assert_eq!(
            (&answer["type"], &answer["id"]),
            (&json!("response"), &json!(format!("r{at}")))
        );
        assert_eq!(answer["payload"]["events"].as_array().unwrap().len(), 1);
    }
}

async fn scopes_decide_what_is_seen(world: &World) {
    let team = world.team("scopes").await;
    let narrow = json!({"name": "n", "permissions": ["read"], "scopes": ["agent_to:a", "agent_to:b"]});
    let (_, narrow) = world.key(&team, narrow).await;
    let mut expected = Vec::new();
    for (team, scopes, bodies) in [
        (&team, &["*"][..], &["to a", "to b", "to c"][..]),
        (&team, &["agent_to:b"], &["to b"]),
        (&team, &["agent_to:c", "agent_to:b", "agent_to:b"], &["to b", "to c"]),
        (&team, &["source:agents/sender"], &["to a", "to b", "to c"]),
        (&team, &["source:com.kite"], &["to a", "to b", "to c"]),
        (&team, &["type:agent.message"], &["to a", "to b", "to c"]),
        (&team, &["source:github", "type:push"], &[]),
        (&team, &["type:push", "agent_to:a"], &["to a"]),
        (&narrow, &["*"], &["to a", "to b"]),
        (&narrow, &["agent_to:b", "agent_to:c"], &["to b"]),
    ] {
        let (socket, _) = world.listen(2, team, scopes, None).await;
        expected.push((socket, scopes, bodies));
    }
    for to in ["a", "b", "c"] {
        world.send(0, &team, to, &format!("to {to}")).await;
    }
    for (mut socket, scopes, bodies) in expected {
        assert_eq!(socket.bodies(bodies.len()).await, *bodies, "{scopes:?}");
        socket.silent().await;
    }
}

async fn mail_of_both_faces_arrives_alike(world: &World) {
    let team = world.team("faces").await;
    let (mut socket, _) = world.listen(0, &team, &["agent_to:alpha"], None).await;
    let sent = |body: Value| {
        let mail = json!({"toAgentId": "alpha", "type": "task.done", "body": body, "threadId": "t-1"});
        Call::post("/v1/messages", &mail).key(&team.key).agent("beta")
    };
    sent(json!({"nested": {"list": [1, 2.5, null]}}))
        .to(&world.urls[1])
        .await
        .ok();
    let event = socket.frame().await["event"].clone();
    assert_eq!(event["type"], "com.kite.agent.message");
    assert_eq!(event["source"], "https://getkite.sh/agents/beta");
    assert_eq!(event["data"]["type"], "task.done");
    assert_eq!(event["data"]["thread_id"], "t-1");
    assert_eq!(event["data"]["body"], r#"{"nested":{"list":[1,2.5,null]}}"#);
    sent(json!("plain ä \u{1}\n")).to(&world.urls[1]).await.ok();
    assert_eq!(socket.event().await.1, "plain ä \u{1}\n");
    world.send(2, &team, "alpha", "from kite").await;
    let event = socket.frame().await["event"].clone();
    assert_eq!(
        event["data"],
        json!({"from": "sender", "to": "alpha", "body": "from kite"})
    );
}

async fn teams_see_only_their_own(world: &World) {
    let (one, two) = (world.team("one").await, world.team("two").await);
    let (mut socket, _) = world.listen(0, &one, &["*", "agent_to:a"], None).await;
    let (mut mailbox, _) = world.listen(0, &one, &["agent_to:a"], None).await;
    world.send(0, &two, "a", "secret").await;
    socket.silent().await;
    mailbox.silent().await;
    world.send(0, &one, "a", "ours").await;
    assert_eq!(socket.event().await.1, "ours");
    assert_eq!(mailbox.event().await.1, "ours");
}

async fn plain_http_is_told(world: &World) {
    let text = Call::get("/ws").to(&world.urls[0]).await.error(400);
    assert!(
        text.contains("upgrade") || text.contains("Upgrade") || text.contains("Connection"),
        "{text}"
    );
    Call::post("/ws", &json!({})).to(&world.urls[0]).await.error(405);
}

#[tokio::test(flavor = "multi_thread")]
async fn how_a_session_ends() {
    let world = World::start().await;
    tokio::join!(
        one_inbox_has_a_bounded_number_of_sessions(&world),
        silence_is_not_endless(&world),
        nobody_waits_for_ever_for_a_connect(&world),
    );
    let team = world.team("metrics").await;
    let (socket, _) = world.listen(0, &team, &["*"], None).await;
    let services = world.cluster.services(0);
    assert!(services.metrics_text().contains("agentpost_ws_sessions 1"));
    socket.cut();
    eventually("no session in the metrics", async || {
        let metrics = services.metrics_text();
        metrics.contains("agentpost_ws_sessions 0").then_some(())
    })
    .await;
    world.cluster.stop().await;
}

async fn one_inbox_has_a_bounded_number_of_sessions(world: &World) {
    let team = world.team("crowd").await;
    let mut sockets = Vec::new();
    for _ in 0..agentpost_proto::limits::WS_SESSIONS_PER_AGENT_MAX {
        sockets.push(world.listen(0, &team, &["agent_to:a"], None).await.0);
    }
    let words = connect_frame(&connect(&team, &["agent_to:a"], None)).to_string();
    let busy = Ending {
        error: Some(4003),
        close: Some(1013),
    };
    assert_eq!(
        first_words(&world.urls[0], Message::text(words)).await,
        busy,
        "not final: the client comes back"
    );
    world.listen(1, &team, &["agent_to:a"], None).await;
    world.listen(0, &team, &["agent_to:b"], None).await;
    sockets.pop().unwrap().cut();
    tokio::time::sleep(Duration::from_millis(200)).await;
    world.listen(0, &team, &["agent_to:a"], None).await;
}

async fn silence_is_not_endless(world: &World) {
    let team = world.team("silence").await;
    let options = ws::ws_state::SessionOptions {
        ping_every: Duration::from_millis(100),
        silent_max: Duration::from_millis(1_000),
        ..ws::ws_state::SessionOptions::default()
    };
    let url = serve_with(world.cluster.services(2), options).await;
    let (mut reading, _) = Socket::connect(&url, connect(&team, &["*"], None)).await;
    let (mut busy, _) = Socket::connect(&url, connect(&team, &["*"], None)).await;
    // One reads, which answers pings; the other one runs a handler.
    assert!(reading.frame_within(Duration::from_millis(2_500)).await.is_none());
    assert_eq!(busy.ending().await, refused(4004));
    world.send(0, &team, "a", "still here").await;
    assert_eq!(reading.event().await.1, "still here");
}

async fn nobody_waits_for_ever_for_a_connect(world: &World) {
    let options = ws::ws_state::SessionOptions {
        handshake_within: Duration::from_millis(300),
        ..ws::ws_state::SessionOptions::default()
    };
    let url = serve_with(world.cluster.services(0), options).await;
    let mut socket = Socket::open(&url).await;
    assert_eq!(socket.ending().await, refused(4002));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_the_cluster_sends_its_clients_away() {
    let world = World::start().await;
    let team = world.team("isolated").await;
    let (mut socket, _) = world.listen(0, &team, &["*"], None).await;
    world.cluster.kill(1).await;
    world.cluster.kill(2).await;
    let words = connect_frame(&connect(&team, &["*"], None)).to_string();
    // A newcomer has no quorum to be let in by; one who was there is told when it is certain.
    let busy = Ending {
        error: Some(4003),
        close: Some(1013),
    };
    assert_eq!(first_words(&world.urls[0], Message::text(words)).await, busy);
    assert_eq!(
        socket.ending().await,
        Ending {
            error: None,
            close: Some(1012)
        }
    );
    world.cluster.stop().await;
}
