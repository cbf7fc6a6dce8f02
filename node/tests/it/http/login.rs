//! Device login over three nodes: any node starts, shows, decides and delivers a login, and a code yields one key.
//!
//! `raft-store/tests` checks that codes expire, because time can be set there.

use agentpost_node::server::http::login_limits::{
    CODES_PER_MINUTE, DEVICE_CODE_MISSES_PER_MINUTE, USER_CODE_MISSES_PER_MINUTE,
};
use agentpost_proto::command::{Operation, StartLogin, operation, reply};
use agentpost_proto::limits;
use serde_json::{Value, json};

use crate::common::TestCluster;
use crate::common::web::{Answer, Call, Team, new_key};

struct LoginOffice {
    cluster: TestCluster,
    urls: Vec<String>,
    admin: String,
    team: Team,
    /// An admin key of the team.
    team_admin: String,
    team_admin_id: String,
}

/// A device that waits for a decision.
#[derive(Clone)]
struct Device {
    code: String,
    user_code: String,
}

impl LoginOffice {
    async fn open() -> Self {
        let cluster = TestCluster::start(3).await;
        let (urls, admin) = (cluster.urls(), cluster.admin_key());
        let team = Team::create(&urls[0], &admin, "acme").await;
        let (team_admin_id, team_admin) = admin_key(&urls[0], &admin, &team).await;
        LoginOffice {
            cluster,
            urls,
            admin,
            team,
            team_admin,
            team_admin_id,
        }
    }

    async fn device(&self, node: usize) -> Device {
        let told = ask_code(&json!({})).to(&self.urls[node]).await.ok();
        let text = |name: &str| told[name].as_str().unwrap().to_owned();
        Device {
            code: text("device_code"),
            user_code: text("user_code"),
        }
    }

    async fn poll(&self, node: usize, device: &Device) -> Answer {
        ask_token(&device.code).to(&self.urls[node]).await
    }

    async fn decide(&self, node: usize, what: &str, body: &Value) -> Answer {
        decision(what, body).bearer(&self.team_admin).to(&self.urls[node]).await
    }

    async fn approve(&self, node: usize, device: &Device) -> Value {
        let body = json!({ "user_code": device.user_code });
        self.decide(node, "approve", &body).await.ok()
    }
}

async fn admin_key(url: &str, admin: &str, team: &Team) -> (String, String) {
    new_key(url, admin, &team.id, &json!({ "name": "a", "permissions": ["admin"] })).await
}

fn ask_code(body: &Value) -> Call {
    Call::post("/api/auth/device-code", body)
}

fn ask_token(code: &str) -> Call {
    Call::post("/api/auth/device-token", &json!({ "device_code": code }))
}

fn decision(what: &str, body: &Value) -> Call {
    Call::post(format!("/admin/v1/login/{what}"), body)
}

/// The exact error texts that the vendor's command line matches.
#[track_caller]
fn refused(answer: &Answer, status: u16, error: &str) {
    assert_eq!((answer.status, &answer.body), (status, &json!({ "error": error })));
    assert_eq!(answer.headers["cache-control"], "no-store");
}

