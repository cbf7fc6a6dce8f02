//! Requests over the socket beside other traffic: their order, events, slow readers, and nodes that stop or have no quorum.

use std::time::Duration;

use agentpost_node::server::ws;
use agentpost_node::server::ws::rpc::REQUESTS_WAITING_MAX;
use agentpost_testkit::socket::{Ending, Socket};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::common::eventually;
use crate::common::office::{Office, connect, office};

fn bodies(page: &Value) -> Vec<&str> {
    let events = page["events"].as_array().unwrap().iter();
    events
        .map(|event| event["event"]["data"]["body"].as_str().unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_answered_in_order_without_delaying_events() {
    let office = office().await;
    tokio::join!(
        many_at_once_are_answered_in_order(&office),
        events_pass_requests_that_wait(&office),
    );
}

async fn many_at_once_are_answered_in_order(office: &Office) {
    let team = office.new_team("at once").await;
    let (_, team) = office.key(&team, json!({"name": "a", "permissions": ["admin"]})).await;
    office.send(0, &team, "a", "x").await;
    let (mut socket, _) = office.listen(1, &team, &["*"], None).await;
    let methods = [
        "events.recent",
        "keys.create",
        "no.such",
        "keys.list",
        "dashboard.stats",
    ];
    // There are more requests than may wait; the rest stays in the socket until there is room.
    let count = 3 * REQUESTS_WAITING_MAX;
    for at in 0..count {
        let request = json!({"type": "request", "id": at.to_string(), "method": methods[at % methods.len()]});
        socket.say(&request).await;
        socket.ack(at as u64).await;
    }
    let mut keys = 2;
    for at in 0..count {
        let answer = socket.frame().await;
        assert_eq!(
            (&answer["type"], &answer["id"]),
            (&json!("response"), &json!(at.to_string()))
        );
        let payload = &answer["payload"];
        match methods[at % methods.len()] {
            "no.such" => assert_eq!(answer["ok"], false),
            "keys.create" => keys += 1,
            // Each request sees the effects of the earlier ones.
            "keys.list" => assert_eq!(payload["keys"].as_array().unwrap().len(), keys),
            "dashboard.stats" => assert_eq!(payload["active_api_keys"], keys),
            _ => assert_eq!(bodies(payload), ["x"]),
        }
    }
}

/// The reader pauses, and answers of a megabyte each fill all buffers, so most requests have not begun when the message
/// comes.
async fn events_pass_requests_that_wait(office: &Office) {
    let team = office.new_team("beside").await;
    let body = "x".repeat(100_000);
    for n in 0..10 {
        office.send(n % 3, &team, "other", &body).await;
    }
    let mut socket = Socket::open_narrow(&office.urls[1]).await;
    socket.greet(connect(&team, &["*"], None)).await;
    let requests = 40;
    for at in 0..requests {
        let request = json!({"type": "request", "id": at.to_string(), "method": "events.recent"});
        socket.say(&request).await;
    }
    office.send(0, &team, "a", "in between").await;
    socket.ack(11).await;
    let (mut answered, mut passed) = (0, None);
    while answered < requests {
        let frame = socket.frame().await;
        match frame["type"].as_str() {
            Some("event") => passed = Some(answered),
            _ => {
                assert_eq!(
                    (&frame["id"], &frame["ok"]),
                    (&json!(answered.to_string()), &json!(true))
                );
                answered += 1;
            }
        }
    }
    assert!(passed.is_some_and(|answered| answered < requests - 1), "{passed:?}");
    socket.ping().await;
}

/// A slow reader delays only its own answers.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_goes_on_while_its_reader_takes_nothing() {
    let office = office().await;
    let team = office.new_team("slow reader").await;
    let (_, team) = office.key(&team, json!({"name": "a", "permissions": ["admin"]})).await;
    let body = "x".repeat(100_000);
    for n in 0..120 {
        office.send(n % 3, &team, "alpha", &body).await;
    }
    let node = office.cluster.follower().await;
    let options = ws::ws_state::SessionOptions {
        // This is longer than any wait of the test.
        stalled_max: Duration::from_secs(600),
        ..ws::ws_state::SessionOptions::default()
    };
    let url = office.cluster.serve_ws(node, options).await;
    let mut socket = Socket::open_narrow(&url).await;
    socket.greet(connect(&team, &["agent_to:alpha"], None)).await;
    for at in 0..10 {
        let request = json!({"type": "request", "id": at.to_string(), "method": "keys.create"});
        socket.say(&request).await;
    }
    let shown = |line: &str| office.cluster.services(node).metrics_text().contains(line);
    // Events alternate with requests. Wherever the reader stops, the current request is completed.
    for _ in 0..20 {
        socket.frame().await;
        eventually("no proposal under way", async || {
            shown("agentpost_proposals_in_flight 0").then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_every_request_gets_an_error() {
    let office = office().await;
    let team = office.new_team("isolated").await;
    let (_, team) = office.key(&team, json!({"name": "a", "permissions": ["admin"]})).await;
    let (mut socket, _) = office.listen(0, &team, &["*"], None).await;
    socket.answer("keys.list", json!({})).await;
    office.cluster.kill(1).await;
    office.cluster.kill(2).await;
    let methods = [
        "events.recent",
        "keys.list",
        "keys.create",
        "dashboard.stats",
        "keys.create",
    ];
    for (at, method) in methods.iter().enumerate() {
        let request = json!({"type": "request", "id": at.to_string(), "method": method});
        socket.say(&request).await;
    }
    for (at, method) in methods.iter().enumerate() {
        let answer = socket.frame_or_ending().await.expect("an answer to each");
        assert_eq!(
            (&answer["id"], &answer["ok"]),
            (&json!(at.to_string()), &json!(false)),
            "{method}"
        );
        let why = answer["payload"]["error"].as_str().unwrap();
        let unknown = *method == "keys.create" && why.starts_with("outcome unknown: ");
        assert!(unknown || why.starts_with("not carried out: "), "{method}: {why}");
    }
    let away = Ending {
        error: None,
        close: Some(1012),
    };
    assert_eq!(socket.ending().await, away);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_count_as_requests_of_their_key() {
    let office = Office::start(1, "[limits]\nburst_requests = 6\nburst_window_s = 3600\n").await;
    let team = office.new_team("bursts").await;
    let (mut socket, _) = office.listen(0, &team, &["*"], None).await;
    // The handshake was the first request.
    for _ in 1..6 {
        socket.answer("dashboard.stats", json!({})).await;
    }
    let why = socket.refusal("events.recent", json!({})).await;
    assert!(why.starts_with("more than 6 requests in 3600 s"), "{why}");
    // A request that reads nothing is not counted, and the session continues.
    assert!(socket.refusal("no.such", json!({})).await.contains("unknown method"));
    socket.ping().await;
    let metrics = office.cluster.services(0).metrics_text();
    for line in [
        r#"agentpost_ws_requests_total{method="dashboard.stats"} 5"#,
        r#"agentpost_ws_requests_total{method="events.recent"} 1"#,
        r#"agentpost_ws_requests_total{method="refused"} 1"#,
    ] {
        assert!(metrics.contains(line), "{line} not in\n{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_answers_what_waits() {
    let office = office().await;
    let team = office.new_team("stopping").await;
    let mut socket = Socket::open_narrow(&office.urls[1]).await;
    socket.greet(connect(&team, &["*"], None)).await;
    let requests = REQUESTS_WAITING_MAX;
    for at in 0..requests {
        let request = json!({"type": "request", "id": at.to_string(), "method": "events.recent"});
        socket.say(&request).await;
    }
    let stopping = office.cluster.stop_node(1);
    let reading = async {
        let mut answered = 0;
        while let Some(frame) = socket.frame_or_ending().await {
            assert_eq!(
                (&frame["type"], &frame["id"]),
                (&json!("response"), &json!(answered.to_string()))
            );
            answered += 1;
        }
        answered
    };
    let (answered, ()) = tokio::join!(reading, stopping);
    // Requests that the node had not read are not answered; the close frame tells the client.
    assert_eq!(socket.ended().close, Some(1012));
    assert!(answered <= requests, "{answered}");
    let (mut elsewhere, _) = office.listen(0, &team, &["*"], None).await;
    elsewhere.answer("events.recent", json!({})).await;
    elsewhere.say_raw(Message::Close(None)).await;
    tokio::time::timeout(Duration::from_secs(30), elsewhere.ending())
        .await
        .unwrap();
}
