//! The Abba Baba API on three nodes: every route through the leader and through followers.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use agentpost_proto::api::abbababa::{GetResponse, ListResponse, SendResponse};
use serde_json::{Value, json};

use crate::common::office::office;
use crate::common::web::{Answer, Call, Team, bodies, list, mail, new_key};

const MOUNTS: [&str; 2] = ["/api/v1", "/v1"];

async fn send(url: &str, team: &Team, from: &str, to: &str, body: &Value) -> String {
    let sent = Call::post("/v1/messages", &mail(to, body))
        .key(&team.key)
        .agent(from)
        .to(url)
        .await
        .ok();
    sent["messageId"].as_str().unwrap().to_owned()
}

/// Sends, lists, reads and marks one message from alpha to beta, with the field names of the seed and of the SDK.
async fn round_trip(round: usize, sender: &str, receiver: &str, alpha: &str, beta: &str) {
    let mount = MOUNTS[round % 2];
    let body = json!({ "round": round, "price": 5.0 });
    let sent = Call::post(format!("{mount}/messages"), &mail("beta", &body))
        .key(alpha)
        .to(sender)
        .await
        .ok();
    let id = sent["messageId"].as_str().unwrap().to_owned();
    serde_json::from_value::<SendResponse>(sent.clone()).unwrap();
    assert_eq!(sent["success"], true);
    assert_eq!((&sent["data"]["id"], &sent["data"]["body"]), (&json!(id), &body));

    let unread = Call::get(format!("{mount}/messages?unreadOnly=true"))
        .key(beta)
        .to(receiver)
        .await
        .ok();
    serde_json::from_value::<ListResponse>(unread.clone()).unwrap();
    assert_eq!(bodies(&unread), [body]);
    assert_eq!(unread["messages"], unread["data"]);
    assert_eq!(unread["messages"][0], sent["data"]);

    let path = format!("{mount}/messages/{id}");
    let got = Call::get(&path).key(beta).to(receiver).await.ok();
    serde_json::from_value::<GetResponse>(got.clone()).unwrap();
    assert_eq!(got["message"], sent["data"]);
    assert_eq!(got["message"], got["data"]);

    // The SDK sends no body; the documentation shows one.
    let mark = Call::new(axum::http::Method::PATCH, &path).key(beta);
    let mark = if round.is_multiple_of(2) {
        mark
    } else {
        mark.json(&json!({ "read": true }))
    };
    let marked = mark.to(receiver).await.ok();
    assert_eq!(marked["success"], true);
    let read_at = marked["data"]["readAt"].clone();
    assert!(read_at.is_string());
    // The first time of reading is kept, and the sender sees it.
    assert_eq!(mark.to(sender).await.ok()["data"]["readAt"], read_at);
    let seen = Call::get(&path).key(alpha).to(sender).await.ok();
    assert_eq!(
        (&seen["message"]["readAt"], &seen["message"]["status"]),
        (&read_at, &json!("read"))
    );
    let unread = Call::get(format!("{mount}/messages?unreadOnly=true"))
        .key(beta)
        .to(receiver)
        .await
        .ok();
    assert_eq!(unread["messages"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_sent_listed_read_and_marked_through_any_node() {
    let office = office().await;
    let alpha = office.team.bound(&office.urls[1], &office.admin, "alpha").await;
    let beta = office.team.bound(&office.urls[2], &office.admin, "beta").await;
    for (round, (sender, receiver)) in (0..3).flat_map(|s| (0..3).map(move |r| (s, r))).enumerate() {
        round_trip(round, &office.urls[sender], &office.urls[receiver], &alpha, &beta).await;
    }
    let unmarked = list(&office.urls[0], &office.team, "beta", "limit=1").await["messages"][0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let again = Call::patch(format!("/v1/messages/{unmarked}"), &json!({ "read": false }))
        .key(&beta)
        .to(&office.urls[1])
        .await
        .ok();
    assert_eq!(again["data"]["readAt"], Value::Null);
    assert_eq!(
        list(&office.urls[2], &office.team, "beta", "status=unread").await["messages"][0]["id"],
        unmarked
    );
    assert_eq!(
        list(&office.urls[2], &office.team, "beta", "status=read").await["messages"]
            .as_array()
            .unwrap()
            .len(),
        8
    );
    let id = unmarked.strip_prefix("msg_").unwrap();
    let uuid = [&id[..8], &id[8..12], &id[12..16], &id[16..20], &id[20..]].join("-");
    let got = Call::get(format!("/v1/messages/{uuid}"))
        .key(&beta)
        .to(&office.urls[0])
        .await
        .ok();
    assert_eq!(got["message"]["id"], unmarked);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_team_or_an_agent_is_visible_to_others() {
    let office = office().await;
    let theirs = office.new_team("theirs").await;
    let id = send(&office.urls[0], &office.team, "alpha", "beta", &json!({ "secret": 1 })).await;
    let cursor = list(&office.urls[0], &office.team, "beta", "").await["cursor"]
        .as_str()
        .unwrap()
        .to_owned();
    for url in &office.urls {
        let unknown = format!("msg_{}", "0".repeat(32));
        let mut answers: Vec<Answer> = Vec::new();
        for (team, agent, id) in [
            (&office.team, "beta", unknown.as_str()),
            (&office.team, "beta", "no-id-at-all"),
            (&office.team, "gamma", &id),
            (&theirs, "alpha", &id),
            (&theirs, "beta", &id),
        ] {
            answers.push(
                Call::get(format!("/v1/messages/{id}"))
                    .key(&team.key)
                    .agent(agent)
                    .to(url)
                    .await,
            );
            answers.push(
                Call::patch(format!("/v1/messages/{id}"), &json!({ "read": true }))
                    .key(&team.key)
                    .agent(agent)
                    .to(url)
                    .await,
            );
        }
        // The sender may see it, but only the receiver may mark it.
        answers.push(
            Call::patch(format!("/v1/messages/{id}"), &json!({ "read": true }))
                .key(&office.team.key)
                .agent("alpha")
                .to(url)
                .await,
        );
        for answer in answers {
            assert_eq!(answer.status, 404);
            assert_eq!(answer.body["success"], false);
            assert_eq!(answer.body["code"], "not_found");
            assert_eq!(answer.body["error"], "no such message");
        }
        assert_eq!(list(url, &theirs, "beta", "").await["messages"], json!([]));
        for (team, agent) in [(&theirs, "beta"), (&office.team, "alpha")] {
            let foreign = Call::get(format!("/v1/messages?cursor={cursor}"))
                .key(&team.key)
                .agent(agent)
                .to(url)
                .await;
            assert!(foreign.error(400).contains("cursor"));
        }
    }
    assert_eq!(
        list(&office.urls[1], &office.team, "beta", "unreadOnly=true").await["messages"][0]["id"],
        id
    );
    // A bound key reads its own inbox only.
    let gamma = office.team.bound(&office.urls[0], &office.admin, "gamma").await;
    let other = Call::get("/v1/messages")
        .key(&gamma)
        .agent("beta")
        .to(&office.urls[1])
        .await;
    other.error(403);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_key_makes_one_message() {
    let office = office().await;
    let call = |from: &str, body: &Value| {
        Call::post("/v1/messages", &mail("beta", body))
            .key(&office.team.key)
            .agent(from)
    };
    let first = call("alpha", &json!({ "n": 1 }))
        .once("k")
        .to(&office.urls[0])
        .await
        .ok();
    for url in &office.urls {
        // White space does not make a different body.
        let spaced = r#"{ "type": "test.note", "body": { "n" : 1 }, "toAgentId": "beta" }"#;
        let again = Call::post("/v1/messages", &json!({}))
            .raw(spaced)
            .key(&office.team.key)
            .agent("alpha")
            .once("k")
            .to(url)
            .await
            .ok();
        assert_eq!(again["messageId"], first["messageId"]);
        assert_eq!(again["data"]["createdAt"], first["data"]["createdAt"]);
        let other = call("alpha", &json!({ "n": 2 })).once("k").to(url).await;
        assert_eq!(
            (other.status, other.body["code"].as_str()),
            (422, Some("idempotency_mismatch"))
        );
    }
    // The repeat's own fields are not stored and not shown; the current state of the message is shown.
    let path = format!("/v1/messages/{}", first["messageId"].as_str().unwrap());
    let read = Call::patch(path, &json!({ "read": true }));
    let read = read.key(&office.team.key).agent("beta").to(&office.urls[1]).await.ok();
    let mut titled = mail("beta", &json!({ "n": 1 }));
    titled["subject"] = json!("new");
    let titled = Call::post("/v1/messages", &titled)
        .key(&office.team.key)
        .agent("alpha")
        .once("k");
    assert_eq!(titled.to(&office.urls[1]).await.ok()["data"], read["data"]);
    // The idempotency key belongs to the sending agent.
    let gamma = call("gamma", &json!({ "n": 1 }))
        .once("k")
        .to(&office.urls[1])
        .await
        .ok();
    assert_ne!(gamma["messageId"], first["messageId"]);
    let racing = call("alpha", &json!({ "n": 3 })).once("race");
    let answers = futures::future::join_all((0..12).map(|i| racing.to(&office.urls[i % 3]))).await;
    let ids: BTreeSet<String> = answers
        .into_iter()
        .map(|a| a.ok()["messageId"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ids.len(), 1);
    assert_eq!(
        bodies(&list(&office.urls[2], &office.team, "beta", "").await),
        [json!({"n": 1}), json!({"n": 1}), json!({"n": 3})]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_join_without_gap_while_mail_arrives() {
    let office = office().await;
    let urls = office.urls.clone();
    let team = office.team.clone();
    let empty = list(&urls[0], &team, "beta", "").await;
    assert_eq!(empty["messages"], json!([]));
    const MAILS: usize = 120;
    let writer = {
        let (urls, team) = (urls.clone(), team.clone());
        tokio::spawn(async move {
            for n in 0..MAILS {
                send(
                    &urls[n % 3],
                    &team,
                    if n % 2 == 0 { "even" } else { "odd" },
                    "beta",
                    &json!({ "n": n }),
                )
                .await;
            }
        })
    };
    let mut cursor = empty["cursor"].as_str().unwrap().to_owned();
    let mut seen = Vec::new();
    for turn in 0.. {
        let page = list(
            &urls[turn % 3],
            &team,
            "beta",
            &format!("limit=7&wait=5&cursor={cursor}"),
        )
        .await;
        let got = bodies(&page);
        assert!(got.len() <= 7);
        seen.extend(got.iter().map(|body| body["n"].as_u64().unwrap() as usize));
        cursor = page["cursor"].as_str().unwrap().to_owned();
        if seen.len() >= MAILS {
            break;
        }
        assert!(turn < 10 * MAILS, "{} of {MAILS}", seen.len());
    }
    writer.await.unwrap();
    assert_eq!(seen, (0..MAILS).collect::<Vec<_>>());
    // Newest first by cursor, then by the SDK's offset.
    let mut down = Vec::new();
    let mut query = "order=desc&limit=50".to_owned();
    loop {
        let page = list(&urls[1], &team, "beta", &query).await;
        if bodies(&page).is_empty() {
            break;
        }
        down.extend(bodies(&page));
        query = format!("order=desc&limit=50&cursor={}", page["cursor"].as_str().unwrap());
    }
    assert_eq!(down.len(), MAILS);
    assert_eq!(down[0], json!({ "n": MAILS - 1 }));
    let page = list(&urls[2], &team, "beta", "offset=100&limit=5&fromAgentId=odd").await;
    assert_eq!(page["messages"], json!([]));
    let page = list(&urls[2], &team, "beta", "offset=10&limit=2&fromAgentId=odd").await;
    assert_eq!(bodies(&page), [json!({ "n": 21 }), json!({ "n": 23 })]);
    assert_eq!(page["pagination"], json!({ "limit": 2, "offset": 10, "count": 2 }));
    // A cursor is valid for one order only.
    let crossed = Call::get(format!("/v1/messages?order=desc&cursor={cursor}"))
        .key(&team.key)
        .agent("beta")
        .to(&urls[0])
        .await;
    crossed.error(400);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_poll_wakes_on_another_node() {
    let office = office().await;
    let poll = |url: &str, query: &str| {
        let call = Call::get(format!("/v1/messages?{query}"))
            .key(&office.team.key)
            .agent("beta");
        let url = url.to_owned();
        tokio::spawn(async move {
            let started = Instant::now();
            (call.to(&url).await, started.elapsed())
        })
    };
    // These lists take the same path as the polls, so the polls are usually waiting when the lists are answered. A poll
    // that begins later finds the message at once, which is correct too.
    let polls_have_begun = async || {
        for url in &office.urls {
            list(url, &office.team, "somebody", "").await;
        }
    };
    let waiting: Vec<_> = office.urls.iter().map(|url| poll(url, "wait=60")).collect();
    let in_vain = poll(&office.urls[1], "wait=1&fromAgentId=nobody");
    let quiet = poll(&office.urls[2], "wait=60&fromAgentId=nobody");
    polls_have_begun().await;
    send(&office.urls[0], &office.team, "alpha", "beta", &json!({ "n": 1 })).await;
    for poll in waiting {
        // A poll whose time is over answers without reading again, so this one was woken.
        let (answer, _) = poll.await.unwrap();
        assert_eq!(bodies(&answer.ok()), [json!({ "n": 1 })]);
    }
    let (answer, elapsed) = in_vain.await.unwrap();
    assert_eq!(answer.ok()["messages"], json!([]));
    // A lower bound, which holds on every machine.
    assert!(elapsed >= Duration::from_millis(990), "{elapsed:?}");
    // A key that is revoked during a poll gets no later message.
    let wanted = json!({ "name": "short", "permissions": ["read"], "agent_id": "beta" });
    let (id, key) = new_key(&office.urls[0], &office.admin, &office.team.id, &wanted).await;
    let read = list(&office.urls[0], &office.team, "beta", "").await;
    let cursor = read["cursor"].as_str().unwrap();
    let call = Call::get(format!("/v1/messages?wait=60&cursor={cursor}")).key(&key);
    let url = office.urls[2].clone();
    let revoked = tokio::spawn(async move { call.to(&url).await });
    polls_have_begun().await;
    Call::delete(format!("/admin/v1/keys/{id}"))
        .bearer(&office.admin)
        .to(&office.urls[1])
        .await
        .ok();
    send(&office.urls[0], &office.team, "alpha", "beta", &json!({ "n": 2 })).await;
    revoked.await.unwrap().error(401);
    // A node that stops answers with what it has.
    let read = list(&office.urls[2], &office.team, "beta", "").await;
    let query = format!("wait=60&cursor={}", read["cursor"].as_str().unwrap());
    let last = poll(&office.urls[2], &query);
    polls_have_begun().await;
    office.cluster.stop_node(2).await;
    let (answer, _) = last.await.unwrap();
    assert_eq!(answer.ok()["messages"], json!([]));
    // So does the poll for messages of `nobody`. Its cursor has moved past the messages that it skipped.
    let (answer, _) = quiet.await.unwrap();
    let page = answer.ok();
    assert_eq!(page["messages"], json!([]));
    let query = format!("cursor={}", page["cursor"].as_str().unwrap());
    let rest = list(&office.urls[0], &office.team, "beta", &query).await;
    assert_eq!(rest["messages"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_decides_each_message_alone() {
    let office = office().await;
    let batch = |messages: Value| {
        Call::post("/v1/messages/batch", &json!({ "messages": messages }))
            .key(&office.team.key)
            .agent("alpha")
    };
    for (turn, url) in office.urls.iter().enumerate() {
        let to = format!("beta{turn}");
        let keyed = json!({ "toAgentId": to, "type": "t", "body": {"n": 1}, "idempotencyKey": "once" });
        let mut other = keyed.clone();
        other["body"] = json!({ "n": 2 });
        other["toAgentId"] = json!(to);
        let results = batch(json!([
            mail(&to, &json!({ "n": 0 })), keyed, keyed, other, {"type": "t"}, 7, mail(&to, &json!([1])),
            {"topic": "news", "type": "t", "body": {}}, mail(&to, &json!("text")),
        ]))
        .header("x-unknown", "1")
        .to(url)
        .await;
        // In later turns the idempotency key belongs to a message to another receiver.
        let results = results.ok()["results"].clone();
        let statuses: Vec<u64> = results
            .as_array()
            .unwrap()
            .iter()
            .map(|r| r["status"].as_u64().unwrap())
            .collect();
        let keyed_status = if turn == 0 { 200 } else { 422 };
        assert_eq!(
            statuses,
            [200, keyed_status, keyed_status, 422, 400, 400, 400, 200, 200]
        );
        for result in results.as_array().unwrap() {
            assert_eq!(result["success"].as_bool().unwrap(), result["status"] == 200);
            assert_eq!(result["messageId"].is_string(), result["status"] == 200);
            assert_eq!(result["error"].is_string(), result["status"] != 200);
        }
        let mut expected = vec![json!({ "n": 0 }), json!({ "text": "text" })];
        if turn == 0 {
            assert_eq!(results[1]["messageId"], results[2]["messageId"]);
            expected.insert(1, json!({ "n": 1 }));
        }
        assert_eq!(
            bodies(&list(&office.urls[(turn + 1) % 3], &office.team, &to, "").await),
            expected
        );
    }
    assert_eq!(
        batch(json!([])).to(&office.urls[0]).await.ok(),
        json!({ "results": [] })
    );
    let hundred = |n: usize| Value::from(vec![mail("gamma", &json!({})); n]);
    assert_eq!(
        batch(hundred(100)).to(&office.urls[1]).await.ok()["results"]
            .as_array()
            .unwrap()
            .len(),
        100
    );
    batch(hundred(101)).to(&office.urls[1]).await.error(400);
    batch(hundred(1)).once("k").to(&office.urls[1]).await.error(400);
    assert_eq!(
        list(&office.urls[0], &office.team, "gamma", "limit=200").await["messages"]
            .as_array()
            .unwrap()
            .len(),
        100
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_only_local_reads_are_answered() {
    let office = office().await;
    send(&office.urls[0], &office.team, "alpha", "beta", &json!({ "n": 1 })).await;
    // Every node has applied the message before two of them are killed.
    for url in &office.urls {
        assert_eq!(
            bodies(&list(url, &office.team, "beta", "consistency=linearizable").await).len(),
            1
        );
    }
    let left = office.cluster.leader().await;
    for node in (0..3).filter(|node| *node != left) {
        office.cluster.kill(node).await;
    }
    let url = &office.urls[left];
    assert_eq!(
        bodies(&list(url, &office.team, "beta", "consistency=local").await),
        [json!({ "n": 1 })]
    );
    let get = Call::get("/v1/messages")
        .key(&office.team.key)
        .agent("beta")
        .to(url)
        .await;
    assert_eq!(get.headers["retry-after"], "1");
    get.error(503);
    let post = Call::post("/v1/messages", &mail("beta", &json!({ "n": 2 })))
        .key(&office.team.key)
        .agent("alpha")
        .to(url)
        .await;
    assert!(matches!(post.status, 503 | 504), "{}", post.body);
    // Without the leader a node cannot tell whether an unknown key exists.
    let unknown = Call::get("/v1/messages?consistency=local")
        .key("aba_unknown")
        .agent("beta")
        .to(url)
        .await;
    assert_eq!(unknown.headers["retry-after"], "1");
    unknown.error(503);
    Call::get("/readyz").to(url).await.error(503);
    Call::get("/health").to(url).await.ok();
}
