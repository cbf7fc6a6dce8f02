//! What the calls around topics, webhooks and deliveries ask for, against a server that answers from a script.

use agentpost::{Agent, Agentpost, Error, Fanout, WebhookEvent};
use agentpost_testkit::scripted_server::{ScriptedServer, Seen};
use serde_json::{Value, json};

fn agent(server: &ScriptedServer) -> Agent {
    let post = Agentpost::builder(&server.base).key("aba_key").build().unwrap();
    post.agent("b")
}

/// Method, path and body of what was asked.
fn asked(server: &ScriptedServer) -> Vec<(String, Value)> {
    let of = |body: &str| serde_json::from_str(body).unwrap_or(Value::Null);
    let seen = server.seen();
    // The signing keys are the team's, whoever asks.
    let as_agent = |seen: &Seen| seen.header("x-agent-id") == "b" || seen.path == "/v2/keys";
    assert!(seen.iter().all(as_agent));
    seen.iter()
        .map(|seen| (format!("{} {}", seen.method, seen.path), of(&seen.body)))
        .collect()
}

fn subscription(url: Value) -> Value {
    json!({"id": "sub_1", "agentId": "b", "topic": "t", "webhookUrl": url, "callbackUrl": url, "isActive": true,
           "createdAt": "x", "updatedAt": "x", "secret": "whsec_1", "something": "new"})
}

#[tokio::test]
async fn a_subscription_keeps_sets_or_removes_its_url() {
    let server = ScriptedServer::start().await;
    let agent = agent(&server);
    for url in [json!(null), json!("http://h"), json!(null)] {
        server.answer(
            200,
            json!({"success": true, "subscription": subscription(url)}).to_string(),
        );
    }
    server.answer(200, json!({"success": true}).to_string()).answer(
        200,
        json!({"success": true, "subscriptions": [subscription(json!(null))]}).to_string(),
    );
    agent.subscribe("t").await.unwrap();
    let with_url = agent.subscribe("t").webhook_url("http://h").await.unwrap();
    assert_eq!(with_url.webhook_url.as_deref(), Some("http://h"));
    assert_eq!(with_url.secret.as_deref(), Some("whsec_1"));
    agent.subscribe("t").without_webhook_url().await.unwrap();
    agent.unsubscribe("a/b").await.unwrap();
    assert_eq!(agent.subscriptions().await.unwrap()[0].topic, "t");
    let path = "/v1/messages/subscribe";
    assert_eq!(
        asked(&server),
        [
            (format!("POST {path}"), json!({"topic": "t"})),
            (format!("POST {path}"), json!({"topic": "t", "webhookUrl": "http://h"})),
            (format!("POST {path}"), json!({"topic": "t", "webhookUrl": null})),
            (format!("DELETE {path}?topic=a%2Fb"), Value::Null),
            (format!("GET {path}"), Value::Null),
        ]
    );
}

#[tokio::test]
async fn a_publish_carries_an_idempotency_key_and_tells_of_pending_inboxes() {
    let server = ScriptedServer::start().await;
    let reply = json!({"success": true, "messageId": "msg_1", "fanout": "pending"}).to_string();
    server.answer(504, "").answer(200, reply);
    let draft = agent(&server).publish("t", json!({"usdc": 5})).kind("price.quote");
    let sent = draft.await.unwrap();
    assert_eq!((sent.id.as_str(), sent.fanout), ("msg_1", Fanout::Pending));
    let seen = server.seen();
    assert_eq!(
        seen[0].json(),
        json!({"topic": "t", "type": "price.quote", "body": {"usdc": 5}})
    );
    let keys: Vec<&str> = seen.iter().map(|seen| seen.header("idempotency-key")).collect();
    assert!(keys[0].len() == 36 && keys[0] == keys[1], "{keys:?}");
}

#[tokio::test]
async fn a_webhook_is_registered_looked_at_and_deleted() {
    let server = ScriptedServer::start().await;
    let webhook = json!({"id": "whk_1", "agentId": "b", "url": "http://h", "events": ["message.topic"],
                         "isActive": true, "createdAt": "x", "secret": "whsec_1"});
    server
        .answer(200, json!({"success": true, "webhook": webhook}).to_string())
        .answer(200, json!({"success": true, "webhook": null}).to_string())
        .answer(200, json!({"success": true}).to_string())
        .answer(200, json!({"success": true}).to_string());
    let agent = agent(&server);
    let topics = || agent.webhook().set("http://h").events([WebhookEvent::MessageTopic]);
    let made = topics().await.unwrap();
    assert_eq!(&*made.secret, "whsec_1");
    assert_eq!(agent.webhook().get().await.unwrap(), None);
    agent.webhook().remove().await.unwrap();
    // The answer to a registration must hold its webhook.
    let end = topics().await;
    assert!(matches!(end, Err(Error::Malformed(_))), "{end:?}");
    let asked = asked(&server);
    let wanted = json!({"url": "http://h", "events": ["message.topic"]});
    assert_eq!(asked[0], ("POST /v1/messages/webhook".to_owned(), wanted));
    assert_eq!(asked[1].0, "GET /v1/messages/webhook");
    assert_eq!(asked[2].0, "DELETE /v1/messages/webhook");
}

#[tokio::test]
async fn deliveries_receipts_and_keys_of_an_agent() {
    let server = ScriptedServer::start().await;
    let receipt = json!({"messageId": "msg_1", "toAgentId": "b", "topic": null, "accepted": true, "acceptedAt": "x",
        "stored": true, "fanout": "complete", "counts": {"receivers": 1, "read": 1},
        "delivered": [{"id": "dlv_1", "toAgentId": "b", "state": "delivered", "attempts": 3}],
        "read": [{"agentId": "b", "readAt": "y"}]});
    let page = json!({"success": true, "deliveries": [], "cursor": "c"}).to_string();
    let keys = json!({"current": "sig_1", "next": "sig_2"}).to_string();
    server
        .answer(200, json!({"success": true, "receipt": receipt}).to_string())
        .answer(200, page)
        .answer(200, json!({"success": true, "deliveryId": "dlv_2"}).to_string())
        .answer(504, "")
        .answer(200, &keys[..]);
    let agent = agent(&server);
    let receipt = agent.receipt("msg_1").await.unwrap();
    assert_eq!((receipt.counts.read, receipt.delivered[0].attempts), (1, 3));
    assert_eq!(agent.deliveries().await.unwrap().cursor, "c");
    assert_eq!(agent.redrive("dlv_1").await.unwrap(), "dlv_2");
    // A repeat could not tell who has cancelled it.
    let end = agent.cancel_delivery("dlv_1").await;
    assert!(matches!(end, Err(Error::OutcomeUnknown { .. })), "{end:?}");
    assert_eq!(&*agent.post().signing_keys().await.unwrap().next, "sig_2");
    let paths: Vec<String> = asked(&server).into_iter().map(|(path, _)| path).collect();
    assert_eq!(
        paths,
        [
            "GET /v1/messages/msg_1/receipt",
            "GET /v1/deliveries",
            "POST /v1/deliveries/dlv_1/redrive",
            "DELETE /v1/deliveries/dlv_1",
            "GET /v2/keys",
        ]
    );
}
