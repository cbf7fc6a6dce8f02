//! Secrets do not leak into logs at trace level, metrics, error answers or files. The test makes real traffic on three
//! nodes and then searches all of these for every secret.

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use agentpost_testkit::receiver::{Answer, Receiver};
use agentpost_testkit::socket::{Connect, Socket};

use axum::http::Method;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;

use crate::common::in_child;
use crate::common::web;
use crate::common::web::{Call, Team, new_key};
use crate::common::webhooks::WebhookOffice;
use crate::common::{TestCluster, eventually};

/// All targets of this project, and openraft, which carries the operations.
const LEVELS: &str = "off,agentpost_node=trace,agentpost_raft_store=trace,agentpost_proto=trace,openraft=trace";
/// Part of the bodies of messages and of their other texts.
const BODY: &str = "BodyMarker5b1e9c77";
/// Part of the query of webhook URLs, where people put tokens.
const URL_TOKEN: &str = "UrlToken0c4d2a91";
/// A text that the search must find, so that it is known to search something.
const CANARY: &str = "Canary7f3a";

/// All log output of this process.
#[derive(Clone, Default)]
struct Logs(Arc<Mutex<Vec<u8>>>);

impl Write for Logs {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Logs {
    fn capture() -> Self {
        let logs = Logs::default();
        let writer = logs.clone();
        tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::new(LEVELS))
            .with_span_events(FmtSpan::NEW)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .init();
        logs
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Secrets that must not be found, each with a name that may be printed.
#[derive(Default)]
struct Secrets(Vec<(String, Vec<u8>)>);

impl Secrets {
    fn add(&mut self, name: &str, secret: &str) {
        assert!(secret.len() >= 8, "{name} would be found by chance");
        self.add_bytes(name, secret.as_bytes());
    }

    /// Adds the bytes themselves and the forms in which logs print bytes.
    fn add_bytes(&mut self, name: &str, secret: &[u8]) {
        let listed = format!("{secret:?}");
        self.0.push((name.to_owned(), secret.to_vec()));
        self.0
            .push((format!("{name} as hex"), hex::encode(secret).into_bytes()));
        self.0.push((
            format!("{name} as numbers"),
            listed.trim_matches(['[', ']']).as_bytes().to_vec(),
        ));
    }

    /// Adds an API key without the prefix that lists show.
    fn add_key(&mut self, name: &str, key: &str) {
        self.add(name, key.rsplit('_').next().unwrap());
    }

