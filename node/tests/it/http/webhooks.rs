//! Webhooks of agents: registering, reading, deleting, and their secrets.

use agentpost_proto::api::abbababa::WebhookResponse;
use serde_json::{Value, json};

use crate::common::office::{Office, office};
use crate::common::web::{Call, new_key};

const HOOK: &str = "https://my-agent.example/webhooks/messages?x=%7E";

fn register(url: &str, events: &[&str]) -> Call {
    Call::post("/v1/messages/webhook", &json!({ "url": url, "events": events }))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_is_registered_replaced_and_deleted_through_any_node() {
    let office = office().await;
    let alpha = office.team.bound(&office.urls[0], &office.admin, "alpha").await;
    let get = |agent: &str| Call::get("/api/v1/messages/webhook").key(&office.team.key).agent(agent);
    let none = get("alpha").to(&office.urls[1]).await.ok();
    assert_eq!(none, json!({ "success": true, "webhook": null, "data": null }));

    let made = register(HOOK, &["message.topic", "message.received", "message.topic"]).key(&alpha);
    let made = made.to(&office.urls[0]).await.ok();
    serde_json::from_value::<WebhookResponse>(made.clone()).unwrap();
    assert_eq!(made["webhook"], made["data"]);
    let first = made["webhook"].clone();
    assert!(first["id"].as_str().unwrap().starts_with("whk_"));
    assert!(first["secret"].as_str().unwrap().starts_with("whsec_"));
    assert!(first["isActive"] == true && first["createdAt"].is_string() && first["agentId"] == "alpha");
    // The URL is stored unchanged.
    assert_eq!(first["url"], HOOK);
    assert_eq!(first["events"], json!(["message.received", "message.topic"]));
    for url in &office.urls {
        assert_eq!(get("alpha").to(url).await.ok()["webhook"], first);
        assert_eq!(get("beta").to(url).await.ok()["webhook"], Value::Null);
    }

    // Registering the same URL keeps the secret; another URL gets another secret.
    let same = register(HOOK, &["message.received"])
        .key(&alpha)
        .to(&office.urls[1])
        .await
        .ok()["webhook"]
        .clone();
    assert_eq!(
        (&same["secret"], &same["events"]),
        (&first["secret"], &json!(["message.received"]))
    );
    let other = register("https://my-agent.example/", &["message.received"]).key(&alpha);
    let other = other.to(&office.urls[2]).await.ok()["webhook"].clone();
    assert_ne!(other["secret"], first["secret"]);
    assert_eq!(get("alpha").to(&office.urls[0]).await.ok()["webhook"], other);

    for url in &office.urls[..2] {
        let done = Call::delete("/v1/messages/webhook").key(&alpha).to(url).await.ok();
        assert!(done["success"] == true && done["data"]["message"].is_string());
    }
    assert_eq!(get("alpha").to(&office.urls[2]).await.ok(), none);
    // After a deletion, registering makes a new secret.
    let again = register(HOOK, &["message.received"])
        .key(&alpha)
        .to(&office.urls[1])
        .await
        .ok();
    assert_ne!(again["webhook"]["secret"], first["secret"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_belongs_to_an_agent_and_a_url() {
    let office = Office::start(1, "").await;
    let url = office.urls[0].as_str();
    let other = office.new_team("others").await;
    let subscribe = Call::post("/v1/messages/subscribe", &json!({ "topic": "t", "webhookUrl": HOOK }));
    let secret_of = async |call: Call, key: &str, agent: &str| {
        let answer = call.key(key).agent(agent).to(url).await.ok();
        answer["data"]["secret"].as_str().unwrap().to_owned()
    };
    let hook = register(HOOK, &["message.received"]);
    let webhook = secret_of(hook.clone(), &office.team.key, "alpha").await;
    assert_eq!(secret_of(subscribe.clone(), &office.team.key, "alpha").await, webhook);
    let mut secrets = vec![
        secret_of(hook.clone(), &office.team.key, "beta").await,
        secret_of(hook.clone(), &other.key, "alpha").await,
        webhook.clone(),
    ];
    secrets.sort();
    secrets.dedup();
    assert_eq!(secrets.len(), 3);
    // The subscription keeps the URL when the webhook is deleted.
    Call::delete("/v1/messages/webhook")
        .key(&office.team.key)
        .agent("alpha")
        .to(url)
        .await
        .ok();
    assert_eq!(secret_of(subscribe, &office.team.key, "alpha").await, webhook);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_agent_that_may_write_registers() {
    let office = Office::start(1, "").await;
    let url = office.urls[0].as_str();
    let wanted = json!({ "name": "r", "permissions": ["read"] });
    let (_, reader) = new_key(url, &office.admin, &office.team.id, &wanted).await;
    let alpha = office.team.bound(url, &office.admin, "alpha").await;
    let changes = [
        register(HOOK, &["message.received"]),
        Call::delete("/v1/messages/webhook"),
        Call::post("/v1/messages/subscribe", &json!({ "topic": "t", "webhookUrl": HOOK })),
        Call::delete("/v1/messages/subscribe?topic=t"),
    ];
    for call in &changes {
        call.clone().key(&office.team.key).to(url).await.error(403);
        call.clone()
            .key(&office.team.key)
            .agent("system")
            .to(url)
            .await
            .error(403);
        call.clone().key(&alpha).agent("beta").to(url).await.error(403);
        call.clone().key(&reader).agent("alpha").to(url).await.error(403);
        call.clone().agent("alpha").to(url).await.error(401);
    }
    for path in ["/v1/messages/webhook", "/v1/messages/subscribe"] {
        Call::get(path).key(&office.team.key).to(url).await.error(403);
        Call::get(path).to(url).await.error(401);
        let nothing = Call::get(path).key(&reader).agent("alpha").to(url).await.ok();
        assert!(
            nothing["data"] == Value::Null || nothing["data"] == json!([]),
            "{nothing}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_url_is_a_400_and_changes_nothing() {
    let office = Office::start(1, "").await;
    let url = office.urls[0].as_str();
    register(HOOK, &["message.received"])
        .key(&office.team.key)
        .agent("alpha")
        .to(url)
        .await
        .ok();
    let get = Call::get("/v1/messages/webhook").key(&office.team.key).agent("alpha");
    let before = get.clone().to(url).await.ok();
    let long = format!("https://my-agent.example/{}", "x".repeat(2048));
    for bad in [
        "",
        "my-agent.example",
        "/webhooks",
        "http://my-agent.example/",
        "ftp://my-agent.example/",
        "javascript:alert(1)",
        "https://",
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://localhost/",
        "https://10.0.0.1/x",
        "https://169.254.169.254/latest/meta-data",
        "https://user:pass@my-agent.example/",
        "https://my-agent.example/\u{7}",
        "https://my agent.example/",
        &long,
    ] {
        let webhook = register(bad, &["message.received"])
            .key(&office.team.key)
            .agent("alpha")
            .to(url)
            .await;
        assert_eq!(webhook.body["details"][0]["field"], "url", "{bad}: {}", webhook.body);
        webhook.error(400);
        for name in ["webhookUrl", "callbackUrl"] {
            let body = json!({ "topic": "t", name: bad });
            let answer = Call::post("/v1/messages/subscribe", &body)
                .key(&office.team.key)
                .agent("alpha")
                .to(url)
                .await;
            assert_eq!(answer.body["details"][0]["field"], name, "{bad}: {}", answer.body);
            answer.error(400);
        }
    }
    assert_eq!(get.to(url).await.ok(), before);
    let listed = Call::get("/v1/messages/subscribe")
        .key(&office.team.key)
        .agent("alpha")
        .to(url)
        .await
        .ok();
    assert_eq!(listed["subscriptions"], json!([]));
}
