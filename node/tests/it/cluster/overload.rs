//! Overload over three nodes: forwarded operations are charged to the leader's budget too.

use serde_json::{Value, json};

use crate::common::office::office;
use crate::common::upload::{MIB, SHARE_MIB, Upload, until_charged};
use crate::common::web::{Call, Team, bodies, list, mail};

fn send(team: &Team, body: &Value) -> Call {
    Call::post("/v1/messages", &mail("box", body)).key(&team.key).agent("a")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_followers_forward_is_charged_to_the_leader() {
    let office = office().await;
    let [busy, other, third] = [
        &office.team,
        &office.new_team("other").await,
        &office.new_team("third").await,
    ];
    let (leader, follower) = (office.cluster.leader().await, office.cluster.follower().await);
    let (on_leader, url) = (&office.cluster.services(leader), &office.urls[follower]);
    let uploads = Upload::share(&office.urls[leader], &busy.key).await;
    until_charged(on_leader, SHARE_MIB, SHARE_MIB * MIB).await;

    let answer = send(busy, &json!("refused")).to(url).await;
    assert_eq!(
        (answer.status, &answer.headers["retry-after"].to_str().unwrap()[..]),
        (429, "1"),
        "{}",
        answer.body
    );
    let kite = json!({ "from": "a", "to": "box", "body": "refused" });
    let kite = Call::post("/api/v1/agents/messages", &kite)
        .bearer(&busy.key)
        .to(url)
        .await;
    assert_eq!((kite.status, &kite.body["retry_after_secs"]), (429, &json!(1)));
    send(other, &json!("one")).to(url).await.ok();
    let rest = Upload::share(&office.urls[leader], &other.key).await;
    until_charged(on_leader, 2 * SHARE_MIB, 2 * SHARE_MIB * MIB).await;
    let answer = send(third, &json!("refused")).to(url).await;
    assert_eq!((answer.status, &answer.body["code"]), (503, &json!("not_ready")));
    assert_eq!(answer.headers["retry-after"], "1");

    drop((uploads, rest));
    until_charged(on_leader, 0, 0).await;
    until_charged(&office.cluster.services(follower), 0, 0).await;
    send(busy, &json!("one")).to(url).await.ok();
    for team in [busy, other] {
        assert_eq!(bodies(&list(url, team, "box", "").await), [json!({ "text": "one" })]);
    }
}
