//! Topics, webhooks and dead deliveries against three nodes, by the library and by `agentpost`.

use agentpost::api::abbababa::DeliveryFailed;
use agentpost::verify::Verifier;
use agentpost::{Agent, Agentpost, DeliveryState, Fanout, Mail, Secret};
use agentpost_testkit::receiver::{Answer, Call, Receiver};
use agentpost_testkit::{PATIENCE, eventually};
use serde_json::json;

use crate::common::cluster::Cluster;
use crate::common::parts;

struct Post {
    cluster: Cluster,
    key: String,
}

impl Post {
    async fn open() -> Self {
        let cluster = Cluster::start().await;
        cluster.agentpost_json(&["team", "create", "default"]).await;
        let args = ["key", "create", "--team", "default", "--permissions", "write"];
        let key = cluster.agentpost_json(&args).await["api_key"]
            .as_str()
            .unwrap()
            .to_owned();
        Post { cluster, key }
    }

    /// An agent whose first node is `node`.
    fn agent(&self, name: &str, node: usize) -> Agent {
        self.connection(node).agent(name)
    }

    fn connection(&self, node: usize) -> Agentpost {
        let builder = Agentpost::builder(self.cluster.urls_from(node)).key(&self.key);
        builder.build().unwrap()
    }

    /// Runs `agentpost` with `--team default`.
    async fn of_team(&self, args: &[&str]) -> (Option<i32>, String, String) {
        parts(&self.cluster.agentpost(&[args, &["--team", "default"]].concat()).await)
    }

    async fn signing_keys(&self) -> (String, String) {
        let keys = self
            .cluster
            .agentpost_json(&["signing-keys", "show", "--team", "default"])
            .await;
        let text = |name: &str| keys[name].as_str().unwrap().to_owned();
        (text("current"), text("next"))
    }
}

async fn send(from: &Agent, to: &str) -> String {
    from.send(to, json!({"to": to})).kind("note").await.unwrap().id
}

/// Waits for mail: one message more than `known`.
async fn next_mail(agent: &Agent, known: usize) -> Mail {
    let mut mail = eventually("mail", async || {
        let mail = agent.inbox().await.unwrap().mail;
        (mail.len() > known).then_some(mail)
    })
    .await;
    assert_eq!(mail.len(), known + 1);
    mail.pop().unwrap()
}

