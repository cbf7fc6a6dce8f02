//! Kite's REST API on three nodes, and the mailbox that it shares with the Abba Baba API.

use agentpost_proto::api::kite::SendResponse;
use agentpost_proto::id::MessageId;
use serde_json::{Value, json};

use crate::common::office::office;
use crate::common::web;
use crate::common::web::{Call, Team, bodies, new_key};

fn kite(team: &Team, key: &str, body: &Value) -> Call {
    Call::post(format!("/api/v1/agents/messages?team_id={}", team.id), body).bearer(key)
}

fn note(from: &str, to: &str, body: &str) -> Value {
    json!({ "from": from, "to": to, "body": body })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_the_guide_goes_through_any_node_into_the_same_mailbox() {
    let office = office().await;
    let limits = json!({ "monthly_events": 1000 });
    let team = Team::with_limits(&office.urls[0], &office.admin, "guide", &limits).await;
    let mut expected = Vec::new();
    for (n, url) in office.urls.iter().enumerate() {
        let text = format!("Here are the results {n} you asked for: \"ä\"\n");
        let mut body = note("agent-beta", "agent-alpha", &text);
        body["thread_id"] = json!("thread-abc123");
        body["reply_to_id"] = Value::Null;
        let sent = kite(&team, &team.key, &body).to(url).await.ok();
        let answer: SendResponse = serde_json::from_value(sent.clone()).unwrap();
        assert_eq!(
            (answer.from.as_str(), answer.to.as_str()),
            ("agent-beta", "agent-alpha")
        );
        assert_eq!(answer.usage.events_used, n as u64 + 1);
        assert_eq!(
            (answer.usage.events_limit, answer.usage.amount_charged_atomic),
            (1000, 0)
        );
        assert!(answer.created_at.ends_with('Z'));
        let id: MessageId = answer.id.parse().unwrap();
        assert_eq!((id.kite(), id.0.get_version_num()), (answer.id.clone(), 7));
        expected.push(json!({ "text": text }));

        let inbox = Call::get("/v1/messages")
            .key(&team.key)
            .agent("agent-alpha")
            .to(&office.urls[(n + 1) % 3])
            .await
            .ok();
        assert_eq!(bodies(&inbox), expected);
        let last = &inbox["messages"][n];
        assert_eq!(
            (&last["id"], &last["type"]),
            (&json!(id.abbababa()), &json!("com.kite.agent.message"))
        );
        assert_eq!(
            (&last["threadId"], &last["replyToId"]),
            (&json!("thread-abc123"), &Value::Null)
        );
        // Both forms of the id are accepted.
        for form in [id.kite(), id.abbababa()] {
            Call::get(format!("/v1/messages/{form}"))
                .key(&team.key)
                .agent("agent-beta")
                .to(url)
                .await
                .ok();
        }
    }
    // Without `team_id` the key's team is used. The shorter path works too.
    let short = Call::post("/v1/agents/messages", &note("a", "b", ""))
        .bearer(&team.key)
        .to(&office.urls[1])
        .await
        .ok();
    assert_eq!(short["usage"]["events_used"], 4);
    let unlimited = office.new_team("unlimited").await;
    let sent = kite(&unlimited, &unlimited.key, &note("a", "b", "x"))
        .to(&office.urls[2])
        .await
        .ok();
    assert_eq!(sent["usage"]["events_limit"], 9_007_199_254_740_991u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_teams_and_quotas_are_kept_apart() {
    let office = office().await;
    let limits = json!({ "monthly_events": 3, "daily_sends": 0 });
    let team = Team::with_limits(&office.urls[0], &office.admin, "one", &limits).await;
    let other = office.new_team("two").await;
    let (_, reader) = new_key(
        &office.urls[0],
        &office.admin,
        &team.id,
        &json!({ "name": "r", "permissions": ["read"] }),
    )
    .await;
    let alpha = team.bound(&office.urls[0], &office.admin, "alpha").await;
    let body = note("alpha", "beta", "hi");
    for url in &office.urls {
        let unknown = format!("team_{}", "0".repeat(31)) + "1";
        let mut texts = Vec::new();
        for id in [other.id.as_str(), &unknown, "clerk-user:user_abc", ""] {
            let path = format!("/api/v1/agents/messages?team_id={id}");
            texts.push(Call::post(path, &body).bearer(&team.key).to(url).await.error(403));
        }
        assert!(texts.windows(2).all(|pair| pair[0] == pair[1]), "{texts:?}");
        kite(&team, &reader, &body).to(url).await.error(403);
        kite(&team, &alpha, &note("mallory", "beta", "hi"))
            .to(url)
            .await
            .error(403);
        kite(&team, &team.key, &note("system", "beta", "hi"))
            .to(url)
            .await
            .error(403);
        let bad = kite(&team, "kite_00000000_00000000000000000000000000000000", &body)
            .to(url)
            .await;
        assert_eq!(bad.body.as_object().unwrap().len(), 1);
        bad.error(401);
    }
    let first = kite(&team, &alpha, &body).once("k").to(&office.urls[0]).await.ok();
    let again = kite(&team, &alpha, &body).once("k").to(&office.urls[1]).await.ok();
    assert_eq!(first, again);
    kite(&team, &alpha, &note("alpha", "beta", "other"))
        .once("k")
        .to(&office.urls[2])
        .await
        .error(422);
    for n in 2..=3 {
        assert_eq!(
            kite(&team, &alpha, &body).to(&office.urls[n % 3]).await.ok()["usage"]["events_used"],
            n
        );
    }
    for url in &office.urls {
        let over = kite(&team, &team.key, &body).to(url).await;
        let seconds = over.body["retry_after_secs"].as_u64().unwrap();
        assert_eq!(over.headers["retry-after"], seconds.to_string().as_str());
        assert!((1..=31 * 86_400).contains(&seconds));
        over.error(429);
        // The Abba Baba API refuses for the same quota.
        let over = Call::post("/v1/messages", &web::mail("beta", &json!({})))
            .key(&alpha)
            .to(url)
            .await;
        assert!(over.headers.contains_key("retry-after"));
        assert_eq!((over.status, over.body["code"].as_str()), (429, Some("quota_exceeded")));
    }
    let inbox = Call::get("/v1/messages")
        .key(&team.key)
        .agent("beta")
        .to(&office.urls[0])
        .await
        .ok();
    assert_eq!(bodies(&inbox).len(), 3);
}
