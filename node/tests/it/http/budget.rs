//! The budget of a node for operations under way: a request is charged before its body is read and until its answer; a
//! team that fills its share is refused at once, and the others notice nothing.
//!
//! The slow requests of these tests are bodies that do not arrive. All tests share a cluster of one node, one after
//! another, because the budget is the node's.

use serde_json::json;

use crate::common::office::Office;
use crate::common::upload::{MIB, SHARE_MIB, Upload, until_charged};
use crate::common::web::{Answer, Call, Team, bodies, list, mail};

/// Requests for a device code of 64 KiB that may be under way.
const STRANGERS: usize = 7 * 16;

fn send(team: &Team, text: &str) -> Call {
    Call::post("/v1/messages", &mail("box", &json!(text)))
        .key(&team.key)
        .agent("a")
}

#[track_caller]
fn refused(answer: &Answer, status: u16) {
    assert_eq!(answer.status, status, "{}", answer.body);
    assert_eq!(answer.headers["retry-after"], "1");
    let text = answer.body["error"].as_str().unwrap();
    assert!(text.contains("nothing was changed"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn operations_under_way_are_bounded_in_bytes() {
    let office = Office::start(1, "").await;
    a_team_has_half_and_the_others_notice_nothing(&office).await;
    a_body_without_a_length_is_charged_for_the_bound_of_its_route(&office).await;
    strangers_share_little(&office).await;
    requests_of_a_socket_are_charged_by_their_frame(&office).await;
}

async fn a_team_has_half_and_the_others_notice_nothing(office: &Office) {
    let [first, second, third] = [
        &office.team,
        &office.new_team("second").await,
        &office.new_team("third").await,
    ];
    let url = &office.urls[0];
    let node = &office.cluster.services(0);
    let uploads = Upload::share(url, &first.key).await;
    until_charged(node, SHARE_MIB, SHARE_MIB * MIB).await;

    let answer = send(first, "refused").to(url).await;
    refused(&answer, 429);
    assert_eq!(answer.body["code"], "rate_limited");
    assert_ne!(answer.headers["x-ratelimit-remaining"], "0");
    let kite = Call::post(
        "/api/v1/agents/messages",
        &json!({ "from": "a", "to": "box", "body": "x" }),
    );
    let answer = kite.bearer(&first.key).to(url).await;
    refused(&answer, 429);
    assert_eq!(answer.body["retry_after_secs"], 1);
    let whole = json!({ "messages": [mail("box", &json!("x".repeat(200_000)))] });
    let batch = Call::post("/v1/messages/batch", &whole).key(&first.key).agent("a");
    refused(&batch.to(url).await, 429);
    let bodiless = Call::delete("/v1/messages/webhook").key(&first.key).agent("a");
    bodiless.to(url).await.ok();

    send(second, "one").to(url).await.ok();
    let others = Upload::share(url, &second.key).await;
    until_charged(node, 2 * SHARE_MIB, 2 * SHARE_MIB * MIB).await;
    let answer = send(third, "refused").to(url).await;
    refused(&answer, 503);
    assert_eq!(answer.body["code"], "not_ready");
    // A team that is over its own share hears of that.
    refused(&send(second, "refused").to(url).await, 429);

    for (n, upload) in uploads.into_iter().enumerate() {
        upload.finish("box", &format!("{n}")).await;
    }
    send(third, "one").to(url).await.ok();
    drop(others);
    until_charged(node, 0, 0).await;
    let stored = list(url, first, "box", "limit=200").await;
    let expected: Vec<_> = (0..SHARE_MIB).map(|n| json!({ "text": n.to_string() })).collect();
    assert_eq!(bodies(&stored), expected);
    for team in [second, third] {
        assert_eq!(
            bodies(&list(url, team, "box", "limit=200").await),
            [json!({ "text": "one" })]
        );
    }
}

async fn a_body_without_a_length_is_charged_for_the_bound_of_its_route(office: &Office) {
    let (node, framing) = (&office.cluster.services(0), "transfer-encoding: chunked");
    for (path, bytes) in [
        ("/v1/messages/batch", MIB),
        ("/v1/messages", 512 * 1024 + 16 * 1024),
        ("/v1/messages/subscribe", 64 * 1024),
    ] {
        let upload = Upload::begin(&office.urls[0], path, framing, Some(&office.team.key)).await;
        until_charged(node, 1, bytes).await;
        drop(upload);
        until_charged(node, 0, 0).await;
    }
}

async fn strangers_share_little(office: &Office) {
    let (node, url) = (&office.cluster.services(0), &office.urls[0]);
    let framing = format!("content-length: {}", 64 * 1024);
    let begin = || Upload::begin(url, "/api/auth/device-code", &framing, None);
    let strangers = futures::future::join_all((0..STRANGERS).map(|_| begin())).await;
    until_charged(node, STRANGERS, 7 * MIB).await;
    let login = Call::post("/api/auth/device-code", &json!({}));
    refused(&login.to(&office.urls[0]).await, 429);
    send(&office.team, "beside strangers").to(&office.urls[0]).await.ok();
    drop(strangers);
    until_charged(node, 0, 0).await;
}

async fn requests_of_a_socket_are_charged_by_their_frame(office: &Office) {
    let node = &office.cluster.services(0);
    let wanted = json!({ "name": "boss", "permissions": ["admin"] });
    let boss = office.key(&office.team, wanted).await.1;
    let mut socket = office.listen(0, &boss, &["*"], None).await.0;
    let uploads = Upload::share(&office.urls[0], &office.team.key).await;
    until_charged(node, SHARE_MIB, SHARE_MIB * MIB).await;
    let (ok, payload) = socket.ask("keys.create", json!({ "name": "made" })).await;
    assert!(
        !ok && payload["error"].as_str().unwrap().contains("nothing was changed"),
        "{payload}"
    );
    // A request that changes nothing is not charged.
    assert!(socket.ask("keys.list", json!({})).await.0);
    drop(uploads);
    until_charged(node, 0, 0).await;
    let (ok, payload) = socket.ask("keys.create", json!({ "name": "made" })).await;
    assert!(ok, "{payload}");
    until_charged(node, 0, 0).await;
}