fn verified(verifier: &Verifier, call: &Call) -> String {
    verifier.verify(|name| call.header(name), &call.body).unwrap().id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_and_signing_keys_are_changed_by_the_operator() {
    let post = Post::open().await;
    let (current, next) = post.signing_keys().await;
    assert!(current.starts_with("sig_") && next.starts_with("sig_") && current != next);
    let (code, stdout, stderr) = post.of_team(&["signing-keys", "rotate"]).await;
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert!(
        stdout.starts_with(&format!("Rotated\n  current: {next}\n  next:    sig_")),
        "{stdout}"
    );
    assert_eq!(post.signing_keys().await.0, next);
    // The API returns the same keys on another node.
    assert_eq!(post.connection(3).signing_keys().await.unwrap().current, Secret(next));

    let args = [
        "team",
        "limits",
        "set",
        "default",
        "--daily-sends",
        "1",
        "--daily-webhook-registrations",
        "0",
    ];
    let (code, stdout, stderr) = parts(&post.cluster.agentpost(&args).await);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert!(
        stdout.contains("sends of an agent per day:                 1\n"),
        "{stdout}"
    );
    let shown = post
        .cluster
        .agentpost_json(&["team", "limits", "show", "default"])
        .await;
    assert_eq!(
        (&shown["daily_sends"], &shown["daily_webhook_registrations"]),
        (&json!(1), &json!(0))
    );
    let sender = post.agent("a", 2);
    send(&sender, "b").await;
    let over = sender.publish("t", "x").kind("note").await.unwrap_err();
    assert_eq!(over.answer().unwrap().status, 429);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_and_a_webhook_that_fails_and_then_succeeds() {
    let post = Post::open().await;
    let receiver = Receiver::start().await.unwrap();
    receiver.statuses("/mail", &[500, 200]);
    let (sender, agent) = (post.agent("sender", 1), post.agent("agent", 2));
    let (url, topic_url) = (receiver.url("/mail"), receiver.url("/topic"));
    let webhook = agent.webhook().set(&url).await.unwrap();
    let subscription = agent.subscribe("prices").webhook_url(&topic_url).await.unwrap();
    assert_eq!(agent.webhook().get().await.unwrap(), Some(webhook.clone()));
    let (current, next) = post.signing_keys().await;
    let verifier = |secret: &Secret, url: &str| {
        let verifier = Verifier::new().secret(secret).unwrap();
        verifier.signing_keys(&current, &next).url(url)
    };

    // One message for two URLs makes two deliveries. The one to /mail needs two calls.
    let sent = sender.publish("prices", json!({"usdc": 4})).kind("price");
    let sent = sent.await.unwrap();
    assert_eq!(sent.fanout, Fanout::Complete);
    receiver.wait_for(3, PATIENCE).await.unwrap();
    let (mail, topic) = (receiver.calls_to("/mail"), receiver.calls_to("/topic"));
    assert_eq!((mail.len(), topic.len()), (2, 1));
    let ids: Vec<String> = mail
        .iter()
        .map(|call| verified(&verifier(&webhook.secret, &url), call))
        .collect();
    assert_eq!(ids[0], ids[1]);
    assert_eq!(
        (mail[0].header("x-attempt"), mail[1].header("x-attempt")),
        (Some("1"), Some("2"))
    );
    assert!(mail[1].at_us - mail[0].at_us >= 1_000_000, "no retry before its delay");
    assert_ne!(
        verified(&verifier(subscription.secret.as_ref().unwrap(), &topic_url), &topic[0]),
        ids[0]
    );
    let event: serde_json::Value = serde_json::from_slice(&topic[0].body).unwrap();
    assert_eq!(
        (
            &event["event"],
            &event["topic"],
            &event["subscriptionId"],
            &event["body"]
        ),
        (
            &json!("message.topic"),
            &json!("prices"),
            &json!(subscription.id),
            &json!({"usdc": 4})
        )
    );
    assert_eq!(next_mail(&agent, 0).await.id, sent.id);

    // A call that is signed after a rotation verifies with the pair of keys from before.
    let (code, _, _) = post.of_team(&["signing-keys", "rotate"]).await;
    assert_eq!(code, Some(0));
    send(&sender, "agent").await;
    let calls = receiver.wait_for(4, PATIENCE).await.unwrap();
    verified(&verifier(&webhook.secret, &url), &calls[3]);
    assert!(
        Verifier::new()
            .signing_keys(&current, &current)
            .verify(|name| calls[3].header(name), &calls[3].body)
            .is_err()
    );

    eventually("two deliveries in the receipt", async || {
        let receipt = sender.receipt(&sent.id).await.unwrap();
        let states: Vec<DeliveryState> = receipt.delivered.into_iter().map(|delivery| delivery.state).collect();
        (states == [DeliveryState::Delivered, DeliveryState::Delivered]).then_some(())
    })
    .await;
    agent.unsubscribe("prices").await.unwrap();
    agent.webhook().remove().await.unwrap();
    assert_eq!(
        (
            agent.subscriptions().await.unwrap(),
            agent.webhook().get().await.unwrap()
        ),
        (vec![], None)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_its_notice_and_another_try() {
    let post = Post::open().await;
    let receiver = Receiver::start().await.unwrap();
    receiver.set_default(Answer::status(489).header("upstash-nonretryable-error", "true"));
    let (sender, agent) = (post.agent("sender", 1), post.agent("agent", 2));
    agent.webhook().set(receiver.url("/mail")).await.unwrap();
    let message = send(&sender, "agent").await;
    let notice = next_mail(&sender, 0).await;
    assert_eq!(
        (notice.from.as_str(), notice.kind.as_str()),
        ("system", DeliveryFailed::TYPE)
    );
    let failed: DeliveryFailed = notice.json().unwrap();
    assert_eq!(
        (failed.message_id, failed.attempts, failed.last_status),
        (message, 1, Some(489))
    );
    let dead = failed.delivery_id;

    let (code, stdout, stderr) = post.of_team(&["deliveries", "list", "--state", "dead"]).await;
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    let lines: Vec<&str> = stdout.lines().collect();
    assert!(
        lines.len() == 2 && lines[1].starts_with(&format!("{dead}  dead (non_retryable)  ")),
        "{stdout}"
    );
    let (code, stdout, _) = post.of_team(&["deliveries", "show", &dead]).await;
    assert_eq!(code, Some(0));
    assert!(stdout.contains("  failed     489  status  "), "{stdout}");

    receiver.set_default(Answer::status(200));
    let (code, stdout, stderr) = post.of_team(&["deliveries", "redrive", &dead]).await;
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    let new = stdout
        .strip_prefix(&format!("Redriven {dead}\n  as: "))
        .unwrap()
        .trim_end()
        .to_owned();
    let calls = receiver.wait_for(2, PATIENCE).await.unwrap();
    assert_eq!(calls[1].header("webhook-id"), Some(&new[..]));
    // A second redrive returns the same id.
    assert_eq!(agent.redrive(&dead).await.unwrap(), new);
    let (code, _, stderr) = post.of_team(&["deliveries", "show", "dlv_unknown"]).await;
    assert!(code == Some(1) && stderr.ends_with("(404 Not Found)\n"), "{stderr}");
    assert_eq!(sender.inbox().await.unwrap().mail.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_load_generator_measures_fan_out_and_deliveries() {
    let post = Post::open().await;
    let args = [
        "bench",
        "--mode",
        "fanout,deliver",
        "--seconds",
        "1",
        "--warm-up",
        "1",
        "--tsv",
    ];
    let (code, stdout, stderr) = parts(&post.cluster.agentpost_within(10 * PATIENCE, &args).await);
    assert_eq!((code, stderr.as_str()), (Some(0), ""), "{stdout}");
    let rows: Vec<Vec<&str>> = stdout.lines().map(|line| line.split('\t').collect()).collect();
    let kinds: Vec<(&str, &str, &str)> = rows.iter().map(|row| (row[0], row[1], row[5])).collect();
    assert_eq!(
        kinds,
        [
            ("agentpost-fanout", "fanout-durable-copies", "deliveries/s"),
            ("agentpost-fanout-pipelined", "fanout-durable-copies", "deliveries/s"),
            ("agentpost-deliver", "webhook-start-latency", "samples"),
            ("agentpost-deliver-ill", "webhook-start-latency", "samples"),
            ("agentpost-deliver", "isolation-p99", "%"),
            ("agentpost-deliver", "webhook-deliveries", "deliveries/s"),
            ("agentpost-deliver", "log-entries", "per 1,000"),
        ]
    );
    for row in &rows {
        assert!(row.len() == 9 && row[4].parse::<f64>().unwrap() > 0.0, "{stdout}");
    }
    assert!(rows[5][8].contains(" repeated-calls="), "{stdout}");
}
