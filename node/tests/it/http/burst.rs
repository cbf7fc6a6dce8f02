//! Burst limits: they count per key and node, set `Retry-After`, and are off unless configured.

use agentpost_proto::frame::ERR_RATE_LIMITED;
use agentpost_testkit::socket::{Connect, Socket};
use serde_json::{Value, json};

use crate::common::TestCluster;
use crate::common::web::{Answer, Call, Team, mail, new_key};

// A window that is longer than any test.
const SENDS: &str = "[limits]\nburst_sends = 5\nburst_window_s = 86400\n";
const REQUESTS: &str = "[limits]\nburst_requests = 4\nburst_window_s = 86400\n";

/// The `Retry-After` of a refused call in seconds. The daily quota of the answer must not be used up.
#[track_caller]
fn refused(answer: &Answer) -> u64 {
    assert_eq!(answer.status, 429, "{}", answer.body);
    let number = |name: &str| -> u64 { answer.headers[name].to_str().unwrap().parse().unwrap() };
    assert!(number("x-ratelimit-remaining") > 0 && number("x-ratelimit-reset") > 0);
    assert!(number("x-ratelimit-limit") >= number("x-ratelimit-remaining"));
    assert_eq!(answer.body["code"], "rate_limited");
    assert!(answer.body["error"].as_str().unwrap().contains("on this node"));
    number("retry-after")
}

fn post(team: &Team) -> Call {
    Call::post("/v1/messages", &mail("b", &json!({})))
        .key(&team.key)
        .agent("a")
}

fn batch(team: &Team, items: &[Value]) -> Call {
    Call::post("/api/v1/messages/batch", &json!({ "messages": items }))
        .key(&team.key)
        .agent("a")
}

fn kite(team: &Team) -> Call {
    let message = json!({ "from": "a", "to": "b", "body": "x" });
    Call::post("/api/v1/agents/messages", &message).bearer(&team.key)
}

fn list(team: &Team) -> Call {
    Call::get("/v1/messages").key(&team.key).agent("b")
}

async fn second_key(url: &str, admin: &str, team: &Team) -> Team {
    let wanted = json!({ "name": "second", "permissions": ["write"] });
    let key = new_key(url, admin, &team.id, &wanted).await.1;
    Team { key, ..team.clone() }
}

#[tokio::test(flavor = "multi_thread")]
async fn sends_are_limited_per_key_and_node_on_both_faces() {
    let cluster = TestCluster::start_with(2, SENDS).await;
    let (urls, admin) = (cluster.urls(), cluster.admin_key());
    let limits = json!({ "daily_sends": 50, "daily_reads": 50 });
    let team = Team::with_limits(&urls[0], &admin, "burst", &limits).await;
    post(&team).to(&urls[0]).await.ok();
    kite(&team).to(&urls[0]).await.ok();
    // Malformed messages are not counted.
    Call::post("/v1/messages", &json!({}))
        .key(&team.key)
        .agent("a")
        .to(&urls[0])
        .await
        .error(400);

    // The part of a batch that is within the limit is sent.
    let good = || mail("b", &json!({ "n": 1 }));
    let items = [good(), json!({}), good(), good(), good(), good()];
    let results = batch(&team, &items).to(&urls[0]).await.ok()["results"].clone();
    let statuses: Vec<_> = results
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["status"].as_u64().unwrap())
        .collect();
    assert_eq!(statuses, [200, 400, 200, 200, 429, 429]);

    let wait = refused(&post(&team).to(&urls[0]).await);
    assert!((1..=2 * 86_400).contains(&wait), "{wait}");
    refused(&batch(&team, &[good(), json!({})]).to(&urls[0]).await);
    let answer = kite(&team).to(&urls[0]).await;
    assert_eq!(answer.status, 429);
    assert_eq!(
        answer.headers["retry-after"].to_str().unwrap(),
        answer.body["retry_after_secs"].to_string()
    );
    assert_eq!(answer.body.as_object().unwrap().len(), 2, "{}", answer.body);

    // Refused messages were not stored, and reads still work.
    let inbox = list(&team).to(&urls[0]).await;
    assert_eq!(inbox.clone().ok()["messages"].as_array().unwrap().len(), 5);
    assert_eq!(inbox.headers["x-ratelimit-remaining"], "49");
    // Another key and another node have their own counts. The daily quota, which Kite's sends do not use, is shared by the
    // whole cluster.
    let other = second_key(&urls[0], &admin, &team).await;
    post(&other).to(&urls[0]).await.ok();
    let elsewhere = post(&team).to(&urls[1]).await;
    assert_eq!(elsewhere.headers["x-ratelimit-remaining"], "44");
    elsewhere.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_limited_after_authentication_and_never_the_operators() {
    let cluster = TestCluster::start_with(1, REQUESTS).await;
    let (url, admin) = (cluster.url(0), cluster.admin_key());
    let team = Team::create(&url, &admin, "burst").await;
    let other = second_key(&url, &admin, &team).await;
    // Unauthenticated calls are not counted.
    for _ in 0..6 {
        list(&Team {
            key: format!("{}x", team.key),
            ..team.clone()
        })
        .to(&url)
        .await
        .error(401);
    }
    list(&team).to(&url).await.ok();
    post(&team).to(&url).await.ok();
    Call::get("/v1/messages/msg_1")
        .key(&team.key)
        .agent("a")
        .to(&url)
        .await
        .error(404);
    Call::get("/v2/keys").key(&team.key).to(&url).await.ok();
    refused(&list(&team).to(&url).await);
    refused(&post(&team).to(&url).await);
    refused(&batch(&team, &[json!({})]).to(&url).await);
    assert_eq!(kite(&team).to(&url).await.status, 429);
    let keys = Call::get("/v2/keys").key(&team.key).to(&url).await;
    assert!(keys.status == 429 && keys.headers.contains_key("retry-after"));

    let connect = |team: &Team| {
        Connect {
            key: &team.key,
            team: &team.id,
            scopes: &["*"],
            client_id: None,
        }
        .frame()
    };
    let mut socket = Socket::open(&url).await;
    socket.say(&connect(&team)).await;
    let ending = socket.ending().await;
    assert_eq!(
        (ending.error, ending.close),
        (Some(ERR_RATE_LIMITED.into()), Some(1013))
    );

    // A session counts as one request, and each method call as another; reading and acknowledging do not count.
    let mut socket = Socket::open(&url).await;
    socket.say(&connect(&other)).await;
    assert_eq!(socket.frame().await["type"], "connected");
    socket.frame().await;
    for _ in 0..6 {
        socket.ack(1).await;
    }
    socket.roundtrip().await;
    for _ in 0..2 {
        list(&other).to(&url).await.ok();
    }
    refused(&list(&other).to(&url).await);
    socket
        .say(&json!({"type": "request", "id": "r", "method": "dashboard.stats", "params": {}}))
        .await;
    let answer = socket.frame().await;
    assert!(answer["id"] == "r" && answer["ok"] == false, "{answer}");

    for _ in 0..6 {
        Call::get("/admin/v1/teams").bearer(&admin).to(&url).await.ok();
    }
}
