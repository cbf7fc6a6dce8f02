//! The methods of the socket, on three nodes: what they show, and to whom. `rpc_keys.rs` tests keys, `rpc_turns.rs` tests
//! requests beside other traffic.

use agentpost_proto::limits;
use agentpost_proto::time::parse_rfc3339;
use agentpost_raft_store::core::query;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

use crate::common::office::{Office, office};
use crate::common::web::{Call, Team};
use crate::common::{eventually, read_state};

impl Office {
    async fn send_thread(&self, node: usize, team: &Team, to: &str, body: &str, thread: Option<&str>) {
        let mail = json!({"from": "sender", "to": to, "body": body, "thread_id": thread});
        let call = Call::post("/api/v1/agents/messages", &mail);
        call.bearer(&team.key).to(&self.urls[node]).await.ok();
    }
}

/// The events of a page: seq, `data.to` and body.
fn events(page: &Value) -> Vec<(u64, String, String)> {
    let events = page["events"].as_array().unwrap().iter();
    let shown = |event: &Value| {
        let data = &event["event"]["data"];
        assert_eq!(event["seq"], event["event"]["kiteseq"]);
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        (event["seq"].as_u64().unwrap(), text(&data["to"]), text(&data["body"]))
    };
    events.map(shown).collect()
}

