//! Signatures of a real node, verified by the libraries that receivers use: the npm packages `@upstash/qstash` and
//! `standardwebhooks`, the crate `standardwebhooks`, and an HMAC computed here.
//!
//! `scripts/test.sh` installs the npm packages; without them the test fails.

use std::collections::HashSet;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use agentpost_testkit::receiver::{Answer, Call, HeaderMap, Server};
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::{Value, json};
use sha2::Sha256;

use crate::common::vendor;
use crate::common::web::{self, Team, mail, new_key};
use crate::common::{TestCluster, eventually};

const OPEN: &str = "[webhooks]\nallow_http = true\nallow_networks = [\"127.0.0.0/8\", \"::1/128\"]\n";

/// A call as the receiver got it.
#[derive(Debug, Clone)]
struct Delivery {
    headers: HeaderMap,
    body: String,
}

impl Delivery {
    fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }
}

/// Starts a receiver that fails the first attempt of each delivery. Returns it with its log.
async fn receiver() -> (Server, Arc<Mutex<Vec<Delivery>>>) {
    let arrived = Arc::new(Mutex::new(Vec::new()));
    let (log, seen) = (Arc::clone(&arrived), Mutex::new(HashSet::new()));
    let answer = move |call: Call| {
        let id = call.header("webhook-id").unwrap().to_owned();
        let body = String::from_utf8(call.body.to_vec()).unwrap();
        let headers = call.headers;
        log.lock().unwrap().push(Delivery { headers, body });
        let is_first = seen.lock().unwrap().insert(id);
        Answer::status(if is_first { 503 } else { 200 })
    };
    (Server::start("127.0.0.1:0", answer).await.unwrap(), arrived)
}

/// A node, a team, and an agent with a webhook.
struct SignedOffice {
    cluster: TestCluster,
    team: Team,
    admin_key: String,
    url: String,
    secret: String,
    arrived: Arc<Mutex<Vec<Delivery>>>,
    _receiver: Server,
}

impl SignedOffice {
    async fn open() -> Self {
        let cluster = TestCluster::start_with(1, OPEN).await;
        let (receiver, arrived) = receiver().await;
        let port = receiver.url().rsplit(':').next().unwrap().to_owned();
        let team = Team::create(&cluster.url(0), &cluster.admin_key(), "signed").await;
        let admin = json!({ "name": "admin", "permissions": ["admin"] });
        let (_, admin_key) = new_key(&cluster.url(0), &cluster.admin_key(), &team.id, &admin).await;
        // The signature covers the URL as it was registered. No parser would print this one unchanged.
        let url = format!("HTTP://LocalHost:{port}/Hook/../%7Ehook?empty=&ä=%c3%a4");
        let wanted = json!({ "url": url, "events": ["message.received"] });
        let made = web::Call::post("/v1/messages/webhook", &wanted)
            .key(&team.key)
            .agent("beta");
        let made = made.to(&cluster.url(0)).await.ok();
        SignedOffice {
            secret: made["webhook"]["secret"].as_str().unwrap().to_owned(),
            cluster,
            team,
            admin_key,
            url,
            arrived,
            _receiver: receiver,
        }
    }

    /// Sends a message and returns its two attempts.
    async fn deliver(&self, body: &Value) -> [Delivery; 2] {
        let before = self.arrived.lock().unwrap().len();
        let sent = web::Call::post("/v1/messages", &mail("beta", body))
            .key(&self.team.key)
            .agent("alpha");
        sent.to(&self.cluster.url(0)).await.ok();
        eventually("a delivery and its retry", async || {
            let arrived = self.arrived.lock().unwrap();
            <[Delivery; 2]>::try_from(arrived[before..].to_vec()).ok()
        })
        .await
    }

    async fn keys(&self, rotate: bool) -> Keys {
        let call = match rotate {
            true => web::Call::post("/v2/keys/rotate", &json!({})),
            false => web::Call::get("/v2/keys"),
        };
        let keys = call.key(&self.admin_key).to(&self.cluster.url(0)).await.ok();
        let text = |name: &str| keys[name].as_str().unwrap().to_owned();
        Keys {
            current: text("current"),
            next: text("next"),
        }
    }
}

#[derive(Debug, Clone)]
struct Keys {
    current: String,
    next: String,
}

/// Cases for `verify.mjs`, each with its name and whether it must verify.
#[derive(Default)]
struct Cases {
    cases: Vec<Value>,
    expected: Vec<(String, bool)>,
}

impl Cases {
    fn qstash(&mut self, what: &str, good: bool, keys: &Keys, delivery: &Delivery, url: Option<&str>) {
        let mut case = json!({
            "library": "qstash", "current": keys.current, "next": keys.next,
            "signature": delivery.header("upstash-signature"), "body": delivery.body,
        });
        if let Some(url) = url {
            case["url"] = json!(url);
        }
        self.push(what, good, case);
    }

