//! Bad input: each kind gets its status in the error format of its API, and nothing is stored.

mod login;
mod members;

use axum::http::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::common::office::{Office, office};
use crate::common::web::{Answer, Call, Team, mail, new_key};

fn is_of_this_face(answer: &Answer, face: &str) {
    let shape: Vec<&str> = answer.body.as_object().unwrap().keys().map(String::as_str).collect();
    if face == "kite" {
        assert!(
            shape.iter().all(|key| ["error", "retry_after_secs"].contains(key)),
            "{shape:?}"
        );
    } else {
        assert_eq!(answer.body["success"], false);
        assert!(answer.body["code"].is_string());
        if let Some(details) = answer.body.get("details") {
            let detail = &details[0];
            assert!(
                detail["path"][0] == detail["field"] && detail["message"].is_string(),
                "{detail}"
            );
        }
    }
}

fn post(body: &Value) -> Call {
    Call::post("/v1/messages", body)
}

fn raw(body: impl Into<bytes::Bytes>) -> Call {
    Call::new(Method::POST, "/api/v1/messages").raw(body)
}

fn with(key: &str, value: Value) -> Call {
    let mut body = mail("beta", &json!({ "n": 1 }));
    body[key] = value;
    post(&body)
}

fn sends() -> Vec<(Call, u16)> {
    let nested = format!("{}1{}", "[".repeat(40), "]".repeat(40));
    let deep = format!(r#"{{"toAgentId":"beta","type":"t","body":{{"a":{nested}}}}}"#);
    let keys: Vec<String> = (0..1001).map(|n| format!("\"k{n}\":0")).collect();
    let wide = format!(r#"{{"toAgentId":"beta","type":"t","body":{{{}}}}}"#, keys.join(","));
    let number = format!(r#"{{"toAgentId":"beta","type":"t","body":{{"n":{}}}}}"#, "9".repeat(65));
    vec![
        (raw(""), 400),
        (raw("{"), 400),
        (raw("not json"), 400),
        (raw("[]"), 400),
        (raw("null"), 400),
        (raw("\"text\""), 400),
        (raw(&b"{\"toAgentId\":\"\xff\"}"[..]), 400),
        (raw(r#"{"toAgentId":"beta","type":"t","body":{}} trailing"#), 400),
        (
            raw(r#"{"toAgentId":"beta","toAgentId":"gamma","type":"t","body":{}}"#),
            400,
        ),
        (raw(r#"{"toAgentId":"beta","type":"t","body":{"a":1,"a":2}}"#), 400),
        (raw(r#"{"toAgentId":"beta","type":"t","body":{"a":"\ud800"}}"#), 400),
        (raw("[".repeat(100_000)), 400),
        (raw(deep), 400),
        (raw(wide), 400),
        (raw(number), 400),
        (post(&json!({})), 400),
        (post(&json!({ "type": "t", "body": {} })), 400),
        (with("toAgentId", json!(["beta"])), 400),
        (with("toAgentId", json!("a/b")), 400),
        (with("toAgentId", json!("..")), 400),
        (with("toAgentId", json!("x".repeat(129))), 400),
        (with("toAgentId", json!("system")), 404),
        (with("topic", json!("news")), 400),
        (with("type", Value::Null), 400),
        (with("type", json!("")), 400),
        (with("type", json!("a b")), 400),
        (with("type", json!("x".repeat(129))), 400),
        (with("body", Value::Null), 400),
        (with("body", json!([1])), 400),
        (with("body", json!(1)), 400),
        (with("body", json!(true)), 400),
        (with("body", json!("x".repeat(256 * 1024 + 1))), 413),
        (with("body", json!({ "x": "y".repeat(400 * 1024) })), 413),
        (with("threadId", json!("a\n")), 400),
        (with("replyToId", json!(5)), 400),
        (with("priority", json!("immediately")), 400),
        (with("callbackUrl", json!("javascript:alert(1)")), 400),
        (with("metadata", json!([])), 400),
        (with("expiresAt", json!("tomorrow")), 400),
        (with("expiresAt", json!("2001-01-01T00:00:00Z")), 400),
        (post(&json!({ "topic": "a b", "type": "t", "body": {} })), 400),
        (post(&json!({ "topic": "", "type": "t", "body": {} })), 400),
        (post(&json!({ "topic": ["news"], "type": "t", "body": {} })), 400),
        (post(&json!({ "topic": "x".repeat(129), "type": "t", "body": {} })), 400),
        (post(&json!({ "topic": "news", "type": "t" })), 400),
        (with("type", json!("t")).once(""), 400),
        (with("type", json!("t")).once(&"x".repeat(129)), 400),
        (with("type", json!("t")).once("ä"), 400),
        (with("type", json!("t")).once("a").once("b"), 400),
        (with("type", json!("t")).agent("b c"), 400),
        (with("type", json!("t")).agent("alpha").agent("alpha"), 400),
        (Call::post("/v1/messages/batch", &json!({})), 400),
        (Call::post("/v1/messages/batch", &json!([])), 400),
        (Call::post("/v1/messages/batch", &json!({ "messages": {} })), 400),
        (
            Call::post(
                "/v1/messages/batch",
                &json!({ "messages": [mail("beta", &json!("x".repeat(1 << 20)))] }),
            ),
            413,
        ),
    ]
}

fn reads() -> Vec<(Call, u16)> {
    let list = |query: &str| Call::get(format!("/v1/messages?{query}"));
    let id = format!("/v1/messages/msg_{}", "a".repeat(32));
    vec![
        (list("limit=0"), 400),
        (list("limit=201"), 400),
        (list("limit=ten"), 400),
        (list("limit=1&limit=2"), 400),
        (list("unreadOnly=yes"), 400),
        (list("order=random"), 400),
        (list("wait=61"), 400),
        (list("wait=soon"), 400),
        (list("consistency=eventual"), 400),
        (list("cursor="), 400),
        (list("cursor=eyJpZCI6Im1zZ19jbF84YTNmMjliMSJ9"), 400),
        (list("cursor=AWEAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"), 400),
        (list("cursor=%00%ff"), 400),
        (list("status=lost"), 400),
        (list("offset=5000"), 400),
        (list("fromAgentId=%F0%9F%98%80"), 400),
        (Call::get(&id), 404),
        (Call::get("/v1/messages/%ff"), 404),
        (Call::get(format!("{id}?consistency=maybe")), 400),
        (Call::patch(&id, &json!({ "read": true })), 404),
        (Call::patch(&id, &json!({ "read": "yes" })), 400),
        (Call::patch(&id, &json!({})), 400),
        (Call::patch(&id, &json!([true])), 400),
        (Call::patch(&id, &json!({})).raw("{"), 400),
        (Call::patch("/v1/messages/x", &json!({ "read": true })), 404),
        (Call::get("/v1/messages/batch"), 405),
        (Call::delete("/v1/messages"), 405),
        (Call::new(Method::PUT, &id), 405),
        (Call::get("/v1/nothing"), 404),
        (Call::get("/api/v2/messages"), 404),
        (Call::get("/"), 404),
        (Call::get("/v1/messages/a/b"), 404),
    ]
}

/// Bodies that no route with an object body accepts.
fn no_objects(path: &str) -> Vec<(Call, u16)> {
    let raw = |body: &str| Call::new(Method::POST, path).raw(body.to_owned());
    let mut cases: Vec<_> = ["", "{", "[]", "null", "7", "not json", "{} x"]
        .map(|body| (raw(body), 400))
        .into();
    let no_text = Call::new(Method::POST, path).raw(&b"{\"topic\":\"\xff\"}"[..]);
    cases.push((no_text, 400));
    cases
}

fn subscriptions() -> Vec<(Call, u16)> {
    let raw = |body: &str| Call::new(Method::POST, "/api/v1/messages/subscribe").raw(body.to_owned());
    let unsubscribe = |query: &str| Call::delete(format!("/v1/messages/subscribe{query}"));
    let (hook, other) = ("https://hook.example/", "https://other.example/");
    let large = json!({ "topic": "t", "x": "y".repeat(64 * 1024) });
    let bad = [
        json!({}),
        json!({ "topic": null }),
        json!({ "topic": 7 }),
        json!({ "topic": "" }),
        json!({ "topic": "a b" }),
        json!({ "topic": "x".repeat(129) }),
        json!({ "topic": "t", "webhookUrl": "" }),
        json!({ "topic": "t", "webhookUrl": [hook] }),
        json!({ "topic": "t", "callbackUrl": true }),
        json!({ "topic": "t", "webhookUrl": "http://hook.example/" }),
        json!({ "topic": "t", "webhookUrl": hook, "callbackUrl": other }),
        json!({ "topic": "t", "webhookUrl": null, "callbackUrl": hook }),
    ];
    let mut cases = no_objects("/api/v1/messages/subscribe");
    cases.extend(bad.map(|body| (Call::post("/v1/messages/subscribe", &body), 400)));
    cases.extend(vec![
        (raw(r#"{"topic":"t","topic":"t"}"#), 400),
        (raw(r#"{"topic":"t","webhookUrl":"\ud800"}"#), 400),
        (Call::post("/v1/messages/subscribe", &large), 413),
        (unsubscribe(""), 400),
        (unsubscribe("?topic="), 400),
        (unsubscribe("?topic=a%20b"), 400),
        (unsubscribe("?topic=a&topic=b"), 400),
        (unsubscribe("?topic=%ff"), 400),
        (unsubscribe("?topic=a").json(&json!({ "topic": "b" })), 400),
        (unsubscribe("").json(&json!({ "topic": ["a"] })), 400),
        (unsubscribe("").json(&json!({})), 400),
        (unsubscribe("?topic=a").raw("["), 400),
        (unsubscribe("?topic=a").json(&large), 413),
        (Call::new(Method::PATCH, "/v1/messages/subscribe"), 405),
        (Call::get("/v1/messages/subscribe?consistency=soon"), 400),
    ]);
    cases
}

fn webhooks() -> Vec<(Call, u16)> {
    let raw = |body: String| Call::new(Method::POST, "/api/v1/messages/webhook").raw(body);
    let hook = "https://hook.example/";
    let bad = [
        json!({}),
        json!({ "url": hook }),
        json!({ "events": ["message.topic"] }),
        json!({ "url": null, "events": ["message.topic"] }),
        json!({ "url": [hook], "events": ["message.topic"] }),
        json!({ "url": hook, "events": [] }),
        json!({ "url": hook, "events": "message.topic" }),
        json!({ "url": hook, "events": ["message.sent"] }),
        json!({ "url": hook, "events": ["message.topic", null] }),
        json!({ "url": hook, "events": vec!["message.topic"; 1000] }),
        json!({ "url": hook, "events": { "message.topic": true } }),
        json!({ "url": "hook.example", "events": ["message.topic"] }),
    ];
    let deep = format!(r#"{{"url":"{hook}","events":{}}}"#, "[".repeat(50_000));
    let twice = format!(r#"{{"url":"{hook}","url":"{hook}","events":["message.topic"]}}"#);
    let large = json!({ "url": hook, "events": ["message.topic"], "x": "y".repeat(64 * 1024) });
    let mut cases = no_objects("/v1/messages/webhook");
    cases.extend(bad.map(|body| (Call::post("/v1/messages/webhook", &body), 400)));
    cases.extend([
        (raw(deep), 400),
        (raw(twice), 400),
        (raw(large.to_string()), 413),
        (Call::new(Method::PUT, "/v1/messages/webhook"), 405),
        (Call::get("/v1/messages/webhook?consistency=soon"), 400),
    ]);
    cases
}

fn deliveries() -> Vec<(Call, u16)> {
    let list = |query: &str| Call::get(format!("/v1/deliveries?{query}"));
    let post = |path: String| Call::new(Method::POST, path);
    let id = format!("/api/v1/deliveries/dlv_{}", "0a".repeat(16));
    let mut cases = vec![
        (list("state="), 400),
        (list("state=none"), 400),
        (list("state=Dead"), 400),
        (list("state=dead&state=dead"), 400),
        (list("limit=0"), 400),
        (list("limit=201"), 400),
        (list("limit=many"), 400),
        (list("order=newest"), 400),
        (list("cursor="), 400),
        (list("cursor=AWEAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"), 400),
        (list("cursor=%ff"), 400),
        (list("consistency=eventual"), 400),
        (Call::get(format!("{id}?consistency=eventual")), 400),
        (Call::get(&id), 404),
        (Call::delete(&id), 404),
        (post(format!("{id}/redrive")), 404),
        (Call::get(format!("{id}/redrive")), 405),
        (post("/v1/deliveries".to_owned()), 405),
        (post(id.clone()), 405),
        (Call::get(format!("/v1/messages/msg_{}/receipt", "a".repeat(32))), 404),
        (Call::get("/v1/messages/x/receipt"), 404),
        (Call::get("/v1/messages/x/receipt?consistency=no"), 400),
        (post(format!("/v1/messages/msg_{}/receipt", "a".repeat(32))), 405),
    ];
    for bad in ["x", "dlv_", "dlv_ZZ", "%ff", "msg_0a", &"d".repeat(5000)] {
        cases.push((Call::get(format!("/v1/deliveries/{bad}")), 404));
        cases.push((Call::delete(format!("/v1/deliveries/{bad}")), 404));
        cases.push((post(format!("/v1/deliveries/{bad}/redrive")), 404));
    }
    cases
}

fn kite_sends() -> Vec<(Call, u16)> {
    let with = |key: &str, value: Value| {
        let mut body = json!({ "from": "alpha", "to": "beta", "body": "x" });
        body[key] = value;
        Call::post("/api/v1/agents/messages", &body)
    };
    let raw = |body: &str| Call::new(Method::POST, "/api/v1/agents/messages").raw(body.to_owned());
    vec![
        (raw(""), 400),
        (raw("{"), 400),
        (raw("[]"), 400),
        (raw(r#"{"from":"a","from":"b","to":"beta","body":"x"}"#), 400),
        (with("from", Value::Null), 400),
        (with("from", json!("")), 400),
        (with("from", json!("a b")), 400),
        (with("from", json!("system")), 403),
        (with("to", json!(1)), 400),
        (with("to", json!(".")), 400),
        (with("to", json!("system")), 404),
        (with("body", Value::Null), 400),
        (with("body", json!({})), 400),
        (with("body", json!("x".repeat(256 * 1024 + 1))), 413),
        (with("body", json!("x".repeat(1 << 20))), 413),
        (with("thread_id", json!("")), 400),
        (with("reply_to_id", json!({})), 400),
        (with("body", json!("x")).once(""), 400),
        (
            Call::post("/api/v1/agents/messages?team_id=a&team_id=b", &json!({})),
            400,
        ),
        (Call::get("/api/v1/agents/messages"), 405),
    ]
}

async fn nothing_was_stored(url: &str, team: &Team) {
    for agent in ["alpha", "beta", "gamma", "a"] {
        let inbox = Call::get("/v1/messages").key(&team.key).agent(agent).to(url).await.ok();
        assert_eq!(inbox["messages"], json!([]), "{agent}");
        for path in ["messages/subscribe", "messages/webhook", "deliveries"] {
            let get = Call::get(format!("/v1/{path}")).key(&team.key).agent(agent);
            let data = get.to(url).await.ok()["data"].clone();
            assert!(data.is_null() || data == json!([]), "{agent} {path} {data}");
        }
    }
    // No event was counted either.
    let note = json!({ "from": "probe", "to": "probe", "body": "" });
    let sent = Call::post("/api/v1/agents/messages", &note)
        .bearer(&team.key)
        .to(url)
        .await
        .ok();
    assert_eq!(sent["usage"]["events_used"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_request_has_its_answer_on_every_node() {
    let office = office().await;
    let cases = [sends(), reads(), subscriptions(), webhooks(), deliveries()];
    let cases = cases.into_iter().flatten().map(|case| ("abbababa", case));
    for (face, (call, status)) in cases.chain(kite_sends().into_iter().map(|case| ("kite", case))) {
        let shown = call.to_string();
        for url in &office.urls {
            let call = if face == "kite" {
                call.clone().bearer(&office.team.key)
            } else {
                call.clone().key(&office.team.key)
            };
            let call = if face == "kite" || call.names_agent() {
                call
            } else {
                call.agent("alpha")
            };
            let answer = call.to(url).await;
            assert_eq!(answer.status, status, "{shown}: {}", answer.body);
            is_of_this_face(&answer, face);
            assert_eq!(status == 405, answer.headers.contains_key("allow"), "{shown}");
            answer.error(status);
        }
    }
    nothing_was_stored(&office.urls[1], &office.team).await;
}

const MESSAGE: &str = "/v1/messages/msg_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const DELIVERY: &str = "/v1/deliveries/dlv_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/// One call to each route that needs a key.
fn every_call() -> Vec<Call> {
    vec![
        post(&mail("beta", &json!({}))),
        Call::post("/v1/messages/batch", &json!({ "messages": [] })),
        Call::get("/v1/messages"),
        Call::get(MESSAGE),
        Call::patch(MESSAGE, &json!({ "read": true })),
        Call::get("/v1/messages/webhook"),
        Call::post("/v1/messages/webhook", &json!({})),
        Call::delete("/v1/messages/webhook"),
        Call::get("/v1/messages/subscribe"),
        Call::post("/v1/messages/subscribe", &json!({})),
        Call::delete("/v1/messages/subscribe"),
        Call::get(format!("{MESSAGE}/receipt")),
        Call::get("/v1/deliveries"),
        Call::get(DELIVERY),
        Call::delete(DELIVERY),
        Call::new(Method::POST, format!("{DELIVERY}/redrive")),
        Call::get("/v2/keys"),
        Call::new(Method::POST, "/v2/keys/rotate"),
    ]
}

/// Calls that also need an agent.
fn calls_of_agents() -> Vec<Call> {
    vec![
        post(&mail("beta", &json!({}))),
        Call::get("/v1/messages"),
        Call::get(MESSAGE),
        Call::get("/v1/messages/webhook"),
        Call::post("/v1/messages/subscribe", &json!({ "topic": "t" })),
        Call::get(format!("{MESSAGE}/receipt")),
        Call::get("/v1/deliveries"),
        Call::delete(DELIVERY),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_key_has_its_answer_on_every_node() {
    let office = office().await;
    let (_, reader) = new_key(
        &office.urls[0],
        &office.admin,
        &office.team.id,
        &json!({ "name": "r", "permissions": ["read"] }),
    )
    .await;
    let alpha = office.team.bound(&office.urls[0], &office.admin, "alpha").await;
    for url in &office.urls {
        for call in every_call() {
            let without = call.clone().agent("alpha").to(url).await;
            assert_eq!(without.headers["www-authenticate"], "Bearer");
            assert_eq!(without.body["code"], "invalid_api_key");
            without.error(401);
            for bad in [
                "x",
                "kite_00000000_00000000000000000000000000000000",
                &"k".repeat(300),
                &office.team.key[1..],
            ] {
                call.clone().key(bad).agent("alpha").to(url).await.error(401);
            }
            call.clone()
                .header("authorization", "Basic abc")
                .to(url)
                .await
                .error(401);
            call.clone()
                .key(&office.team.key)
                .bearer(&alpha)
                .agent("alpha")
                .to(url)
                .await
                .error(401);
        }
        // A key that is bound to no agent must name one; a bound key must not name another.
        for call in calls_of_agents() {
            call.clone().key(&office.team.key).to(url).await.error(403);
            call.clone()
                .key(&office.team.key)
                .agent("system")
                .to(url)
                .await
                .error(403);
            call.clone().key(&alpha).agent("beta").to(url).await.error(403);
        }
        post(&mail("beta", &json!({})))
            .key(&reader)
            .agent("alpha")
            .to(url)
            .await
            .error(403);
        Call::post("/v1/messages/batch", &json!({ "messages": [] }))
            .key(&reader)
            .agent("alpha")
            .to(url)
            .await
            .error(403);
        Call::get("/v1/messages").key(&reader).agent("alpha").to(url).await.ok();
        // The key is checked before the rest of the request.
        Call::get("/v1/messages?limit=0").key("x").to(url).await.error(401);
        Call::new(Method::POST, "/v1/messages")
            .raw("{")
            .to(url)
            .await
            .error(401);
    }
    nothing_was_stored(&office.urls[2], &office.team).await;
}

/// Writes `request` and reads until `enough` returns true or the node closes the connection.
async fn exchange(url: &str, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(url.strip_prefix("http://").unwrap()).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    let read = async {
        while !answer.windows(4).any(|four| four == b"\r\n\r\n") {
            match stream.read(&mut chunk).await {
                Ok(0) | Err(_) => return,
                Ok(n) => answer.extend_from_slice(&chunk[..n]),
            }
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), read)
        .await
        .expect("an answer in time");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn too_much_is_refused_before_it_is_read() {
    let office = Office::start(1, "").await;
    let url = office.urls[0].as_str();
    let head = |path: &str, more: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nX-API-Key: {}\r\nX-Agent-Id: alpha\r\n{more}\r\n",
            office.team.key
        )
    };
    // The length is announced, the body is never sent.
    for (path, length) in [
        ("/v1/messages", "600000"),
        ("/v1/messages/batch", "1048577"),
        ("/api/v1/agents/messages", "99999999999"),
    ] {
        let answer = exchange(url, head(path, &format!("Content-Length: {length}\r\n")).as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    }
    // The refusal arrives even if the client sends the whole body before it reads.
    for (path, key, status) in [
        ("/v1/messages", &office.team.key, 413),
        ("/v1/messages", &"x".to_owned(), 401),
        ("/v1/x", &office.team.key, 404),
    ] {
        let length = 3 << 20;
        let mut whole = format!("POST {path} HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\nX-Agent-Id: alpha\r\nContent-Length: {length}\r\n\r\n").into_bytes();
        whole.resize(whole.len() + length, b'x');
        let answer = exchange(url, &whole).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
    // A client with `Expect: 100-continue` gets the refusal instead of 100.
    let polite = exchange(
        url,
        head("/v1/messages", "Content-Length: 600000\r\nExpect: 100-continue\r\n").as_bytes(),
    )
    .await;
    assert!(polite.starts_with("HTTP/1.1 413 "), "{polite}");
    // A chunked body without end.
    let mut endless = head("/v1/messages", "Transfer-Encoding: chunked\r\n").into_bytes();
    for _ in 0..160 {
        endless.extend_from_slice(format!("1000\r\n{}\r\n", "x".repeat(4096)).as_bytes());
    }
    let answer = exchange(url, &endless).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    // Too long or too many headers.
    let long = head("/v1/messages", &format!("X-Long: {}\r\n", "x".repeat(40_000)));
    assert!(exchange(url, long.as_bytes()).await.starts_with("HTTP/1.1 431 "));
    let many: String = (0..100).map(|n| format!("X-{n}: 1\r\n")).collect();
    assert!(
        exchange(url, head("/v1/messages", &many).as_bytes())
            .await
            .starts_with("HTTP/1.1 431 ")
    );
    // Requests that two parsers could read differently.
    for smuggled in [
        head("/v1/messages", "Content-Length: 5\r\nContent-Length: 6\r\n") + "{}xxxx",
        head("/v1/messages", "Content-Length: x\r\n"),
        "GET /v1/messages HTTP/9.9\r\n\r\n".to_owned(),
        "nonsense\r\n\r\n".to_owned(),
    ] {
        assert!(
            exchange(url, smuggled.as_bytes()).await.starts_with("HTTP/1.1 400 "),
            "{smuggled}"
        );
    }
    nothing_was_stored(url, &office.team).await;
}
