//! What the calls of an agent ask for, and which answers are which errors, against servers that answer from a script.

use std::time::Duration;

use agentpost::http::Request;
use agentpost::retry::RetryPolicy;
use agentpost::{Agent, Agentpost, DeliveryState, Error, Fanout, Permission, Priority, WebhookEvent};
use agentpost_testkit::ports::refusing_url;
use agentpost_testkit::scripted_server::{ScriptedServer, Seen};
use serde_json::{Value, json};

fn post(urls: &[&str]) -> Agentpost {
    let policy = RetryPolicy {
        pause_min: Duration::from_millis(1),
        ..RetryPolicy::default()
    };
    Agentpost::builder(urls.join(","))
        .key("k")
        .retry(policy)
        .build()
        .unwrap()
}

fn beta(server: &ScriptedServer) -> Agent {
    post(&[&server.base]).agent("beta")
}

/// Method, path and body of what was asked.
fn asked(server: &ScriptedServer) -> Vec<(String, Value)> {
    let of = |body: &str| serde_json::from_str(body).unwrap_or(Value::Null);
    let seen = server.seen();
    let line = |seen: &Seen| (format!("{} {}", seen.method, seen.path), of(&seen.body));
    seen.iter().map(line).collect()
}

const SENT: &str = "{\"success\":true,\"messageId\":\"msg_1\"}";

#[tokio::test]
async fn a_draft_names_only_what_was_set() {
    let server = ScriptedServer::start().await;
    let beta = beta(&server);
    for _ in 0..4 {
        server.answer(200, SENT);
    }
    let sent = beta.send("alpha", "hi").await.unwrap();
    assert_eq!((sent.id.as_str(), sent.fanout), ("msg_1", Fanout::Complete));
    beta.send("alpha", json!({ "n": 1 }))
        .kind("k")
        .thread("t")
        .reply_to("msg_0")
        .subject("s")
        .priority(Priority::Urgent)
        .metadata(json!({ "m": 1 }))
        .callback_url("https://c")
        .expires_at("2026-12-31T00:00:00Z")
        .idempotency_key("order-17")
        .await
        .unwrap();
    beta.publish("news/x", vec![1, 2]).await.unwrap();
    let wire = serde_json::from_value(json!({ "toAgentId": "alpha", "messageType": "sdk", "body": "x" })).unwrap();
    beta.draft(wire).await.unwrap();

    let path = "POST /v1/messages".to_owned();
    let all = json!({"toAgentId": "alpha", "type": "k", "body": {"n": 1}, "threadId": "t", "replyToId": "msg_0",
                     "subject": "s", "priority": "urgent", "callbackUrl": "https://c", "metadata": {"m": 1},
                     "expiresAt": "2026-12-31T00:00:00Z"});
    assert_eq!(
        asked(&server),
        [
            (
                path.clone(),
                json!({"toAgentId": "alpha", "type": "message", "body": "hi"})
            ),
            (path.clone(), all),
            (
                path.clone(),
                json!({"topic": "news/x", "type": "message", "body": [1, 2]})
            ),
            (path, json!({"toAgentId": "alpha", "messageType": "sdk", "body": "x"})),
        ]
    );
    let seen = server.seen();
    assert!(seen.iter().all(|seen| seen.header("x-agent-id") == "beta"));
    assert!(seen.iter().all(|seen| seen.header("authorization") == "Bearer k"));
    assert_eq!(seen[1].header("idempotency-key"), "order-17");
    let fresh = [&seen[0], &seen[2], &seen[3]].map(|seen| seen.header("idempotency-key").to_owned());
    assert!(
        fresh.iter().all(|key| !key.is_empty()) && fresh[0] != fresh[1] && fresh[1] != fresh[2],
        "{fresh:?}"
    );
}

#[tokio::test]
async fn an_attempt_of_unknown_outcome_is_repeated_under_the_same_key() {
    let server = ScriptedServer::start().await;
    server
        .answer(504, "{\"error\":\"outcome unknown\"}")
        .answer(500, "")
        .answer(200, SENT);
    beta(&server).send("alpha", "hi").await.unwrap();
    let keys: Vec<String> = server
        .seen()
        .iter()
        .map(|seen| seen.header("idempotency-key").to_owned())
        .collect();
    assert!(
        keys.len() == 3 && keys.iter().all(|key| *key == keys[0] && !key.is_empty()),
        "{keys:?}"
    );
}

#[tokio::test]
async fn a_node_that_does_not_answer_is_passed_over() {
    let (first, second) = (ScriptedServer::start().await, ScriptedServer::start().await);
    first.answer(503, "{\"error\":\"no leader\"}");
    second.answer(200, SENT).answer(200, SENT);
    let beta = post(&[&refusing_url(), &first.base, &second.base]).agent("beta");
    for _ in 0..2 {
        beta.send("alpha", "hi").await.unwrap();
    }
    assert_eq!((first.seen().len(), second.seen().len()), (1, 2));
}