    fn standard(&mut self, what: &str, good: bool, secret: &str, delivery: &Delivery) {
        let names = ["webhook-id", "webhook-timestamp", "webhook-signature"];
        let headers: serde_json::Map<_, _> = names
            .map(|n| (n.to_owned(), json!(delivery.header(n))))
            .into_iter()
            .collect();
        self.push(
            what,
            good,
            json!({ "library": "standard", "secret": secret, "headers": headers, "body": delivery.body }),
        );
    }

    fn push(&mut self, what: &str, good: bool, case: Value) {
        let library = case["library"].as_str().unwrap();
        self.expected.push((format!("{library}: {what}"), good));
        self.cases.push(case);
    }

    /// Has the libraries verify all cases.
    fn check(self) {
        let mut node = Command::new("node")
            .arg(vendor::scripts().join("verify.mjs"))
            .arg(vendor::installed("@upstash/qstash"))
            // With this variable the library would trust a published development key.
            .env_remove("QSTASH_DEV")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("node, which runs the receivers' own libraries: install Node.js 18 or newer");
        let cases = serde_json::to_vec(&self.cases).unwrap();
        node.stdin.take().unwrap().write_all(&cases).unwrap();
        let output = node.wait_with_output().unwrap();
        assert!(output.status.success(), "verify.mjs failed");
        let verdicts: Vec<String> = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(verdicts.len(), self.expected.len());
        for ((what, good), verdict) in self.expected.iter().zip(verdicts) {
            assert_eq!(verdict == "ok", *good, "{what}: {verdict}");
        }
    }
}

/// Verifies a call with the Rust crate and with an HMAC.
fn check_here(secret: &str, delivery: &Delivery) {
    let verifier = standardwebhooks::Webhook::new(secret).unwrap();
    verifier.verify(delivery.body.as_bytes(), &delivery.headers).unwrap();
    let header = delivery.header("x-abbababa-signature");
    let (time, signature) = header.strip_prefix("t=").unwrap().split_once(",v1=").unwrap();
    assert_eq!(time, delivery.header("webhook-timestamp"));
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(format!("{time}.{}", delivery.body).as_bytes());
    mac.verify_slice(&hex::decode(signature).unwrap()).unwrap();
}

/// Adds the cases before a rotation. The negative ones show that the verifiers do not accept everything.
fn before_a_rotation(cases: &mut Cases, office: &SignedOffice, keys: &Keys, deliveries: &[Delivery; 2]) {
    let other = Keys {
        current: "sig_other".to_owned(),
        next: "sig_another".to_owned(),
    };
    for (what, delivery) in ["first attempt", "retry"].into_iter().zip(deliveries) {
        check_here(&office.secret, delivery);
        cases.qstash(what, true, keys, delivery, Some(&office.url));
        cases.qstash(what, true, keys, delivery, None);
        cases.standard(what, true, &office.secret, delivery);
        let another_url = office.url.to_lowercase();
        cases.qstash("another URL", false, keys, delivery, Some(&another_url));
        cases.qstash("other keys", false, &other, delivery, None);
        let mut changed = delivery.clone();
        changed.body = changed.body.replace("alpha", "omega");
        assert_ne!(changed.body, delivery.body);
        cases.qstash("another body", false, keys, &changed, None);
        cases.standard("another body", false, &office.secret, &changed);
        cases.standard("another secret", false, "whsec_c2VjcmV0", delivery);
    }
}

#[tokio::test]
async fn receivers_own_libraries_verify_deliveries_before_and_after_a_rotation() {
    let office = SignedOffice::open().await;
    let mut cases = Cases::default();
    let before = office.keys(false).await;
    let body = json!({ "text": "ä \"quoted\" 🙂\n", "n": 1.50 });
    let deliveries = office.deliver(&body).await;
    before_a_rotation(&mut cases, &office, &before, &deliveries);
    let [first, retry] = &deliveries;
    assert_eq!(first.header("webhook-id"), retry.header("webhook-id"));
    assert_eq!(first.body, retry.body);
    assert_ne!(first.header("upstash-signature"), retry.header("upstash-signature"));
    let steps = (first.header("upstash-retried"), retry.header("upstash-retried"));
    assert_eq!(steps, ("0", "1"));

    let rotated = office.keys(true).await;
    assert_eq!(rotated.current, before.next);
    let retired = Keys {
        next: before.current.clone(),
        ..before.clone()
    };
    for delivery in &office.deliver(&json!({ "after": "one rotation" })).await {
        check_here(&office.secret, delivery);
        cases.qstash("rotated, new pair", true, &rotated, delivery, Some(&office.url));
        cases.qstash("rotated, old pair", true, &before, delivery, Some(&office.url));
        cases.qstash("rotated, retired key", false, &retired, delivery, None);
    }

    let twice = office.keys(true).await;
    let [first, _] = office.deliver(&json!({ "after": "two rotations" })).await;
    cases.qstash("rotated twice, second pair", true, &rotated, &first, None);
    cases.qstash("rotated twice, third pair", true, &twice, &first, None);
    cases.qstash("rotated twice, first pair", false, &before, &first, None);
    cases.check();
}