    #[track_caller]
    fn assert_absent(&self, place: &str, bytes: &[u8]) {
        for (name, secret) in &self.0 {
            if let Some(at) = position(bytes, secret) {
                let around = &bytes[at.saturating_sub(200)..(at + 20).min(bytes.len())];
                panic!("{name} in {place}: …{}…", String::from_utf8_lossy(around));
            }
        }
    }
}

fn position(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    let first = wanted[0];
    let mut from = 0;
    while let Some(step) = bytes[from..].iter().position(|byte| *byte == first) {
        let at = from + step;
        if bytes[at..].starts_with(wanted) {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

struct SecretOffice {
    cluster: TestCluster,
    urls: Vec<String>,
    admin: String,
    team: Team,
    team_admin: String,
    agent_key: String,
    receiver: Receiver,
    /// All secrets. Bodies are among them; only the owners of the mail may see those.
    secrets: Secrets,
    /// Answers that must show no secret.
    answers: Vec<u8>,
    refusals: Vec<u8>,
}

impl SecretOffice {
    async fn start() -> Self {
        let cluster = TestCluster::start_with(3, WebhookOffice::SETTINGS).await;
        let (urls, admin) = (cluster.urls(), cluster.admin_key());
        let team = Team::create(&urls[0], &admin, "ours").await;
        let wanted = json!({ "name": "a", "permissions": ["admin"] });
        let (_, team_admin) = new_key(&urls[1], &admin, &team.id, &wanted).await;
        let agent_key = team.bound(&urls[2], &admin, "alpha").await;
        let mut secrets = Secrets::default();
        for (name, key) in [
            ("the operator's key", &admin),
            ("the team key", &team.key),
            ("the team's admin key", &team_admin),
            ("the agent key", &agent_key),
        ] {
            secrets.add_key(name, key);
        }
        // What common/cluster.rs writes into the secret file.
        secrets.add_bytes("the cluster secret", &[7; 32]);
        secrets.add("the cluster secret as base64", &STANDARD.encode([7; 32]));
        SecretOffice {
            cluster,
            urls,
            admin,
            team,
            team_admin,
            agent_key,
            receiver: Receiver::start().await.unwrap(),
            secrets,
            answers: Vec::new(),
            refusals: Vec::new(),
        }
    }

    /// Sends a request whose answer must show no secret.
    async fn ask(&mut self, node: usize, call: Call) -> web::Answer {
        let answer = call.to(&self.urls[node]).await;
        let kept = if answer.status < 400 {
            &mut self.answers
        } else {
            &mut self.refusals
        };
        writeln!(kept, "{} {:?}", answer.body, answer.headers).unwrap();
        answer
    }

    async fn refused(&mut self, node: usize, status: u16, call: Call) {
        let shown = call.to_string();
        let answer = self.ask(node, call).await;
        assert_eq!(answer.status, status, "{shown}: {}", answer.body);
    }

    async fn send(&mut self, node: usize, to: &str) {
        let call = Call::post("/v1/messages", &message(to))
            .key(&self.team.key)
            .agent("sender");
        assert_eq!(self.ask(node, call).await.status, 200);
    }

    /// The owner gets the webhook's secret in this answer.
    async fn hook(&mut self, path: &str, wanted: Value, agent: &str) {
        let call = Call::post(path, &wanted).key(&self.team.key).agent(agent);
        let made = call.to(&self.urls[0]).await.ok();
        let secret = made["data"]["secret"].as_str().unwrap();
        self.secrets
            .add("an endpoint's secret", secret.strip_prefix("whsec_").unwrap());
    }

    async fn signing_keys(&mut self, call: Call) {
        let pair = call.to(&self.urls[1]).await.ok();
        for name in ["current", "next"] {
            let key = pair[name].as_str().unwrap().strip_prefix("sig_").unwrap();
            self.secrets.add("a signing key", key);
        }
    }
}

fn message(to: &str) -> Value {
    json!({
        "toAgentId": to, "type": "test.note", "subject": BODY, "threadId": BODY,
        "body": { "text": BODY }, "metadata": { "k": BODY },
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_leaves_where_it_belongs() {
    // The logger belongs to the whole process.
    if !in_child::is_child() {
        return in_child::run("secrets_stay_secret::no_secret_leaves_where_it_belongs", |_| {}).await;
    }
    let logs = Logs::capture();
    tracing::trace!(target: "agentpost_node::canary", "{CANARY}");
    let mut office = SecretOffice::start().await;
    webhooks(&mut office).await;
    signing_keys(&mut office).await;
    wrong_keys(&mut office).await;
    bad_input(&mut office).await;
    sessions(&mut office).await;
    operators(&mut office).await;
    logins(&mut office).await;
    office.secrets.assert_absent("an answer", &office.answers);
    // The leader stops while mail is sent, because nodes log most around an election.
    let leader = office.cluster.leader().await;
    office.cluster.stop_node(leader).await;
    let other = office.cluster.leader().await;
    let call = Call::post("/v1/messages", &message("alpha"))
        .key(&office.team.key)
        .agent("s");
    eventually("a send", async || {
        (call.clone().to(&office.urls[other]).await.status == 200).then_some(())
    })
    .await;
    office.cluster.restart(leader).await;

    let mut metrics = Vec::new();
    for node in office.cluster.running() {
        metrics.extend(office.cluster.services(node).metrics_text().into_bytes());
    }
    let dirs: Vec<_> = (0..3).map(|node| office.cluster.data_dir(node)).collect();
    // Only the owners of mail may see it, but it must be on the disk.
    let SecretOffice {
        cluster,
        secrets: mut disk,
        refusals,
        ..
    } = office;
    let temporary = stop(cluster).await;
    for (node, dir) in dirs.iter().enumerate() {
        let files = files(dir);
        assert!(
            files
                .iter()
                .any(|(_, bytes)| position(bytes, BODY.as_bytes()).is_some()),
            "node {node}"
        );
        for (name, bytes) in files {
            disk.assert_absent(&name, &bytes);
        }
    }
    drop(temporary);
    disk.add("a message", BODY);
    disk.add("a token in a URL", URL_TOKEN);
    let logs = logs.bytes();
    for heard in [
        CANARY,
        "session ended",
        "ports open",
        "agentpost_node::webhooks",
        "openraft",
    ] {
        assert!(position(&logs, heard.as_bytes()).is_some(), "the logs lack {heard}");
    }
    disk.assert_absent("the logs", &logs);
    assert!(position(&metrics, b"/v1/messages").is_some());
    disk.assert_absent("the metrics", &metrics);
    disk.assert_absent("a refusal", &refusals);
}

/// Webhooks of all kinds: a success, a retry, a dead letter, an unreachable host, a topic with its own URL.
async fn webhooks(office: &mut SecretOffice) {
    let path = |name: &str| format!("/{name}");
    office.receiver.script(
        &path("dead"),
        [Answer::status(489).header("upstash-nonretryable-error", true)],
    );
    office
        .receiver
        .script(&path("retry"), [Answer::status(500), Answer::status(200)]);
    let urls = ["fine", "dead", "retry"].map(|name| (name, office.receiver.url(&format!("/{name}?token={URL_TOKEN}"))));
    // Nobody listens on this port.
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let nobody = ("nobody", format!("http://{gone}/?token={URL_TOKEN}"));
    for (n, (agent, url)) in urls.into_iter().chain([nobody]).enumerate() {
        let wanted = json!({ "url": url, "events": ["message.received"] });
        office.hook("/v1/messages/webhook", wanted, agent).await;
        office.send(n % 3, agent).await;
    }
    let url = office.receiver.url(&format!("/topic?token={URL_TOKEN}"));
    office
        .hook(
            "/v1/messages/subscribe",
            json!({ "topic": "t", "webhookUrl": url }),
            "listener",
        )
        .await;
    let mut publish = message("x");
    publish.as_object_mut().unwrap().remove("toAgentId");
    publish["topic"] = "t".into();
    let publish = Call::post("/v1/messages", &publish)
        .key(&office.team.key)
        .agent("sender");
    assert_eq!(office.ask(1, publish).await.status, 200);
    for (name, calls) in [("fine", 1), ("dead", 1), ("retry", 2), ("topic", 1)] {
        office.receiver.called(&path(name), calls).await;
    }
    for (agent, state) in [("fine", "delivered"), ("dead", "dead"), ("retry", "delivered")] {
        let call = Call::get("/v1/deliveries").key(&office.team.key).agent(agent);
        let url = office.urls[2].clone();
        let id = eventually(&format!("a {state} delivery"), async || {
            let list = call.clone().to(&url).await.ok();
            let found = list["deliveries"].as_array()?.iter().find(|d| d["state"] == state)?;
            Some(found["id"].as_str()?.to_owned())
        })
        .await;
        let one = Call::get(format!("/v1/deliveries/{id}"))
            .key(&office.team.key)
            .agent(agent);
        assert_eq!(office.ask(0, one).await.status, 200);
    }
}

async fn signing_keys(office: &mut SecretOffice) {
    let (team_admin, admin) = (office.team_admin.clone(), office.admin.clone());
    office.signing_keys(Call::get("/v2/keys").bearer(&team_admin)).await;
    let rotate = |path: String| Call::new(Method::POST, path);
    office
        .signing_keys(rotate("/v2/keys/rotate".to_owned()).bearer(&team_admin))
        .await;
    let path = format!("/admin/v1/teams/{}/signing-keys/rotate", office.team.id);
    office.signing_keys(rotate(path).bearer(&admin)).await;
    let forbidden = rotate("/v2/keys/rotate".to_owned()).key(&office.team.key);
    office.refused(2, 403, forbidden).await;
}

async fn wrong_keys(office: &mut SecretOffice) {
    let wrong = "kite_00000000_5eC2e7f00d5eC2e7f00d5eC2e7f00d55".to_owned();
    office.secrets.add_key("a wrong key", &wrong);
    let (key, other) = (office.team.key.clone(), office.agent_key.clone());
    let list = || Call::get("/v1/messages").agent("alpha");
    let basic = format!("Basic {}", STANDARD.encode(&wrong));
    office.secrets.add("credentials", basic.strip_prefix("Basic ").unwrap());
    for call in [
        list().key(&wrong),
        list().bearer(&wrong),
        list().key(&key).bearer(&other),
        list().header("authorization", &basic),
        list().key(&wrong.repeat(40)),
        Call::get(format!("/v1/messages?api_key={key}")),
        Call::post("/v1/messages", &message("b")).key(&wrong),
        Call::post(format!("/api/v1/agents/messages?token={key}"), &json!({ "body": BODY })).bearer(&wrong),
        Call::get("/admin/v1/teams").bearer(&wrong),
        Call::get("/v2/keys").bearer(&wrong),
    ] {
        office.refused(0, 401, call.clone()).await;
        office.refused(1, 401, call).await;
    }
    office.refused(2, 403, Call::get("/admin/v1/teams").bearer(&key)).await;
    office
        .refused(2, 404, Call::get(format!("/v1/nowhere/{key}")).key(&key))
        .await;
    office
        .refused(2, 404, Call::get(format!("/v1/messages/{key}")).key(&other))
        .await;
    // The key is revoked and then used once more.
    let wanted = json!({ "name": "short", "permissions": ["read"] });
    let (id, revoked) = new_key(&office.urls[0], &office.admin, &office.team.id, &wanted).await;
    office.secrets.add_key("a revoked key", &revoked);
    let revoke = Call::delete(format!("/admin/v1/keys/{id}")).bearer(&office.admin);
    assert_eq!(office.ask(0, revoke).await.status, 200);
    office.refused(2, 401, list().key(&revoked)).await;
}

async fn bad_input(office: &mut SecretOffice) {
    let key = office.team.key.clone();
    let post = |path: &str| Call::new(Method::POST, path).key(&key).agent("sender");
    let mut odd = message("b");
    odd["priority"] = BODY.into();
    let mut late = message("b");
    late["expiresAt"] = BODY.into();
    let long = json!({ "toAgentId": "b", "type": "t", "body": BODY.repeat(20_000) });
    let token = format!("?token={URL_TOKEN}");
    for (path, body, status) in [
        ("/v1/messages", format!("{{\"body\":{BODY}}}"), 400),
        ("/v1/messages", format!("{{\"{BODY}\":1,\"{BODY}\""), 400),
        ("/v1/messages", format!("\"{BODY}\""), 400),
        ("/v1/messages", odd.to_string(), 400),
        ("/v1/messages", late.to_string(), 400),
        ("/v1/messages", long.to_string(), 413),
        ("/v1/messages/batch", json!({ "messages": BODY }).to_string(), 400),
        (
            "/api/v1/agents/messages",
            json!({ "from": "a", "to": [BODY], "body": BODY }).to_string(),
            400,
        ),
        (
            "/v1/messages/webhook",
            json!({ "url": format!("http://10.0.0.1/{token}"), "events": ["message.received"] }).to_string(),
            400,
        ),
        (
            "/v1/messages/subscribe",
            json!({ "topic": "t", "webhookUrl": format!("ftp://x{token}") }).to_string(),
            400,
        ),
    ] {
        office.refused(1, status, post(path).raw(body)).await;
    }
    // The secret is in the body instead of the header.
    let admin = office.admin.clone();
    for body in [
        json!(&key),
        json!({ "name": [&key] }),
        json!({ "name": "x", "limits": &key }),
        json!({ "name": "x", "limits": { "daily_sends": &key } }),
    ] {
        office
            .refused(0, 400, Call::post("/admin/v1/teams", &body).bearer(&admin))
            .await;
    }
    let path = format!("/admin/v1/teams/{}/keys", office.team.id);
    for (field, value) in [
        ("permissions", json!([&key])),
        ("scopes", json!([&key])),
        ("expires_at", json!(&key)),
    ] {
        let mut body = json!({ "name": "x", "permissions": ["read"] });
        body[field] = value;
        office
            .refused(1, 400, Call::post(path.clone(), &body).bearer(&admin))
            .await;
    }
    let first = message("b");
    let mut second = message("b");
    second["type"] = "other".into();
    assert_eq!(
        office.ask(0, post("/v1/messages").json(&first).once("k")).await.status,
        200
    );
    office
        .refused(2, 422, post("/v1/messages").json(&second).once("k"))
        .await;
}

async fn sessions(office: &mut SecretOffice) {
    let connect = |key: &str| {
        Connect {
            key,
            team: &office.team.id,
            scopes: &["*"],
            client_id: Some("c"),
        }
        .frame()
    };
    let mut socket = Socket::open(&office.urls[1]).await;
    socket.say(&connect(&office.team.key)).await;
    socket.frame().await;
    socket.frame().await;
    let sent = json!({ "from": "sender", "to": "alpha", "body": BODY });
    let kite = Call::post("/api/v1/agents/messages", &sent).bearer(&office.team.key);
    kite.to(&office.urls[0]).await.ok();
    let (seq, _) = socket.event().await;
    socket.ack(seq).await;
    socket.roundtrip().await;
    office.secrets.assert_absent("frames", socket.log.join("\n").as_bytes());
    drop(socket);
    // Frames with a token in a wrong place: as the version, twice, or alone.
    let key = &office.team.key;
    let mut odd = connect(key);
    odd["version"] = key.as_str().into();
    let mut unknown = connect(key);
    unknown["type"] = key.as_str().into();
    let mut scoped = connect(key);
    scoped["scopes"] = json!([key]);
    for words in [
        connect(&key[..key.len() - 1]).to_string(),
        odd.to_string(),
        unknown.to_string(),
        json!({ "type": "connect", "token": [key] }).to_string(),
        scoped.to_string(),
        format!("{{\"token\":\"{key}\",\"token\":\"{key}\"}}"),
        key.clone(),
    ] {
        let mut socket = Socket::open(&office.urls[2]).await;
        socket
            .say_raw(tokio_tungstenite::tungstenite::Message::text(words))
            .await;
        socket.ending().await;
        writeln!(office.refusals, "{}", socket.log.join("\n")).unwrap();
    }
}

async fn operators(office: &mut SecretOffice) {
    let (admin, team) = (office.admin.clone(), office.team.id.clone());
    for call in [
        Call::get(format!("/admin/v1/teams/{team}/keys")),
        Call::get("/admin/v1/teams"),
        Call::get("/admin/v1/cluster"),
        Call::get(format!("/admin/v1/deliveries?team={team}")),
        Call::new(Method::POST, "/admin/v1/cluster/snapshot"),
    ] {
        let shown = call.to_string();
        for node in 0..3 {
            let status = office.ask(node, call.clone().bearer(&admin)).await.status;
            assert_eq!(status, 200, "{shown}");
        }
    }
}

/// Device logins: one is approved and fetches its key, one is denied, one waits.
async fn logins(office: &mut SecretOffice) {
    let (admin, token) = (office.team_admin.clone(), "/api/auth/device-token");
    for (node, what) in [Some("approve"), Some("deny"), None].into_iter().enumerate() {
        let ask = Call::post("/api/auth/device-code", &json!({ "client": BODY }));
        let told = ask.to(&office.urls[node]).await.ok();
        let code = told["device_code"].as_str().unwrap();
        office.secrets.add("a device code", code);
        let poll = Call::post(token, &json!({ "device_code": code }));
        office.refused(2, 400, poll.clone()).await;
        if let Some(what) = what {
            let body = json!({ "user_code": told["user_code"] });
            let decide = Call::post(format!("/admin/v1/login/{what}"), &body).bearer(&admin);
            assert_eq!(office.ask(1, decide).await.status, 200);
        }
        if what == Some("approve") {
            let got = poll.to(&office.urls[0]).await.ok();
            let key = got["api_key"].as_str().unwrap();
            office.secrets.add_key("a device's key", key);
            office.refused(0, 403, Call::get("/admin/v1/teams").bearer(key)).await;
        }
        // The codes are sent where they do not belong.
        let status = if what == Some("deny") { 403 } else { 400 };
        office.refused(0, status, poll).await;
        for body in [
            json!({ "device_code": [code] }),
            json!({ "device_code": { "x": code } }),
            json!(code),
        ] {
            office.refused(1, 400, Call::post(token, &body)).await;
        }
        for (status, body) in [
            (404, json!({ "user_code": code })),
            (400, json!({ "user_code": "x", "more": code })),
        ] {
            let decide = Call::post("/admin/v1/login/approve", &body).bearer(&admin);
            office.refused(2, status, decide).await;
        }
    }
}

/// Stops all nodes but keeps their files.
async fn stop(cluster: TestCluster) -> TestCluster {
    for node in cluster.running() {
        cluster.stop_node(node).await;
    }
    cluster
}

/// Every file below `dir`.
fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push((path.display().to_string(), std::fs::read(&path).unwrap()));
        }
    }
    found
}
