//! Topics of the Abba Baba API: subscribing, publishing, and what each agent sees.

use agentpost_proto::api::abbababa::{
    GetResponse, ListResponse, ReceiptResponse, SendResponse, SubscriptionResponse, SubscriptionsResponse,
};
use futures::future::join_all;
use serde_json::{Value, json};

use crate::common::TestCluster;
use crate::common::office::{Office, office};
use crate::common::web::{Call, Team, bodies, list, mail, new_key};

const MOUNTS: [&str; 2] = ["/api/v1", "/v1"];

fn news(body: &Value) -> Value {
    json!({ "topic": "news", "type": "news.item", "body": body })
}

async fn subscribe(url: &str, team: &Team, agent: &str, topic: &str) -> Value {
    Call::post("/v1/messages/subscribe", &json!({ "topic": topic }))
        .key(&team.key)
        .agent(agent)
        .to(url)
        .await
        .ok()["subscription"]
        .clone()
}

async fn publish(url: &str, team: &Team, from: &str, body: &Value) -> Value {
    Call::post("/v1/messages", &news(body))
        .key(&team.key)
        .agent(from)
        .to(url)
        .await
        .ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_reaches_whoever_is_subscribed_at_that_moment() {
    let office = office().await;
    for (turn, agent) in ["alpha", "beta", "gamma"].into_iter().enumerate() {
        subscribe(&office.urls[turn], &office.team, agent, "news").await;
    }
    let sent = publish(&office.urls[0], &office.team, "alpha", &json!({ "n": 1 })).await;
    serde_json::from_value::<SendResponse>(sent.clone()).unwrap();
    assert!(sent.get("fanout").is_none());
    assert_eq!(
        (&sent["data"]["toAgentId"], &sent["data"]["topic"]),
        (&Value::Null, &json!("news"))
    );
    let path = format!("/v1/messages/{}", sent["messageId"].as_str().unwrap());
    for (turn, agent) in ["beta", "gamma"].into_iter().enumerate() {
        let inbox = list(&office.urls[turn], &office.team, agent, "topic=news").await;
        serde_json::from_value::<ListResponse>(inbox.clone()).unwrap();
        let received = &inbox["messages"][0];
        assert_eq!(
            (&received["toAgentId"], &received["topic"]),
            (&json!(agent), &json!("news"))
        );
        assert_eq!(
            list(&office.urls[turn], &office.team, agent, "topic=other").await["messages"],
            json!([])
        );
        let got = Call::get(&path)
            .key(&office.team.key)
            .agent(agent)
            .to(&office.urls[2])
            .await
            .ok();
        serde_json::from_value::<GetResponse>(got.clone()).unwrap();
        assert_eq!(got["message"], *received);
    }
    // The publisher sees the message as its sender, but not in its inbox.
    assert_eq!(
        bodies(&list(&office.urls[1], &office.team, "alpha", "").await),
        [] as [Value; 0]
    );
    let own = Call::get(&path)
        .key(&office.team.key)
        .agent("alpha")
        .to(&office.urls[1])
        .await
        .ok();
    assert_eq!(own["message"], sent["data"]);
    Call::get(&path)
        .key(&office.team.key)
        .agent("delta")
        .to(&office.urls[1])
        .await
        .error(404);

    // Each receiver has its own read mark.
    let marked = Call::patch(&path, &json!({ "read": true }))
        .key(&office.team.key)
        .agent("beta")
        .to(&office.urls[0])
        .await
        .ok();
    assert!(marked["data"]["readAt"].is_string() && marked["data"]["toAgentId"] == "beta");
    let other = list(&office.urls[1], &office.team, "gamma", "").await;
    assert_eq!(other["messages"][0]["readAt"], Value::Null);
    let mark = Call::patch(&path, &json!({ "read": true }))
        .key(&office.team.key)
        .agent("alpha");
    mark.to(&office.urls[0]).await.error(404);

    unsubscribe_beta_and_gamma(&office).await;
    publish(&office.urls[2], &office.team, "delta", &json!({ "n": 2 })).await;
    assert_eq!(
        bodies(&list(&office.urls[1], &office.team, "beta", "").await),
        [json!({ "n": 1 })]
    );
    assert_eq!(
        bodies(&list(&office.urls[1], &office.team, "alpha", "").await),
        [json!({ "n": 2 })]
    );
}

/// Unsubscribes twice each: the topic may be in the query or in the body.
async fn unsubscribe_beta_and_gamma(office: &Office) {
    for (url, agent, call) in [
        (
            &office.urls[0],
            "beta",
            Call::delete("/api/v1/messages/subscribe?topic=news"),
        ),
        (
            &office.urls[1],
            "gamma",
            Call::delete("/v1/messages/subscribe").json(&json!({ "topic": "news" })),
        ),
    ] {
        for _ in 0..2 {
            let done = call.clone().key(&office.team.key).agent(agent).to(url).await.ok();
            assert!(done["success"] == true && done["data"]["message"].is_string());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn subscribing_again_changes_nothing_but_the_url() {
    let settings = "[webhooks]\nallow_http = true\nallow_networks = [\"127.0.0.0/8\"]\n";
    let cluster = TestCluster::start_with(3, settings).await;
    let (urls, admin) = (cluster.urls(), cluster.admin_key());
    let team = Team::create(&urls[0], &admin, "again").await;
    let call = |body: &Value, turn: usize| {
        let call = Call::post(format!("{}/messages/subscribe", MOUNTS[turn % 2]), body);
        let (call, url) = (call.key(&team.key).agent("alpha"), urls[turn % 3].clone());
        async move { call.to(&url).await.ok() }
    };
    let (one, two) = ("http://127.0.0.1:1024/one", "http://127.0.0.1:1024/two?q=%7E");
    let first = call(&json!({ "topic": "a/b", "webhookUrl": one }), 0).await;
    serde_json::from_value::<SubscriptionResponse>(first.clone()).unwrap();
    assert_eq!(first["subscription"], first["data"]);
    let first = first["data"].clone();
    assert!(first["id"].as_str().unwrap().starts_with("sub_"));
    assert!(first["secret"].as_str().unwrap().starts_with("whsec_"));
    assert_eq!(
        (&first["agentId"], &first["topic"], &first["isActive"]),
        (&json!("alpha"), &json!("a/b"), &json!(true))
    );
    assert_eq!(
        (&first["webhookUrl"], &first["callbackUrl"]),
        (&json!(one), &json!(one))
    );
    // Without a URL, the old URL and its secret are kept.
    assert_eq!(call(&json!({ "topic": "a/b" }), 1).await["data"], first);
    let changed = call(&json!({ "topic": "a/b", "callbackUrl": two }), 2).await["data"].clone();
    assert_eq!(
        (&changed["id"], &changed["createdAt"]),
        (&first["id"], &first["createdAt"])
    );
    assert_eq!(changed["webhookUrl"], two);
    assert_ne!(changed["secret"], first["secret"]);
    let listed = Call::get("/v1/messages/subscribe")
        .key(&team.key)
        .agent("alpha")
        .to(&urls[1])
        .await
        .ok();
    serde_json::from_value::<SubscriptionsResponse>(listed.clone()).unwrap();
    assert_eq!(listed["subscriptions"], json!([changed]));
    assert_eq!(listed["subscriptions"], listed["data"]);
    let removed = call(&json!({ "topic": "a/b", "webhookUrl": null }), 0).await["data"].clone();
    assert_eq!(
        (&removed["webhookUrl"], &removed["callbackUrl"]),
        (&Value::Null, &Value::Null)
    );
    assert!(removed.get("secret").is_none());
    // No other agent's list shows the subscription.
    for (agent, key) in [
        ("beta", &team.key),
        ("alpha", &Team::create(&urls[0], &admin, "other").await.key),
    ] {
        let listed = Call::get("/v1/messages/subscribe").key(key).agent(agent);
        assert_eq!(listed.to(&urls[2]).await.ok()["subscriptions"], json!([]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_of_another_team_are_other_topics() {
    let office = Office::start(1, "").await;
    let url = office.urls[0].as_str();
    let ours = office.team.clone();
    let theirs = office.new_team("theirs").await;
    subscribe(url, &ours, "beta", "news").await;
    let sent = publish(url, &theirs, "alpha", &json!({ "n": 1 })).await;
    assert_eq!(list(url, &ours, "beta", "").await["messages"], json!([]));
    // The other team sees neither the message nor its receipt.
    let id = sent["messageId"].as_str().unwrap();
    for path in [format!("/v1/messages/{id}"), format!("/v1/messages/{id}/receipt")] {
        let ours = Call::get(path.clone()).key(&ours.key).agent("alpha").to(url).await;
        assert_eq!(ours.error(404), "no such message");
        Call::get(path).key(&theirs.key).agent("alpha").to(url).await.ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_publish_is_one_message() {
    let office = office().await;
    subscribe(&office.urls[0], &office.team, "beta", "news").await;
    let call = |topic: &str| {
        let body = json!({ "topic": topic, "type": "t", "body": { "n": 1 } });
        Call::post("/v1/messages", &body)
            .key(&office.team.key)
            .agent("alpha")
            .once("k")
    };
    let first = call("news").to(&office.urls[0]).await.ok();
    for url in &office.urls {
        assert_eq!(call("news").to(url).await.ok(), first);
        call("olds").to(url).await.error(422);
        // A direct message to an agent with the topic's name is another operation.
        let direct = Call::post(
            "/v1/messages",
            &json!({ "toAgentId": "news", "type": "t", "body": { "n": 1 } }),
        );
        direct
            .key(&office.team.key)
            .agent("alpha")
            .once("k")
            .to(url)
            .await
            .error(422);
    }
    let batch = json!({ "messages": [
        { "topic": "news", "type": "t", "body": { "n": 1 }, "idempotencyKey": "k" },
        { "topic": "news", "type": "t", "body": { "n": 2 } },
        { "topic": "news", "toAgentId": "beta", "type": "t", "body": {} },
        mail("beta", &json!({ "n": 3 })),
    ]});
    let results = Call::post("/v1/messages/batch", &batch)
        .key(&office.team.key)
        .agent("alpha")
        .to(&office.urls[1])
        .await
        .ok();
    let statuses: Vec<_> = results["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["status"].clone())
        .collect();
    assert_eq!(statuses, [200, 200, 400, 200]);
    assert_eq!(results["results"][0]["messageId"], first["messageId"]);
    let expected: Vec<_> = (1..4).map(|n| json!({ "n": n })).collect();
    assert_eq!(bodies(&list(&office.urls[2], &office.team, "beta", "").await), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_publish_is_answered_when_every_inbox_has_it() {
    let office = office().await;
    let agents: Vec<String> = (0..600).map(|n| format!("agent-{n}")).collect();
    for some in agents.chunks(50) {
        join_all(
            some.iter()
                .map(|agent| subscribe(&office.urls[0], &office.team, agent, "news")),
        )
        .await;
    }
    for (turn, url) in office.urls.iter().enumerate() {
        let call = Call::post("/v1/messages", &news(&json!({ "turn": turn })))
            .key(&office.team.key)
            .agent("alpha")
            .once(&format!("turn {turn}"));
        let sent = call.clone().to(url).await.ok();
        assert!(sent.get("fanout").is_none(), "{sent}");
        let last = list(
            &office.urls[(turn + 1) % 3],
            &office.team,
            &agents[599],
            "order=desc&limit=1",
        )
        .await;
        assert_eq!(last["messages"][0]["id"], sent["messageId"]);
        // A repeat does not wait.
        assert_eq!(call.to(&office.urls[0]).await.ok(), sent);
    }
    let expected: Vec<_> = (0..3).map(|turn| json!({ "turn": turn })).collect();
    for agent in agents.iter().step_by(100) {
        assert_eq!(bodies(&list(&office.urls[0], &office.team, agent, "").await), expected);
    }
    let id = list(&office.urls[0], &office.team, &agents[0], "").await["messages"][0]["id"].clone();
    let receipt = Call::get(format!("/v1/messages/{}/receipt", id.as_str().unwrap()))
        .key(&office.team.key)
        .agent("alpha")
        .to(&office.urls[1])
        .await
        .ok()["receipt"]
        .clone();
    assert_eq!(receipt["counts"], json!({ "receivers": 600, "read": 0 }));
    assert_eq!(
        (&receipt["fanout"], receipt["read"].as_array().unwrap().len()),
        (&json!("complete"), 200)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_tells_the_sender_who_read() {
    let office = office().await;
    let wanted = json!({ "name": "a", "permissions": ["admin"] });
    let (_, team_admin) = new_key(&office.urls[0], &office.admin, &office.team.id, &wanted).await;
    for agent in ["beta", "gamma"] {
        subscribe(&office.urls[0], &office.team, agent, "news").await;
    }
    let topic = publish(&office.urls[0], &office.team, "alpha", &json!({})).await["messageId"].clone();
    let direct = Call::post("/v1/messages", &mail("beta", &json!({})))
        .key(&office.team.key)
        .agent("alpha");
    let direct = direct.to(&office.urls[1]).await.ok()["messageId"].clone();
    let receipt = |id: &Value| Call::get(format!("/v1/messages/{}/receipt", id.as_str().unwrap()));
    for id in [&topic, &direct] {
        let path = format!("/api/v1/messages/{}", id.as_str().unwrap());
        let mark = Call::new(axum::http::Method::PATCH, path)
            .key(&office.team.key)
            .agent("beta");
        let read_at = mark.to(&office.urls[2]).await.ok()["data"]["readAt"].clone();
        let answer = receipt(id)
            .key(&office.team.key)
            .agent("alpha")
            .to(&office.urls[0])
            .await
            .ok();
        serde_json::from_value::<ReceiptResponse>(answer.clone()).unwrap();
        assert_eq!(answer["receipt"], answer["data"]);
        let shown = &answer["receipt"];
        assert!(shown["accepted"] == true && shown["stored"] == true && shown["fanout"] == "complete");
        assert_eq!(shown["read"][0], json!({ "agentId": "beta", "readAt": read_at }));
        assert_eq!(shown["delivered"], json!([]));
        // A team admin may read the receipt; receivers and admin keys that are bound to an agent may not.
        assert_eq!(receipt(id).key(&team_admin).to(&office.urls[1]).await.ok(), answer);
        receipt(id).key(&office.team.key).to(&office.urls[1]).await.error(403);
        for agent in ["beta", "delta"] {
            receipt(id)
                .key(&office.team.key)
                .agent(agent)
                .to(&office.urls[1])
                .await
                .error(404);
        }
    }
    let shown = receipt(&topic)
        .key(&office.team.key)
        .agent("alpha")
        .to(&office.urls[0])
        .await
        .ok()["receipt"]
        .clone();
    assert_eq!(shown["read"][1], json!({ "agentId": "gamma", "readAt": null }));
    assert_eq!(shown["counts"], json!({ "receivers": 2, "read": 1 }));
    assert_eq!((&shown["toAgentId"], &shown["topic"]), (&Value::Null, &json!("news")));
    receipt(&json!("nothing"))
        .key(&office.team.key)
        .agent("alpha")
        .to(&office.urls[0])
        .await
        .error(404);
}