fn send(key: &str) -> Call {
    let mail = json!({ "from": "a", "to": "b", "body": "x" });
    Call::post("/api/v1/agents/messages", &mail).bearer(key)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_gets_one_key_whichever_nodes_are_asked() {
    let office = LoginOffice::open().await;
    let urls = &office.urls;
    let told = ask_code(&json!({ "client": "kite 9 on laptop" })).to(&urls[0]).await;
    assert_eq!(told.headers["cache-control"], "no-store");
    let told = told.ok();
    let user_code = told["user_code"].as_str().unwrap().to_owned();
    let device = Device {
        code: told["device_code"].as_str().unwrap().to_owned(),
        user_code: user_code.clone(),
    };
    assert!(user_code.len() == 9 && &user_code[4..5] == "-", "{user_code}");
    assert_eq!(told["verification_url"], format!("{}/activate", urls[0]));
    let complete = format!("{}/activate?code={user_code}", urls[0]);
    assert_eq!(told["verification_url_complete"], complete);
    assert_eq!(told["ws_url"], format!("{}/ws", urls[0].replacen("http", "ws", 1)));
    assert_eq!((&told["interval"], &told["expires_in"]), (&json!(5), &json!(600)));
    refused(&office.poll(1, &device).await, 400, "authorization_pending");

    let typed = user_code.to_lowercase().replace('-', " ");
    let waiting = office.decide(2, "lookup", &json!({ "user_code": typed })).await.ok();
    assert_eq!(waiting["user_code"], user_code);
    assert_eq!(waiting["client"], "kite 9 on laptop");
    assert!((1..=600).contains(&waiting["expires_in"].as_u64().unwrap()));
    assert!(waiting["requested_at"].as_str().unwrap().ends_with('Z'));
    assert_eq!(waiting["teams"], json!([{ "id": office.team.id, "name": "acme" }]));

    let approved = office.approve(2, &device).await;
    let expected = json!({
        "user_code": user_code, "team": { "id": office.team.id, "name": "acme" }, "permissions": ["write"],
    });
    assert_eq!(approved, expected);
    // The second poll is not slowed down, because a decision exists; it repeats until this node has applied it.
    office.cluster.caught_up().await;
    let got = office.poll(1, &device).await;
    assert_eq!(got.headers["cache-control"], "no-store");
    let got = got.ok();
    assert_eq!(got["team_id"], office.team.id);
    assert_eq!(got.as_object().unwrap().len(), 2);
    let key = got["api_key"].as_str().unwrap();
    for url in urls {
        send(key).to(url).await.ok();
        let error = decision("lookup", &json!({ "user_code": user_code }))
            .bearer(key)
            .to(url)
            .await
            .error(403);
        assert!(error.contains("permission admin"), "{error}");
    }
    let listed = Call::get(format!("/admin/v1/teams/{}/keys", office.team.id));
    let listed = listed.bearer(&office.admin).to(&urls[0]).await.ok();
    let named = format!("kite login {}", user_code.replace('-', ""));
    let listed = listed["keys"].as_array().unwrap().iter();
    let listed: Vec<_> = listed.filter(|listed| listed["name"] == named.as_str()).collect();
    assert_eq!(listed.len(), 1);
    assert!(key.starts_with(listed[0]["key_prefix"].as_str().unwrap()));
    assert_eq!(listed[0]["permissions"], json!(["write"]));
    assert_eq!(listed[0]["scopes"], json!(["*"]));

    for node in 0..3 {
        refused(&office.poll(node, &device).await, 400, "expired_token");
        let body = json!({ "user_code": user_code });
        office.decide(node, "lookup", &body).await.error(404);
        office.decide(node, "approve", &body).await.error(404);
        office.decide(node, "deny", &body).await.error(404);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_is_made_once_and_a_code_is_fetched_once() {
    let office = LoginOffice::open().await;
    let device = office.device(0).await;
    let body = json!({ "user_code": device.user_code });
    assert_eq!(office.decide(1, "deny", &body).await.ok(), json!({ "success": true }));
    for node in 0..3 {
        refused(&office.poll(node, &device).await, 403, "access_denied");
        refused(&office.poll(node, &device).await, 403, "access_denied");
        for what in ["lookup", "approve", "deny"] {
            office.decide(node, what, &body).await.error(409);
        }
    }

    // Of many polls at the same time, one gets the key.
    let device = office.device(1).await;
    office.approve(0, &device).await;
    let polls = (0..12).map(|n| office.poll(n % 3, &device));
    let (got, missed): (Vec<_>, Vec<_>) = futures::future::join_all(polls)
        .await
        .into_iter()
        .partition(|answer| answer.status == 200);
    assert_eq!(got.len(), 1);
    missed.iter().for_each(|answer| refused(answer, 400, "expired_token"));

    // The key that approved the device is revoked.
    let device = office.device(2).await;
    office.approve(0, &device).await;
    let revoke = Call::delete(format!("/admin/v1/keys/{}", office.team_admin_id)).bearer(&office.admin);
    revoke.to(&office.urls[0]).await.ok();
    refused(&office.poll(1, &device).await, 403, "access_denied");
    office.decide(2, "lookup", &body).await.error(401);
}

/// A node that answered from its local state would sometimes miss the decision.
#[tokio::test(flavor = "multi_thread")]
async fn a_decision_counts_on_every_node_at_once() {
    let office = LoginOffice::open().await;
    let leader = office.cluster.leader().await;
    let followers = [(leader + 1) % 3, (leader + 2) % 3];
    for round in 0..40 {
        let device = office.device((leader + round) % 3).await;
        office.approve(leader, &device).await;
        office.poll(followers[round % 2], &device).await.ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn polling_too_fast_is_slowed_down() {
    let office = LoginOffice::open().await;
    let device = office.device(0).await;
    refused(&office.poll(0, &device).await, 400, "authorization_pending");
    // Several polls, because a busy machine may take long between two of them.
    let polls = futures::future::join_all((0..5).map(|_| office.poll(0, &device))).await;
    let slowed = polls.iter().filter(|answer| answer.body["error"] == "slow_down");
    let slowed: Vec<_> = slowed.collect();
    assert!(!slowed.is_empty(), "{polls:?}");
    slowed.into_iter().for_each(|answer| refused(answer, 400, "slow_down"));
    // The limit does not concern other codes, and a decision is answered at once.
    let other = office.device(0).await;
    refused(&office.poll(0, &other).await, 400, "authorization_pending");
    office.approve(0, &device).await;
    office.cluster.caught_up().await;
    office.poll(0, &device).await.ok();
}

/// Probes what a key with these permissions may do.
async fn has_exactly(url: &str, key: &str, permission: &str) {
    let read = Call::get("/v1/messages").key(key).agent("b").to(url).await;
    let (write, admin) = (
        send(key).to(url).await,
        Call::post("/v2/keys/rotate", &json!({})).key(key).to(url).await,
    );
    let statuses = [read.status, write.status, admin.status];
    let expected = match permission {
        "read" => [200, 403, 403],
        "write" => [200, 200, 403],
        _ => [200, 200, 200],
    };
    assert_eq!(statuses, expected, "{permission}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_must_name_the_team_and_the_approver_chooses_the_permissions() {
    let office = LoginOffice::open().await;
    let other = Team::create(&office.urls[0], &office.admin, "Über & Söhne").await;
    let operator = |what: &str, body: &Value| decision(what, body).bearer(&office.admin);
    for (n, (team, wanted, shown)) in [
        (json!(other.id), json!(["read"]), json!(["read"])),
        (json!("Über & Söhne"), json!(null), json!(["write"])),
        (
            json!("acme"),
            json!(["admin", "read", "admin"]),
            json!(["read", "admin"]),
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let (here, there) = (&office.urls[n], &office.urls[(n + 1) % 3]);
        let device = office.device(n).await;
        let lookup = operator("lookup", &json!({ "user_code": device.user_code }));
        let names = lookup.to(here).await.ok()["teams"].clone();
        let names: Vec<_> = names.as_array().unwrap().iter().map(|team| &team["name"]).collect();
        assert_eq!(names, ["acme", "Über & Söhne"]);
        let missing = json!({ "user_code": device.user_code });
        let error = operator("approve", &missing).to(here).await.error(400);
        assert!(error.starts_with("team is required"), "{error}");
        let body = json!({ "user_code": device.user_code, "team": team, "permissions": wanted });
        let approved = operator("approve", &body).to(here).await.ok();
        assert_eq!(approved["permissions"], shown);
        let got = office.poll((n + 1) % 3, &device).await.ok();
        assert_eq!(got["team_id"], approved["team"]["id"]);
        has_exactly(
            there,
            got["api_key"].as_str().unwrap(),
            shown.as_array().unwrap().last().unwrap().as_str().unwrap(),
        )
        .await;
    }

    // None of these calls decides the login.
    let device = office.device(0).await;
    let with = |team: Value, permissions: Value| json!({ "user_code": device.user_code, "team": team, "permissions": permissions });
    for (body, status) in [
        (with(json!("system"), json!(null)), 400),
        (with(json!(format!("team_{}", "0".repeat(32))), json!(null)), 400),
        (with(json!("nobody"), json!(null)), 404),
        (with(json!(""), json!(null)), 404),
        (with(json!("x".repeat(5_000)), json!(null)), 404),
        (with(json!(format!("team_{}", "1".repeat(32))), json!(null)), 404),
        (with(json!("acme"), json!([])), 400),
        (with(json!("acme"), json!(["*"])), 400),
        (with(json!("acme"), json!("write")), 400),
        (with(json!(["acme"]), json!(null)), 400),
    ] {
        let answer = operator("approve", &body).to(&office.urls[1]).await;
        assert_eq!(answer.status, status, "{body}: {}", answer.body);
    }
    refused(&office.poll(2, &device).await, 400, "authorization_pending");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_administrators_let_devices_in_and_only_into_their_team() {
    let office = LoginOffice::open().await;
    let url = &office.urls[1];
    let other = Team::create(url, &office.admin, "other").await;
    let (_, other_admin) = admin_key(url, &office.admin, &other).await;
    let key = async |wanted: Value| new_key(url, &office.admin, &office.team.id, &wanted).await.1;
    let bound = key(json!({ "name": "b", "permissions": ["admin"], "agent_id": "b" })).await;
    let narrowed = key(json!({ "name": "n", "permissions": ["admin"], "scopes": ["agent_to:b"] })).await;
    let reader = key(json!({ "name": "r", "permissions": ["read"] })).await;
    let device = office.device(0).await;
    let body = json!({ "user_code": device.user_code });
    for what in ["lookup", "approve", "deny"] {
        for url in &office.urls {
            for weak in [&reader, &office.team.key] {
                let error = decision(what, &body).bearer(weak).to(url).await.error(403);
                assert!(error.contains("permission admin"), "{error}");
            }
            for weak in [&bound, &narrowed] {
                let error = decision(what, &body).bearer(weak).to(url).await.error(403);
                assert!(error.contains("bound to an agent or to scopes"), "{error}");
            }
            decision(what, &body).bearer("kite_0").to(url).await.error(401);
            decision(what, &body).to(url).await.error(401);
        }
    }
    // A key of another team approves for that other team or denies; it learns nothing of the first team.
    let waiting = decision("lookup", &body).bearer(&other_admin).to(url).await.ok();
    assert_eq!(waiting["teams"], json!([{ "id": other.id, "name": "other" }]));
    for team in [office.team.id.as_str(), "acme", "nobody", "system"] {
        let body = json!({ "user_code": device.user_code, "team": team });
        let answer = decision("approve", &body).bearer(&other_admin).to(url).await;
        assert_eq!(answer.error(404), "no such team");
    }
    refused(&office.poll(2, &device).await, 400, "authorization_pending");
    let own = json!({ "user_code": device.user_code, "team": "other" });
    decision("approve", &own).bearer(&other_admin).to(url).await.ok();
    assert_eq!(office.poll(0, &device).await.ok()["team_id"], other.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_name_of_a_device_is_one_short_line() {
    let office = LoginOffice::open().await;
    let shown = async |call: Call| {
        let told = call.to(&office.urls[0]).await.ok();
        let body = json!({ "user_code": told["user_code"] });
        office.decide(1, "lookup", &body).await.ok()["client"].clone()
    };
    let script = "<img src=x onerror=alert(1)>";
    for (said, client) in [
        (json!({ "client": script }), script.to_owned()),
        (json!({ "client": "a\u{1b}[2J\n\u{202e}b" }), "a[2Jb".to_owned()),
        (
            json!({ "client": "ä".repeat(9_000) }),
            "ä".repeat(limits::LOGIN_CLIENT_CHARS_MAX),
        ),
        (json!({ "client": "" }), String::new()),
        (json!({ "client": null, "more": [1] }), "agent/1".to_owned()),
        (json!({}), "agent/1".to_owned()),
    ] {
        assert_eq!(shown(ask_code(&said).header("user-agent", "agent/1")).await, client);
    }
    let plain = || Call::new(axum::http::Method::POST, "/api/auth/device-code");
    assert_eq!(shown(plain()).await, "");
    assert_eq!(shown(plain().raw(" \r\n")).await, "");
    assert_eq!(shown(plain().header("user-agent", "\u{e4}")).await, "");
}

/// Repeats `call` until it is limited; returns the earlier answers and the refusal.
async fn until_limited(url: &str, call: impl Fn() -> Call) -> (Vec<Answer>, Answer) {
    let mut before = Vec::new();
    loop {
        let answer = call().to(url).await;
        if answer.status == 429 {
            return (before, answer);
        }
        before.push(answer);
        assert!(before.len() < 1_000, "nothing is limited");
    }
}

#[track_caller]
fn told_to_wait(answer: &Answer) {
    let seconds: u64 = answer.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=120).contains(&seconds), "{seconds}");
    answer.clone().error(429);
}

#[tokio::test(flavor = "multi_thread")]
async fn unauthenticated_calls_are_limited_per_address_and_node() {
    let office = LoginOffice::open().await;
    let (url, elsewhere) = (&office.urls[0], &office.urls[1]);
    let (before, limited) = until_limited(url, || ask_code(&json!({}))).await;
    assert!(before.len() >= CODES_PER_MINUTE as usize, "{}", before.len());
    told_to_wait(&limited);
    assert_eq!(limited.body.as_object().unwrap().len(), 2, "{}", limited.body);
    assert!(limited.body["retry_after_secs"].is_u64());
    ask_code(&json!({})).to(elsewhere).await.ok();
    ask_code(&json!({})).coming_from([127, 0, 0, 2]).to(url).await.ok();

    let unknown = "ab".repeat(32);
    let (before, limited) = until_limited(url, || ask_token(&unknown)).await;
    assert!(
        before.len() >= DEVICE_CODE_MISSES_PER_MINUTE as usize,
        "{}",
        before.len()
    );
    before.iter().for_each(|answer| refused(answer, 400, "expired_token"));
    told_to_wait(&limited);
    refused(&ask_token(&unknown).to(elsewhere).await, 400, "expired_token");
    let neighbour = ask_token(&unknown).coming_from([127, 0, 0, 2]);
    refused(&neighbour.to(url).await, 400, "expired_token");
    // A device with a code is not limited by the other callers of its address.
    let device = office.device(1).await;
    office.approve(0, &device).await;
    office.poll(0, &device).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn guessing_codes_is_limited_per_key_and_node() {
    let office = LoginOffice::open().await;
    let device = office.device(0).await;
    let lookup = |code: &str| decision("lookup", &json!({ "user_code": code })).bearer(&office.team_admin);
    // Existing codes and malformed codes do not count as guesses.
    for _ in 0..3 * USER_CODE_MISSES_PER_MINUTE {
        lookup(&device.user_code).to(&office.urls[0]).await.ok();
        lookup("AEIO-UAEI").to(&office.urls[0]).await.error(404);
    }
    let whats = ["lookup", "approve", "deny"];
    let mut n = 0;
    let guess = || {
        n += 1;
        decision(whats[n % 3], &json!({ "user_code": "BBBB-BBBB" })).bearer(&office.team_admin)
    };
    let guess = std::cell::RefCell::new(guess);
    let (before, limited) = until_limited(&office.urls[0], || (guess.borrow_mut())()).await;
    assert!(before.len() >= USER_CODE_MISSES_PER_MINUTE as usize);
    before.into_iter().for_each(|answer| drop(answer.error(404)));
    told_to_wait(&limited);
    assert_eq!(lookup(&device.user_code).to(&office.urls[0]).await.status, 429);
    lookup(&device.user_code).to(&office.urls[1]).await.ok();
    let operator = decision("lookup", &json!({ "user_code": device.user_code })).bearer(&office.admin);
    operator.to(&office.urls[0]).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn open_codes_are_limited_over_the_cluster() {
    let office = LoginOffice::open().await;
    let services = office.cluster.services(0);
    let starts = (0..limits::LOGINS_MAX).map(|n| {
        let letters = (0..limits::USER_CODE_LETTERS as u32).map(|place| {
            let letter = n / 20_u32.pow(place.min(4)) % 20;
            char::from(limits::USER_CODE_ALPHABET[if place > 4 { 0 } else { letter as usize }])
        });
        let op = StartLogin {
            device_hash: services.secrets.key_hash(&n.to_string()).to_vec().into(),
            user_code: letters.collect(),
            key_id: services.ids.random::<16>().to_vec().into(),
            key_hash: services.ids.random::<32>().to_vec().into(),
            key_prefix: "kite_0".to_owned(),
            client: String::new(),
        };
        services.proposer.propose(Operation {
            principal: None,
            op: Some(operation::Op::StartLogin(op)),
        })
    });
    for answer in futures::future::join_all(starts).await {
        let reply = answer.unwrap().reply.unwrap();
        assert!(matches!(reply, reply::Reply::Done(_)), "{reply:?}");
    }
    for url in &office.urls {
        let answer = ask_code(&json!({})).to(url).await;
        assert_eq!(answer.headers["retry-after"], "600");
        assert_eq!(answer.body["retry_after_secs"], 600);
        answer.error(429);
    }
    // Deciding a login does not make room for another; fetching its key does.
    let first = Device {
        code: "0".to_owned(),
        user_code: "BBBB-BBBB".to_owned(),
    };
    office.approve(1, &first).await;
    ask_code(&json!({})).to(&office.urls[2]).await.error(429);
    office.poll(0, &first).await.ok();
    office.device(2).await;
    ask_code(&json!({})).to(&office.urls[1]).await.error(429);
}

#[tokio::test(flavor = "multi_thread")]
async fn logins_survive_a_leader_change_and_wait_for_a_quorum() {
    let office = LoginOffice::open().await;
    let leader = office.cluster.leader().await;
    let [one, two] = [1, 2].map(|step| (leader + step) % 3);
    let (approved, pending, denied) = (
        office.device(leader).await,
        office.device(one).await,
        office.device(two).await,
    );
    office.approve(leader, &approved).await;
    let body = json!({ "user_code": denied.user_code });
    office.decide(leader, "deny", &body).await.ok();
    office.cluster.kill(leader).await;
    office.cluster.leader().await;
    for node in [one, two] {
        office.cluster.ready(node).await;
    }
    refused(&office.poll(two, &denied).await, 403, "access_denied");
    let key = office.poll(one, &approved).await.ok()["api_key"].clone();
    for node in [one, two] {
        send(key.as_str().unwrap()).to(&office.urls[node]).await.ok();
    }
    refused(&office.poll(two, &pending).await, 400, "authorization_pending");
    office.approve(two, &pending).await;

    // Without a quorum every route answers 503.
    office.cluster.kill(one).await;
    let unknown = Device {
        code: "cd".repeat(32),
        user_code: String::new(),
    };
    for answer in [
        office.poll(two, &unknown).await,
        ask_code(&json!({})).to(&office.urls[two]).await,
        office.decide(two, "lookup", &body).await,
    ] {
        assert!(matches!(answer.status, 503 | 504), "{}", answer.body);
        answer.clone().error(answer.status);
    }
    office.cluster.restart(one).await;
    office.poll(one, &pending).await.ok();
}