#[tokio::test]
async fn errors_tell_what_may_be_done_next() {
    let server = ScriptedServer::start().await;
    let once = Agentpost::builder(&server.base)
        .key("k")
        .retry(RetryPolicy::once())
        .build()
        .unwrap();
    let beta = once.agent("beta");
    server
        .answer(
            422,
            "{\"success\":false,\"error\":\"used for another message\",\"code\":\"conflict\"}",
        )
        .answer(503, "{\"error\":\"no leader\"}")
        .answer(504, "{\"error\":\"outcome unknown\"}")
        .answer(200, "<html>");
    let refused = beta.send("alpha", "hi").await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "used for another message (422 Unprocessable Entity)"
    );
    assert!(matches!(refused, Error::Refused(_)));
    assert!(matches!(beta.send("alpha", "hi").await, Err(Error::Unavailable { .. })));
    assert!(matches!(
        beta.send("alpha", "hi").await,
        Err(Error::OutcomeUnknown { .. })
    ));
    assert!(matches!(beta.send("alpha", "hi").await, Err(Error::Malformed(_))));
    // Neither of them can be sent.
    let pairs = std::collections::HashMap::from([((1, 2), 3)]);
    assert!(matches!(
        beta.send("alpha", pairs.clone()).await,
        Err(Error::Invalid(_))
    ));
    assert!(matches!(
        beta.send("alpha", "hi").metadata(pairs).await,
        Err(Error::Invalid(_))
    ));
    assert!(matches!(
        beta.send("alpha", "hi").idempotency_key("a\n").await,
        Err(Error::Invalid(_))
    ));
    assert_eq!(server.seen().len(), 4);
    let away = post(&[&refusing_url()]).agent("beta").inbox().await.unwrap_err();
    assert!(matches!(away, Error::Unavailable { .. }), "{away:?}");
}

#[tokio::test]
async fn every_message_of_a_batch_has_its_own_result_and_key() {
    let server = ScriptedServer::start().await;
    let results = json!({"results": [{"status": 200, "success": true, "messageId": "msg_1", "fanout": "pending"},
                                     {"status": 400, "success": false, "error": "e"}]});
    server.answer(200, results.to_string());
    let beta = beta(&server);
    let drafts = [beta.publish("t", "1"), beta.send("a", "2").idempotency_key("mine")];
    let sent = beta.send_all(drafts).await.unwrap();
    assert_eq!(sent[0].as_ref().unwrap().fanout, Fanout::Pending);
    assert_eq!(sent[1].as_ref().unwrap_err().to_string(), "e (400)");
    let body = server.seen()[0].json();
    let keys = [0, 1].map(|n: usize| body["messages"][n]["idempotencyKey"].as_str().unwrap().to_owned());
    assert!(keys[1] == "mine" && !keys[0].is_empty() && keys[0] != "mine");
    assert_eq!(server.seen()[0].header("idempotency-key"), "");
}

#[tokio::test]
async fn a_subscription_keeps_sets_or_removes_its_url() {
    let server = ScriptedServer::start().await;
    let beta = beta(&server);
    let subscription = |url: Value| {
        json!({"id": "sub_1", "agentId": "b", "topic": "t", "webhookUrl": url, "callbackUrl": url, "isActive": true,
               "createdAt": "x", "updatedAt": "x", "secret": "whsec_1", "something": "new"})
    };
    for url in [json!(null), json!("http://h"), json!(null)] {
        server.answer(
            200,
            json!({"success": true, "subscription": subscription(url)}).to_string(),
        );
    }
    server.answer(200, "{\"success\":true}");
    beta.subscribe("t").await.unwrap();
    let with_url = beta.subscribe("t").webhook_url("http://h").await.unwrap();
    assert_eq!(with_url.webhook_url.as_deref(), Some("http://h"));
    beta.subscribe("t").without_webhook_url().await.unwrap();
    beta.unsubscribe("a/b").await.unwrap();
    let path = "/v1/messages/subscribe";
    assert_eq!(
        asked(&server),
        [
            (format!("POST {path}"), json!({"topic": "t"})),
            (format!("POST {path}"), json!({"topic": "t", "webhookUrl": "http://h"})),
            (format!("POST {path}"), json!({"topic": "t", "webhookUrl": null})),
            (format!("DELETE {path}?topic=a%2Fb"), Value::Null),
        ]
    );
}