fn bodies(page: &Value) -> Vec<String> {
    events(page).into_iter().map(|(_, _, body)| body).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn methods_answer_with_history_and_figures() {
    let office = office().await;
    tokio::join!(
        history_is_newest_first(&office),
        history_goes_by_the_scopes_of_the_session(&office),
        history_holds_every_acknowledged_send(&office),
        large_history_comes_in_pages(&office),
        figures_of_the_team(&office),
        malformed_parameters_do_not_end_a_session(&office),
        unsupported_and_malformed_requests_are_answered(&office),
        requests_neither_replay_nor_move_a_cursor(&office),
    );
}

async fn history_is_newest_first(office: &Office) {
    let team = office.new_team("history").await;
    let (mut socket, _) = office.listen(1, &team, &["*"], None).await;
    let nothing = socket.answer("events.recent", json!({"limit": 100})).await;
    assert_eq!(nothing, json!({"events": []}));
    for n in 1..=5 {
        let thread = (n % 2 == 0).then_some("even");
        office.send_thread(n % 3, &team, "alpha", &n.to_string(), thread).await;
    }
    let all = socket.answer("events.recent", Value::Null).await;
    assert_eq!(bodies(&all), ["5", "4", "3", "2", "1"]);
    assert_eq!(all.get("next_before_seq"), None);
    let newest = &all["events"][0];
    // These fields are read by the vendor's command line.
    assert_eq!(newest["event"]["type"], "com.kite.agent.message");
    assert_eq!(newest["event"]["kitesummary"], "[agent msg] sender → alpha: 5");
    assert_eq!(newest["created_at"], newest["event"]["time"]);
    parse_rfc3339(newest["created_at"].as_str().unwrap()).unwrap();

    for (params, expected, next) in [
        (json!({"limit": 2}), &["5", "4"][..], Some(4)),
        (json!({"limit": 2, "before_seq": 4}), &["3", "2"], Some(2)),
        (json!({"limit": 2, "before_seq": 2}), &["1"], None),
        (json!({"limit": 0}), &["5"], Some(5)),
        (json!({"limit": u64::MAX, "before_seq": 3}), &["2", "1"], None),
        (json!({"thread_id": "even"}), &["4", "2"], None),
        (json!({"thread_id": "even", "limit": 1}), &["4"], Some(3)),
        (
            json!({"thread_id": "odd", "before_seq": null, "limit": null}),
            &[],
            None,
        ),
        (json!({"before_seq": 0}), &[], None),
        (json!({"limit": 1, "what": {"is": "this"}}), &["5"], Some(5)),
    ] {
        let page = socket.answer("events.recent", params.clone()).await;
        assert_eq!(bodies(&page), expected, "{params}");
        assert_eq!(page["next_before_seq"].as_u64(), next, "{params}");
    }
}

async fn history_goes_by_the_scopes_of_the_session(office: &Office) {
    let team = office.new_team("scoped history").await;
    let narrow = json!({"name": "n", "permissions": ["read"], "scopes": ["agent_to:a", "agent_to:b"]});
    let (_, narrow) = office.key(&team, narrow).await;
    let bound = office.bound(&team, "a").await;
    for agent in ["a", "b"] {
        let subscribe = Call::post("/v1/messages/subscribe", &json!({"topic": "news"}));
        subscribe.key(&team.key).agent(agent).to(&office.urls[0]).await.ok();
    }
    for to in ["a", "b", "c"] {
        office.send(1, &team, to, &format!("to {to}")).await;
    }
    let publish = json!({"topic": "news", "type": "news.item", "body": "news"});
    let publish = Call::post("/v1/messages", &publish).key(&team.key).agent("editor");
    publish.to(&office.urls[2]).await.ok();
    let all = &["topic:news news", "c to c", "b to b", "a to a"][..];
    for (team, scopes, expected) in [
        (&team, &["*"][..], all),
        (&team, &["agent_to:b"], &["b news", "b to b"]),
        (&team, &["agent_to:c", "agent_to:a"], &["a news", "c to c", "a to a"]),
        (
            &team,
            &["agent_to:a", "agent_to:b"],
            &["topic:news news", "b to b", "a to a"],
        ),
        (&team, &["agent_to:a", "type:kite"], all),
        (&team, &["source:github"], &[]),
        (&narrow, &["*"], &["topic:news news", "b to b", "a to a"]),
        (&bound, &["*"], &["a news", "a to a"]),
        (&bound, &["agent_to:a"], &["a news", "a to a"]),
    ] {
        let (mut socket, _) = office.listen(0, team, scopes, None).await;
        let page = socket.answer("events.recent", json!({})).await;
        let shown: Vec<String> = events(&page)
            .into_iter()
            .map(|(_, to, body)| format!("{to} {body}"))
            .collect();
        assert_eq!(shown, expected, "{scopes:?}");
    }
}

async fn history_holds_every_acknowledged_send(office: &Office) {
    let team = office.new_team("linearizable").await;
    let mut sockets = Vec::new();
    for node in 0..3 {
        sockets.push(
            office
                .listen(node, &team, &["source:nobody", "agent_to:a"], None)
                .await
                .0,
        );
    }
    for n in 0..30 {
        office.send(n % 3, &team, "a", &n.to_string()).await;
        let page = sockets[(n + 1) % 3].answer("events.recent", json!({"limit": 1})).await;
        assert_eq!(bodies(&page), [n.to_string()]);
    }
}

async fn large_history_comes_in_pages(office: &Office) {
    let team = office.new_team("large").await;
    // Each character takes two bytes in JSON, which makes the largest possible events; small ones are mixed in.
    let quotes = "\"".repeat(limits::BODY_BYTES_MAX);
    for n in 0..6 {
        let body = if n % 3 == 1 { quotes.clone() } else { n.to_string() };
        office.send(n % 3, &team, "a", &body).await;
    }
    let (mut socket, _) = office.listen(2, &team, &["*"], None).await;
    let (mut seen, mut before_seq) = (Vec::new(), Value::Null);
    loop {
        let page = socket.answer("events.recent", json!({"before_seq": before_seq})).await;
        assert!(socket.log.last().unwrap().len() < limits::WS_WRITE_BUFFER_BYTES_MAX);
        seen.extend(events(&page).into_iter().map(|(seq, ..)| seq));
        match page.get("next_before_seq") {
            Some(next) => before_seq = next.clone(),
            None => break,
        }
    }
    assert_eq!(seen, [6, 5, 4, 3, 2, 1]);
}

async fn figures_of_the_team(office: &Office) {
    let team = office.new_team("figures").await;
    let wanted = json!({"name": "b", "permissions": ["read", "admin"]});
    let (_, boss) = office.key(&team, wanted).await;
    for n in 0..4 {
        office.send(n % 3, &team, "a", "x").await;
    }
    for (key, permissions) in [(&team, &["write"][..]), (&boss, &["read", "admin"])] {
        let (mut socket, _) = office.listen(1, key, &["*"], None).await;
        for params in [json!({}), Value::Null] {
            let figures = socket.answer("dashboard.stats", params).await;
            let expected = json!({
                "team_id": team.id, "webhooks_today": 4, "active_endpoints": 0, "active_api_keys": 2,
                "current_key_permissions": permissions, "plan_name": "self-hosted", "active_sources_limit": 1000,
            });
            assert_eq!(figures, expected);
        }
    }
}

async fn malformed_parameters_do_not_end_a_session(office: &Office) {
    let team = office.new_team("nonsense").await;
    let admin = json!({"name": "admin", "permissions": ["admin"]});
    let (_, team) = office.key(&team, admin).await;
    let (mut socket, _) = office.listen(0, &team, &["*"], None).await;
    let long = "é".repeat(15_000);
    let deep = (0..60).fold(json!(1), |inner, _| json!([inner]));
    for (method, params) in [
        ("events.recent", json!({"limit": "100"})),
        ("events.recent", json!({"limit": -1})),
        ("events.recent", json!({"limit": 1.5})),
        ("events.recent", json!({"limit": [1]})),
        ("events.recent", json!({"before_seq": "x"})),
        ("events.recent", json!({"before_seq": -4})),
        ("events.recent", json!({"thread_id": 5})),
        ("events.recent", json!({"thread_id": ""})),
        ("events.recent", json!({"thread_id": "a\nb"})),
        ("events.recent", json!({"thread_id": long})),
        ("events.recent", json!([100])),
        ("events.recent", json!(100)),
        ("events.recent", json!(deep)),
        ("keys.create", json!({"name": 7})),
        ("keys.create", json!({"name": ""})),
        ("keys.create", json!({"name": long})),
        ("keys.create", json!({"permissions": ["root"]})),
        ("keys.create", json!({"permissions": []})),
        ("keys.create", json!({"permissions": "read"})),
        ("keys.create", json!({"scopes": []})),
        ("keys.create", json!({"scopes": ["everything"]})),
        ("keys.create", json!({"scopes": vec!["*"; 65]})),
        ("keys.create", json!({"expires_at": "tomorrow"})),
        ("keys.create", json!({"expires_at": "2001-01-01T00:00:00Z"})),
        ("keys.create", json!(["x", ["*"], ["admin"], null])),
        ("keys.revoke", json!({})),
        ("keys.revoke", Value::Null),
        ("keys.revoke", json!({"id": 1})),
        ("keys.revoke", json!({"id": "key_1"})),
        ("keys.revoke", json!({"id": long})),
        ("keys.revoke", json!({"id": format!("key_{}", "0".repeat(32))})),
        ("Keys.list", json!({})),
        ("events.recent ", json!({})),
        ("", json!({})),
        (&long, json!({})),
    ] {
        let why = socket.refusal(method, params.clone()).await;
        let context = format!("{method:.40} {:.60} {why}", params.to_string());
        assert!(!why.is_empty() && why.len() < 300, "{context}");
        assert!(!why.contains(&"é".repeat(65)), "{context}");
    }
    // No request created a key.
    let keys = socket.answer("keys.list", json!({})).await;
    assert_eq!(keys["keys"].as_array().unwrap().len(), 2);
}

async fn unsupported_and_malformed_requests_are_answered(office: &Office) {
    let team = office.new_team("odd frames").await;
    let (mut socket, _) = office.listen(0, &team, &["*"], None).await;
    let long = "é".repeat(15_000);
    for method in [
        "list",
        "create",
        "deactivate",
        "rotate_secret",
        "github.prepare_install",
    ] {
        let why = socket.refusal(&format!("hooks.{method}"), json!({"source": "x"})).await;
        let expected = format!("hooks.{method} is not supported: this server takes no webhooks in");
        assert_eq!(why, expected);
    }
    for (frame, id) in [
        (json!({"id": "no method"}), "no method"),
        (json!({"id": "m", "method": {"a": 1}}), "m"),
        (json!({"id": "", "method": "dashboard.stat"}), ""),
        (json!({"id": long, "method": "dashboard.stats"}), &long[..128]),
    ] {
        let mut frame = frame;
        frame["type"] = json!("request");
        socket.say(&frame).await;
        let answer = socket.frame().await;
        assert_eq!((&answer["id"], &answer["ok"]), (&json!(id), &json!(false)), "{answer}");
        assert!(answer.to_string().len() < 600);
    }
    // The request is sent in two frames, because the size of one is limited.
    let (head, tail) = (r#"{"type":"request","id":"large","method":"keys.list","x":""#, "\"}");
    let pieces = [head.to_owned() + &"y".repeat(60_000), "y".repeat(10_000) + tail];
    for (piece, kind) in pieces.into_iter().zip([Data::Text, Data::Continue]) {
        let frame = Frame::message(piece, OpCode::Data(kind), kind == Data::Continue);
        socket.say_raw(Message::Frame(frame)).await;
    }
    let answer = socket.frame().await;
    assert_eq!(
        answer["payload"]["error"], "a request has at most 65536 bytes",
        "{answer}"
    );
    socket.answer("keys.list", json!({})).await;
}

/// Connects as the vendor's management commands do, with any key.
async fn requests_neither_replay_nor_move_a_cursor(office: &Office) {
    let team = office.new_team("cursors").await;
    let bound = office.bound(&team, "alpha").await;
    let narrow = json!({"name": "n", "permissions": ["read"], "scopes": ["agent_to:alpha"]});
    let (_, narrow) = office.key(&team, narrow).await;
    let old = 7;
    for n in 0..old {
        office.send(n % 3, &team, "alpha", &format!("old {n}")).await;
    }
    let known = 3;
    let (mut listener, _) = office.listen(0, &bound, &["agent_to:alpha"], None).await;
    listener.bodies(old).await;
    listener.ack(known).await;
    let id = team.id.parse().unwrap();
    let cursor = async |node: usize, agent: &str, client_id: &str| {
        let state = read_state(&office.cluster.services(node)).await;
        query::inbox::cursor(&*state, id, agent, client_id).unwrap()
    };
    eventually("a stored ack", async || cursor(0, "alpha", "").await).await;
    listener.cut();
    let mut now = old as u64;
    for (node, key) in [(0, &team), (1, &bound), (2, &narrow), (1, &team), (2, &bound)] {
        let (mut socket, last_seq) = office.listen(node, key, &["*"], None).await;
        assert_eq!(last_seq, now);
        for invented in [1, 2, now + 1, 1_000_000, u64::MAX] {
            socket.ack(invented).await;
        }
        let page = socket.answer("events.recent", json!({"limit": 3})).await;
        assert_eq!(events(&page)[0].0, now);
        socket.ack(now).await;
        socket.answer("dashboard.stats", json!({})).await;
        assert!(
            socket.log.iter().all(|frame| !frame.contains(r#""type":"event""#)),
            "{:?}",
            socket.log
        );
        // Messages that arrive during the session are shown; acknowledging them moves no cursor either.
        office.send(node, &team, "alpha", &format!("live {now}")).await;
        now += 1;
        assert_eq!(socket.event().await.0, now);
        socket.ack(now).await;
        socket.roundtrip().await;
    }
    for node in 0..3 {
        for client_id in ["", "null"] {
            assert_eq!(cursor(node, "", client_id).await, None);
        }
        let mailbox = cursor(node, "alpha", "").await.unwrap();
        assert_eq!((mailbox.seq, mailbox.acked), (known, true));
    }
    let (mut listener, last_seq) = office.listen(1, &bound, &["agent_to:alpha"], None).await;
    assert_eq!(last_seq, known);
    for seq in known + 1..=now {
        assert_eq!(listener.event().await.0, seq);
    }
}
