//! What a session answers, and how it ends, on three nodes.

use std::time::Duration;

use agentpost_node::server::ws;
use agentpost_node::server::ws::admission::SESSIONS_PER_AGENT_MAX;
use agentpost_testkit::socket::{Ending, Socket, refused};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::common::eventually;
use crate::common::office::{Office, connect, office};
use crate::common::web::{Call, Team};

/// Sends one message on a new socket and returns how it ends.
async fn first_words(url: &str, words: Message) -> Ending {
    let mut socket = Socket::open(url).await;
    socket.say_raw(words).await;
    socket.ending().await
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_answer_every_kind_of_frame() {
    let office = office().await;
    tokio::join!(
        the_greeting(&office),
        refusals_come_in_band(&office),
        garbage_ends_a_session_and_the_unknown_does_not(&office),
        requests_are_answered_in_order(&office),
        scopes_decide_what_is_seen(&office),
        mail_of_both_faces_arrives_alike(&office),
        teams_see_only_their_own(&office),
        plain_http_is_told(&office),
    );
}

async fn the_greeting(office: &Office) {
    let limits = json!({"monthly_events": 5, "daily_sends": 0});
    let team = Team::with_limits(&office.urls[0], &office.admin, "greeting", &limits).await;
    office.send(0, &team, "alpha", "x").await;
    let mut socket = Socket::open(&office.urls[1]).await;
    socket.say(&connect(&team, &["*"], None).frame()).await;
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
    let mut named = Socket::open(&office.urls[1]).await;
    let connected = named.greet(connect(&team, &["*"], Some("mine"))).await;
    assert_eq!(connected["client_id"], "mine");
    let mut empty = Socket::open(&office.urls[1]).await;
    let connected = empty.greet(connect(&team, &["*"], Some(""))).await;
    assert_ne!(connected["client_id"], "");
}

async fn refusals_come_in_band(office: &Office) {
    let team = office.new_team("refusals").await;
    let other = office.new_team("another").await;
    let (_, narrow) = office
        .key(
            &team,
            json!({"name": "n", "permissions": ["read"], "scopes": ["agent_to:a"]}),
        )
        .await;
    let url = &office.urls[2];
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
        let words = request.frame();
        assert_eq!(
            first_words(url, Message::text(words.to_string())).await,
            refused(code),
            "{words}"
        );
    }
    let mut version = connect(&team, all, None).frame();
    version["version"] = json!(2);
    let mut tokenless = connect(&team, all, None).frame();
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

async fn garbage_ends_a_session_and_the_unknown_does_not(office: &Office) {
    let team = office.new_team("garbage").await;
    let (mut socket, _) = office.listen(0, &team, &["*"], None).await;
    for ignored in [
        r#"{"type":"nack","seq":1}"#,
        r#"{"type":"ack","seq":"1"}"#,
        r#"{"type":"hello","connect":{}}"#,
    ] {
        socket.say_raw(Message::text(ignored)).await;
    }
    socket.ping().await;
    office.send(1, &team, "a", "still here").await;
    assert_eq!(socket.event().await.1, "still here");
    let again = connect(&team, &["*"], None).frame().to_string();
    for garbage in [
        "{",
        "[]",
        "{}",
        r#"{"type":7}"#,
        r#"{"type":"request"}"#,
        again.as_str(),
    ] {
        let (mut socket, _) = office.listen(0, &team, &["*"], None).await;
        socket.say_raw(Message::text(garbage)).await;
        assert_eq!(socket.ending().await, refused(4002), "{garbage}");
    }
}

async fn requests_are_answered_in_order(office: &Office) {
    let team = office.new_team("requests").await;
    office.send(0, &team, "a", "old").await;
    let (mut socket, _) = office.listen(1, &team, &["*"], None).await;
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

async fn scopes_decide_what_is_seen(office: &Office) {
    let team = office.new_team("scopes").await;
    let narrow = json!({"name": "n", "permissions": ["read"], "scopes": ["agent_to:a", "agent_to:b"]});
    let (_, narrow) = office.key(&team, narrow).await;
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
        let (socket, _) = office.listen(2, team, scopes, None).await;
        expected.push((socket, scopes, bodies));
    }
    for to in ["a", "b", "c"] {
        office.send(0, &team, to, &format!("to {to}")).await;
    }
    for (mut socket, scopes, bodies) in expected {
        assert_eq!(socket.bodies(bodies.len()).await, *bodies, "{scopes:?}");
        socket.silent().await;
    }
}

async fn mail_of_both_faces_arrives_alike(office: &Office) {
    let team = office.new_team("faces").await;
    let (mut socket, _) = office.listen(0, &team, &["agent_to:alpha"], None).await;
    let sent = |body: Value| {
        let mail = json!({"toAgentId": "alpha", "type": "task.done", "body": body, "threadId": "t-1"});
        Call::post("/v1/messages", &mail).key(&team.key).agent("beta")
    };
    sent(json!({"nested": {"list": [1, 2.5, null]}}))
        .to(&office.urls[1])
        .await
        .ok();
    let event = socket.frame().await["event"].clone();
    assert_eq!(event["type"], "com.kite.agent.message");
    assert_eq!(event["source"], "https://getkite.sh/agents/beta");
    assert_eq!(event["data"]["type"], "task.done");
    assert_eq!(event["data"]["thread_id"], "t-1");
    assert_eq!(event["data"]["body"], r#"{"nested":{"list":[1,2.5,null]}}"#);
    sent(json!("plain ä \u{1}\n")).to(&office.urls[1]).await.ok();
    assert_eq!(socket.event().await.1, "plain ä \u{1}\n");
    office.send(2, &team, "alpha", "from kite").await;
    let event = socket.frame().await["event"].clone();
    assert_eq!(
        event["data"],
        json!({"from": "sender", "to": "alpha", "body": "from kite"})
    );
}

async fn teams_see_only_their_own(office: &Office) {
    let (one, two) = (office.new_team("one").await, office.new_team("two").await);
    let (mut socket, _) = office.listen(0, &one, &["*", "agent_to:a"], None).await;
    let (mut mailbox, _) = office.listen(0, &one, &["agent_to:a"], None).await;
    office.send(0, &two, "a", "secret").await;
    socket.silent().await;
    mailbox.silent().await;
    office.send(0, &one, "a", "ours").await;
    assert_eq!(socket.event().await.1, "ours");
    assert_eq!(mailbox.event().await.1, "ours");
}

async fn plain_http_is_told(office: &Office) {
    let text = Call::get("/ws").to(&office.urls[0]).await.error(400);
    assert!(
        text.contains("upgrade") || text.contains("Upgrade") || text.contains("Connection"),
        "{text}"
    );
    Call::post("/ws", &json!({})).to(&office.urls[0]).await.error(405);
}

#[tokio::test(flavor = "multi_thread")]
async fn how_a_session_ends() {
    let office = office().await;
    tokio::join!(
        one_inbox_has_a_bounded_number_of_sessions(&office),
        silence_is_not_endless(&office),
        nobody_waits_for_ever_for_a_connect(&office),
    );
    let team = office.new_team("metrics").await;
    let (socket, _) = office.listen(0, &team, &["*"], None).await;
    let services = office.cluster.services(0);
    assert!(services.metrics_text().contains("agentpost_ws_sessions 1"));
    socket.cut();
    eventually("no session in the metrics", async || {
        let metrics = services.metrics_text();
        metrics.contains("agentpost_ws_sessions 0").then_some(())
    })
    .await;
}

async fn one_inbox_has_a_bounded_number_of_sessions(office: &Office) {
    let team = office.new_team("crowd").await;
    let mut sockets = Vec::new();
    for _ in 0..SESSIONS_PER_AGENT_MAX {
        sockets.push(office.listen(0, &team, &["agent_to:a"], None).await.0);
    }
    let words = connect(&team, &["agent_to:a"], None).frame().to_string();
    let busy = Ending {
        error: Some(4003),
        close: Some(1013),
    };
    assert_eq!(
        first_words(&office.urls[0], Message::text(words)).await,
        busy,
        "not final: the client comes back"
    );
    office.listen(1, &team, &["agent_to:a"], None).await;
    office.listen(0, &team, &["agent_to:b"], None).await;
    sockets.pop().unwrap().cut();
    eventually("room for one more session", async || {
        let mut socket = Socket::open(&office.urls[0]).await;
        socket.say(&connect(&team, &["agent_to:a"], None).frame()).await;
        socket
            .frame_or_ending()
            .await
            .filter(|frame| frame["type"] == "connected")
    })
    .await;
}

async fn silence_is_not_endless(office: &Office) {
    let team = office.new_team("silence").await;
    let options = ws::ws_state::SessionOptions {
        ping_every: Duration::from_millis(100),
        silent_max: Duration::from_secs(3),
        ..ws::ws_state::SessionOptions::default()
    };
    let url = office.cluster.serve_ws(2, options).await;
    let (mut reading, _) = Socket::connect(&url, connect(&team, &["*"], None)).await;
    let (mut busy, _) = Socket::connect(&url, connect(&team, &["*"], None)).await;
    // One client reads and so answers pings; the other runs a handler until the node gives it up.
    let reads = async {
        while reading.frame_within(Duration::from_millis(50)).await.is_none() {}
        panic!("the session that reads got a frame");
    };
    tokio::select! {
        () = busy.arrived("4004") => {}
        () = reads => {}
    }
    assert_eq!(busy.ending().await, refused(4004));
    office.send(0, &team, "a", "still here").await;
    assert_eq!(reading.event().await.1, "still here");
}

async fn nobody_waits_for_ever_for_a_connect(office: &Office) {
    let options = ws::ws_state::SessionOptions {
        handshake_within: Duration::from_millis(300),
        ..ws::ws_state::SessionOptions::default()
    };
    let url = office.cluster.serve_ws(0, options).await;
    let mut socket = Socket::open(&url).await;
    assert_eq!(socket.ending().await, refused(4002));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_the_cluster_sends_its_clients_away() {
    let office = office().await;
    let team = office.new_team("isolated").await;
    let (mut socket, _) = office.listen(0, &team, &["*"], None).await;
    office.cluster.kill(1).await;
    office.cluster.kill(2).await;
    let words = connect(&team, &["*"], None).frame().to_string();
    // Without a quorum a new session is refused at once; an open one is closed when the node is sure.
    let busy = Ending {
        error: Some(4003),
        close: Some(1013),
    };
    assert_eq!(first_words(&office.urls[0], Message::text(words)).await, busy);
    assert_eq!(
        socket.ending().await,
        Ending {
            error: None,
            close: Some(1012)
        }
    );
}