#[tokio::test]
async fn webhooks_and_deliveries_are_read_with_words_of_newer_servers() {
    let server = ScriptedServer::start().await;
    let beta = beta(&server);
    let webhook = json!({"id": "whk_1", "agentId": "beta", "url": "https://h", "events": ["message.received", "message.new"],
                         "isActive": true, "disabled": false, "createdAt": "x", "secret": "whsec_1"});
    let delivery = json!({"id": "dlv_1", "state": "resting", "end": null, "messageId": "msg_1", "fromAgentId": "a",
                          "toAgentId": "beta", "topic": null, "subscriptionId": null, "attempts": 2, "attemptCount": 2,
                          "step": 1, "due": null, "dueInMs": null, "createdAt": "x", "endedAt": null,
                          "redrivenAs": null, "redriveOf": null, "something": "new"});
    server
        .answer(200, json!({"success": true, "webhook": webhook}).to_string())
        .answer(200, json!({"success": true, "webhook": null}).to_string())
        .answer(
            200,
            json!({"success": true, "deliveries": [delivery], "cursor": "c"}).to_string(),
        );
    let set = beta.webhook().set("https://h").await.unwrap();
    assert_eq!(
        set.events,
        [
            WebhookEvent::MessageReceived,
            WebhookEvent::Unknown("message.new".to_owned())
        ]
    );
    assert_eq!(&*set.secret, "whsec_1");
    assert!(beta.webhook().get().await.unwrap().is_none());
    let page = beta.deliveries().limit(1).await.unwrap();
    assert_eq!(page.deliveries[0].state, DeliveryState::Unknown("resting".to_owned()));
    let both = json!({"url": "https://h", "events": ["message.received", "message.topic"]});
    assert_eq!(
        asked(&server),
        [
            ("POST /v1/messages/webhook".to_owned(), both),
            ("GET /v1/messages/webhook".to_owned(), Value::Null),
            ("GET /v1/deliveries?limit=1".to_owned(), Value::Null),
        ]
    );
}

#[tokio::test]
async fn an_operator_names_what_shall_change_and_creates_once() {
    let server = ScriptedServer::start().await;
    let team = json!({"id": "team_1", "name": "t", "strict_recipients": false,
                      "limits": {"daily_sends": 5, "daily_reads": 0, "daily_webhook_registrations": 0,
                                 "monthly_events": 0, "overage_price_atomic": null}});
    let key = json!({"id": "key_1", "key_prefix": "kite_1", "api_key": "kite_1_2"});
    server
        .answer(200, team.to_string())
        .answer(200, team.to_string())
        .answer(200, key.to_string())
        .answer(200, key.to_string())
        .answer(504, "{\"error\":\"outcome unknown\"}");
    let operator = post(&[&server.base]).operator();
    assert_eq!(
        operator
            .create_team("t")
            .daily_sends(5)
            .await
            .unwrap()
            .limits
            .daily_sends,
        5
    );
    operator
        .update_team("team_1")
        .overage_price_atomic(None)
        .strict_recipients(true)
        .await
        .unwrap();
    operator.create_key("team_1", "n").await.unwrap();
    let bound = operator
        .create_key("team_1", "n")
        .permission(Permission::Read)
        .agent("a")
        .scopes(["type:x"]);
    assert_eq!(
        &*bound.expires_at("2027-01-01T00:00:00Z").await.unwrap().api_key,
        "kite_1_2"
    );
    let twice = operator.create_team("t").await.unwrap_err();
    assert!(matches!(twice, Error::OutcomeUnknown { .. }), "{twice:?}");
    let keys = "POST /admin/v1/teams/team_1/keys".to_owned();
    assert_eq!(
        asked(&server),
        [
            (
                "POST /admin/v1/teams".to_owned(),
                json!({"name": "t", "limits": {"daily_sends": 5}})
            ),
            (
                "PATCH /admin/v1/teams/team_1".to_owned(),
                json!({"limits": {"overage_price_atomic": null}, "strict_recipients": true})
            ),
            (keys.clone(), json!({"name": "n", "permissions": ["write"]})),
            (
                keys,
                json!({"name": "n", "permissions": ["read"], "agent_id": "a", "scopes": ["type:x"],
                       "expires_at": "2027-01-01T00:00:00Z"})
            ),
            ("POST /admin/v1/teams".to_owned(), json!({"name": "t"})),
        ]
    );
}

#[tokio::test]
async fn connecting_asks_whether_the_key_is_accepted() {
    let server = ScriptedServer::start().await;
    server
        .answer(200, "{\"agents\":[],\"next\":null,\"unreachable_nodes\":[]}")
        .answer(401, "{\"error\":\"invalid API key\"}")
        .answer(200, "pong");
    let post = agentpost::connect(&server.base, "k").await.unwrap();
    let refused = agentpost::connect(&server.base, "k").await.err().unwrap();
    assert!(matches!(refused, Error::Refused(_)), "{refused:?}");
    assert_eq!(
        post.http()
            .request(&Request::get("/ping").query("a", "b c"))
            .await
            .unwrap()
            .body,
        "pong"
    );
    let paths: Vec<String> = server.seen().iter().map(|seen| seen.path.clone()).collect();
    assert_eq!(
        paths,
        ["/api/v1/agents?limit=1", "/api/v1/agents?limit=1", "/ping?a=b+c"]
    );
    for bad in ["", "ws://a", "http://a b"] {
        assert!(
            matches!(agentpost::connect(bad, "k").await, Err(Error::Invalid(_))),
            "{bad}"
        );
    }
}
