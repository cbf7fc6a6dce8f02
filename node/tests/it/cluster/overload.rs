//! Overload over three nodes: forwarded operations are charged to the leader's budget too, and neither an append to a log
//! nor a request to a follower is larger than its bound.

use agentpost_raft_store::disk::log_store::APPEND_BYTES_MAX;
use serde_json::{Value, json};

use crate::common::office::office;
use crate::common::upload::{MIB, SHARE_MIB, Upload, metric, until_charged};
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
        (answer.status, answer.headers["retry-after"].to_str().unwrap()),
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

/// An operation that Raft cannot take yet is charged on the node that was asked and on the leader, until its answer.
#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn a_proposal_is_charged_until_its_answer() {
    use crate::common::eventually;

    let office = office().await;
    let (leader, follower) = (office.cluster.leader().await, office.cluster.follower().await);
    let (on_leader, on_follower) = (office.cluster.services(leader), office.cluster.services(follower));
    let held = on_leader.proposer.hold().await;
    let url = &office.urls[follower];
    // A slow test may outlast the patience of the node; then nothing was proposed, and the client repeats.
    let sending = eventually("a send that is accepted", async || {
        let answer = send(&office.team, &json!("held")).to(url).await;
        (answer.status == 200).then_some(())
    });
    let releasing = async {
        eventually("a charge on both nodes", async || {
            let charged = [&on_leader, &on_follower].map(|node| metric(node, "budget_bytes"));
            charged.iter().all(|bytes| *bytes > 0).then_some(())
        })
        .await;
        drop(held);
    };
    tokio::join!(sending, releasing);
    until_charged(&on_leader, 0, 0).await;
    until_charged(&on_follower, 0, 0).await;
    let stored = list(&office.urls[leader], &office.team, "box", "").await;
    assert_eq!(bodies(&stored), [json!({ "text": "held" })]);
}

/// A client that goes away makes no room for another operation while its own waits for a log that takes nothing.
#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn an_operation_that_waits_for_the_log_is_charged_after_its_client_has_gone() {
    use crate::common::eventually;

    let office = office().await;
    let leader = office.cluster.leader().await;
    let on_leader = office.cluster.services(leader);
    let held = on_leader.proposer.hold().await;
    let (url, body) = (&office.urls[leader], json!("gone"));
    let call = send(&office.team, &body);
    let proposed = eventually("a proposal", async || {
        (metric(&on_leader, "proposals_in_flight") > 0).then_some(())
    });
    tokio::select! {
        answer = call.to(url) => panic!("answered while the log takes nothing: {answer:?}"),
        () = proposed => {}
    }
    eventually("the end of the request", async || {
        (metric(&on_leader, "proposals_in_flight") == 0).then_some(())
    })
    .await;
    assert!(metric(&on_leader, "budget_bytes") > 0);
    drop(held);
    until_charged(&on_leader, 0, 0).await;
    // Nobody listened any more when its turn came.
    let stored = list(url, &office.team, "box", "").await;
    assert!(bodies(&stored).is_empty(), "{stored:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_append_is_larger_than_its_bound() {
    let office = office().await;
    let url = &office.urls[office.cluster.leader().await];
    // Together 18 MiB at a time: without a bound the leader appends most of it in one write.
    let body = json!("x".repeat(200_000));
    let call = send(&office.team, &body);
    for answer in futures::future::join_all((0..96).map(|_| call.to(url))).await {
        answer.ok();
    }
    office.cluster.caught_up().await;
    let mut requests = 0;
    for node in 0..3 {
        let node = office.cluster.services(node);
        let largest = metric(&node, "log_append_bytes_max");
        assert!((200_000..=APPEND_BYTES_MAX as u64).contains(&largest), "{largest}");
        let request = metric(&node, "append_request_bytes_max");
        assert!(request <= APPEND_BYTES_MAX as u64, "{request}");
        requests = requests.max(request);
    }
    assert!(requests >= 200_000, "{requests}");
}
