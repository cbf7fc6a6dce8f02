//! Operations that would change nothing are answered from the state: the log does not grow, and every node knows what any
//! other node has acknowledged.

use serde_json::{Value, json};

use crate::common::office::{Office, office};
use crate::common::upload::metric;
use crate::common::web::{Answer, Call, Team, bodies, list, mail};

/// The bytes of the body of each message.
const BODY: usize = 200_000;
/// How often each operation is repeated on each node.
const TIMES: usize = 8;

fn send(team: &Team, to: &str) -> Call {
    Call::post("/v1/messages", &mail(to, &json!("x".repeat(BODY))))
        .key(&team.key)
        .agent("a")
}

/// The bytes that were ever appended to the log of the first node.
fn log_bytes(office: &Office) -> u64 {
    metric(&office.cluster.services(0), "log_bytes_total")
}

/// Sends `call` to every node several times and returns the answers, and by how many of its bodies the log has grown.
async fn repeat(office: &Office, call: &Call) -> (Vec<Answer>, u64) {
    office.cluster.caught_up().await;
    let before = log_bytes(office);
    let mut answers = Vec::new();
    for _ in 0..TIMES {
        for url in &office.urls {
            answers.push(call.to(url).await);
        }
    }
    office.cluster.caught_up().await;
    (answers, (log_bytes(office) - before) / BODY as u64)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_nothing_is_not_logged() {
    let office = office().await;
    a_repeat_is_answered_with_the_first_result(&office).await;
    a_used_up_month_is_told_by_each_node(&office).await;
    an_unknown_receiver_is_refused_until_it_is_registered(&office).await;
    a_rare_operation_is_always_looked_at(&office).await;
}

async fn a_repeat_is_answered_with_the_first_result(office: &Office) {
    let team = office.new_team("repeats").await;
    let keyed = send(&team, "box").once("k");
    let first = keyed.to(&office.urls[0]).await.ok();
    let (answers, logged) = repeat(office, &keyed).await;
    assert_eq!(logged, 0);
    for answer in answers {
        assert_eq!(answer.ok()["messageId"], first["messageId"]);
    }
    let (answers, logged) = repeat(office, &send(&team, "elsewhere").once("k")).await;
    assert_eq!(logged, 0);
    for answer in answers {
        answer.error(422);
    }
    let items = |to: &str| json!({ "messages": [item(to, "k"), item(to, "l")] });
    let batch = |to: &str| Call::post("/v1/messages/batch", &items(to)).key(&team.key).agent("b");
    let first = batch("box").to(&office.urls[1]).await.ok();
    let (answers, logged) = repeat(office, &batch("box")).await;
    assert_eq!(logged, 0);
    for answer in answers {
        assert_eq!(answer.ok(), first);
    }
    assert_eq!(
        list(&office.urls[2], &team, "box", "").await["messages"]
            .as_array()
            .unwrap()
            .len(),
        3
    );
}

fn item(to: &str, key: &str) -> Value {
    let mut item = mail(to, &json!("x".repeat(BODY)));
    item["idempotencyKey"] = json!(key);
    item
}

/// Each node logs at most one refusal before it watches the team.
async fn a_used_up_month_is_told_by_each_node(office: &Office) {
    let limits = json!({ "monthly_events": 2, "daily_sends": 0 });
    let team = Team::with_limits(&office.urls[0], &office.admin, "month", &limits).await;
    for url in &office.urls[..2] {
        send(&team, "box").to(url).await.ok();
    }
    let (answers, logged) = repeat(office, &send(&team, "box")).await;
    assert!(logged <= 2, "{logged}");
    for answer in answers {
        assert_eq!(answer.body["code"], "quota_exceeded");
        assert!(answer.headers.contains_key("retry-after"));
        answer.error(429);
    }
    // A raised limit counts at once, on every node.
    for (n, url) in office.urls.iter().enumerate() {
        let raised = json!({ "limits": { "monthly_events": 3 + n } });
        let patch = Call::patch(format!("/admin/v1/teams/{}", team.id), &raised).bearer(&office.admin);
        patch.to(&office.urls[(n + 1) % 3]).await.ok();
        send(&team, "box").to(url).await.ok();
    }
}

async fn an_unknown_receiver_is_refused_until_it_is_registered(office: &Office) {
    let team = office.new_team("strict").await;
    let strict = json!({ "strict_recipients": true });
    let patch = Call::patch(format!("/admin/v1/teams/{}", team.id), &strict).bearer(&office.admin);
    patch.to(&office.urls[0]).await.ok();
    let (answers, logged) = repeat(office, &send(&team, "late")).await;
    assert!(logged <= 3, "{logged}");
    for answer in answers {
        answer.error(404);
    }
    let register = Call::post("/v1/agents", &json!({ "id": "late" })).bearer(&team.key);
    register.to(&office.urls[2]).await.ok();
    for url in &office.urls {
        send(&team, "late").to(url).await.ok();
    }
    let stored = list(&office.urls[0], &team, "late", "").await;
    assert_eq!(bodies(&stored).len(), 3);
}

async fn a_rare_operation_is_always_looked_at(office: &Office) {
    let node = office.cluster.services(0);
    let before = metric(&node, "proposals_unlogged_total");
    let delete = Call::delete("/v1/messages/webhook").key(&office.team.key).agent("a");
    delete.to(&office.urls[0]).await.ok();
    let register = Call::post("/v1/agents", &json!({ "id": "known" })).bearer(&office.team.key);
    register.to(&office.urls[1]).await.ok();
    register.to(&office.urls[0]).await.ok();
    let redrive = "/v1/deliveries/dlv_00000000000000000000000000000000/redrive";
    let redrive = Call::post(redrive, &json!({})).key(&office.team.key).agent("a");
    redrive.to(&office.urls[0]).await.error(404);
    assert_eq!(metric(&node, "proposals_unlogged_total") - before, 3);
}
