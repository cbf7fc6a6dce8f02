//! Key management over the socket, on three nodes: permissions, and that changes count on all nodes at once.

use agentpost_proto::time::{parse_rfc3339, rfc3339};
use agentpost_testkit::socket::{Socket, refused};
use serde_json::{Value, json};

use crate::common::eventually;
use crate::common::office::{Office, connect, office};
use crate::common::web::{Call, Team};

impl Office {
    /// Creates a team and returns it with an admin key. The team's first key is a write key.
    async fn managed_team(&self, name: &str) -> Team {
        let team = self.new_team(name).await;
        self.key(&team, json!({"name": "boss", "permissions": ["admin"]}))
            .await
            .1
    }

    /// Connects as the vendor's management commands do.
    async fn manage(&self, node: usize, team: &Team) -> Socket {
        self.listen(node, team, &["*"], None).await.0
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value}")).to_owned()
}

/// The keys of a list: name, prefix, and whether it is revoked.
fn listed(list: &Value) -> Vec<(String, String, bool)> {
    let keys = list["keys"].as_array().unwrap().iter();
    keys.map(|key| (text(&key["name"]), text(&key["key_prefix"]), key["revoked"] == true))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_over_the_socket() {
    let office = office().await;
    tokio::join!(
        permissions_decide_which_methods_a_key_may_call(&office),
        a_key_works_on_every_node_at_once(&office),
        a_revoked_key_closes_sockets_on_every_node(&office),
        the_answer_comes_before_the_own_end(&office),
        defaults_and_wishes(&office),
        operators_manage_the_keys_of_their_own_team(&office),
        a_list_that_would_not_fit_a_frame(&office),
    );
}

/// The outcome of a request.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Done,
    /// It is refused with a text that contains this.
    Told(&'static str),
    /// The session itself is refused.
    NoSession,
}

use Fate::{Done, NoSession, Told};

const METHODS: [&str; 6] = [
    "events.recent",
    "dashboard.stats",
    "keys.list",
    "keys.create",
    "keys.revoke",
    "hooks.list",
];
const NO_HOOKS: Fate = Told("takes no webhooks in");
const LACKS_ADMIN: Fate = Told("lacks the permission admin");
const IS_BOUND: Fate = Told("bound to an agent");
const NARROWED: Fate = Told("bound to an agent or to scopes cannot make keys");

const READER: [Fate; 6] = [Done, Done, Done, LACKS_ADMIN, LACKS_ADMIN, NO_HOOKS];
const ADMIN: [Fate; 6] = [Done, Done, Done, Done, Done, NO_HOOKS];
const BOUND: [Fate; 6] = [Done, Done, IS_BOUND, IS_BOUND, IS_BOUND, NO_HOOKS];
const SCOPED_ADMIN: [Fate; 6] = [Done, Done, Done, NARROWED, Done, NO_HOOKS];
/// A request cannot see keys of other teams or create keys for them.
const OTHER_TEAM: [Fate; 6] = [Done, Done, Done, Done, Told("no such key"), NO_HOOKS];

/// The keys of the team in the operator's list.
const KEYS: [(&str, [Fate; 6]); 8] = [
    (r#"{"permissions": ["read"]}"#, READER),
    (r#"{"permissions": ["write"]}"#, READER),
    (r#"{"permissions": ["admin"]}"#, ADMIN),
    (r#"{"permissions": ["read"], "agent_id": "alpha"}"#, BOUND),
    (r#"{"permissions": ["write"], "agent_id": "alpha"}"#, BOUND),
    (r#"{"permissions": ["admin"], "agent_id": "alpha"}"#, BOUND),
    (r#"{"permissions": ["read"], "scopes": ["agent_to:alpha"]}"#, READER),
    (
        r#"{"permissions": ["admin"], "scopes": ["agent_to:alpha"]}"#,
        SCOPED_ADMIN,
    ),
];

async fn permissions_decide_which_methods_a_key_may_call(office: &Office) {
    let team = office.managed_team("matrix").await;
    let other = office.managed_team("matrix of others").await;
    let mut table = vec![
        ("an admin of another team", other.clone(), OTHER_TEAM),
        ("an expired admin", expired(office, &team).await, [NoSession; 6]),
    ];
    let foreign = Team {
        key: other.key.clone(),
        ..team.clone()
    };
    table.push(("a key of another team", foreign, [NoSession; 6]));
    for (wanted, fates) in KEYS {
        let mut key: Value = serde_json::from_str(wanted).unwrap();
        key["name"] = json!("k");
        table.push((wanted, office.key(&team, key).await.1, fates));
    }
    for (who, key, fates) in &table {
        for (method, expected) in METHODS.iter().zip(fates) {
            let victim = json!({"name": "victim", "permissions": ["read"]});
            let (victim, _) = office.key(&team, victim).await;
            let params = match *method {
                "keys.create" => json!({"name": "made", "team_id": team.id, "agent_id": "alpha"}),
                "keys.revoke" => json!({"id": victim}),
                _ => json!({}),
            };
            match (fate_of(office, key, method, params).await, expected) {
                (Ok(()), Done) | (Err(None), NoSession) => {}
                (Err(Some(why)), Told(words)) => assert!(why.contains(words), "{who} {method}: {why}"),
                (fate, expected) => panic!("{who} {method}: {fate:?} instead of {expected:?}"),
            }
            let listed = keys_of(office, &team).await;
            let is_revoked = listed.iter().any(|key| key["id"] == victim && key["revoked"] == true);
            assert_eq!(
                is_revoked,
                *method == "keys.revoke" && *expected == Done,
                "{who} {method}"
            );
        }
    }
    let made = |keys: Vec<Value>| keys.iter().filter(|key| key["name"] == "made").count();
    assert_eq!(made(keys_of(office, &team).await), 1);
    assert_eq!(made(keys_of(office, &other).await), 1);
}

/// An admin key that is revoked while its session is open.
async fn expired(office: &Office, team: &Team) -> Team {
    let at = rfc3339(office.cluster.services(0).clock.wall_ms() + 1_500);
    let wanted = json!({"name": "e", "permissions": ["admin"], "expires_at": at});
    let (_, key) = office.key(team, wanted).await;
    for node in 0..3 {
        eventually("an expired key", async || {
            (office.try_send(node, &key, "alpha", "hello").await.status == 401).then_some(())
        })
        .await;
    }
    key
}

/// The operator sees the same keys.
async fn keys_of(office: &Office, team: &Team) -> Vec<Value> {
    let list = Call::get(format!("/admin/v1/teams/{}/keys", team.id));
    let list = list.bearer(&office.admin).to(&office.urls[0]).await.ok();
    list["keys"].as_array().unwrap().clone()
}

/// The request is done, refused with a text, or cannot be made.
async fn fate_of(office: &Office, key: &Team, method: &str, params: Value) -> Result<(), Option<String>> {
    let mut socket = Socket::open(&office.urls[1]).await;
    socket.say(&connect(key, &["*"], None).frame()).await;
    if socket.frame_or_ending().await.is_none() {
        assert_eq!(socket.ended(), refused(4001));
        return Err(None);
    }
    socket.frame().await;
    let (ok, payload) = socket.ask(method, params).await;
    if ok { Ok(()) } else { Err(Some(text(&payload["error"]))) }
}

async fn a_key_works_on_every_node_at_once(office: &Office) {
    let team = office.managed_team("at once").await;
    for n in 0..9 {
        let (maker, user) = (n % 3, (n + 1) % 3);
        let mut socket = office.manage(maker, &team).await;
        let wanted = json!({"name": format!("key {n}"), "scopes": ["*"], "permissions": ["write"], "expires_at": null});
        let made = socket.answer("keys.create", wanted).await;
        assert_eq!(made.as_object().unwrap().len(), 3, "{made}");
        let (id, key) = (text(&made["id"]), text(&made["api_key"]));
        assert!(key.starts_with("kite_") && key.starts_with(&text(&made["key_prefix"])));
        let own = Team { key, ..team.clone() };
        office.send(user, &own, "alpha", "hello").await;
        let (mut listener, _) = office.listen((n + 2) % 3, &own, &["agent_to:alpha"], None).await;
        listener.bodies(n + 1).await;
        let list = office.manage(user, &own).await.answer("keys.list", json!({})).await;
        let last = list["keys"].as_array().unwrap().last().unwrap().clone();
        assert_eq!((&list["team_id"], &last["id"]), (&json!(team.id), &json!(id)), "by age");
        assert_eq!(last["key_prefix"], made["key_prefix"]);
        assert!(!list.to_string().contains(&own.key), "a secret in a list");
        parse_rfc3339(last["created_at"].as_str().unwrap()).unwrap();
    }
}

async fn a_revoked_key_closes_sockets_on_every_node(office: &Office) {
    let team = office.managed_team("revoked").await;
    let mut boss = office.manage(0, &team).await;
    let made = boss.answer("keys.create", json!({"permissions": ["write"]})).await;
    let doomed = Team {
        key: text(&made["api_key"]),
        ..team.clone()
    };
    let mut sockets = Vec::new();
    for node in 0..3 {
        for scopes in [&["*"][..], &["agent_to:alpha"]] {
            sockets.push(office.listen(node, &doomed, scopes, None).await.0);
        }
    }
    let id = json!({"id": made["id"]});
    assert_eq!(boss.answer("keys.revoke", id.clone()).await, id);
    for socket in &mut sockets {
        assert_eq!(socket.ending().await, refused(4001));
    }
    for node in 0..3 {
        assert_eq!(office.try_send(node, &doomed, "alpha", "hello").await.status, 401);
    }
    // Revoking twice is the same as once.
    assert_eq!(boss.answer("keys.revoke", id.clone()).await, id);
    let list = boss.answer("keys.list", Value::Null).await;
    let prefix = text(&made["key_prefix"]);
    assert_eq!(listed(&list)[2], ("kite key".to_owned(), prefix, true));
}

/// The leader applies a revocation before it answers; another node may answer first.
async fn the_answer_comes_before_the_own_end(office: &Office) {
    let team = office.managed_team("own key").await;
    for n in 0..12 {
        let (id, own) = office
            .key(&team, json!({"name": "own", "permissions": ["admin"]}))
            .await;
        let mut socket = office.manage(n % 3, &own).await;
        let mut other = office.manage((n + 1) % 3, &own).await;
        let params = json!({"id": id});
        for (at, method) in ["dashboard.stats", "keys.revoke", "dashboard.stats"].iter().enumerate() {
            let request = json!({"type": "request", "id": at.to_string(), "method": method, "params": params});
            socket.say(&request).await;
        }
        for at in ["0", "1"] {
            let answer = socket.frame().await;
            assert_eq!((&answer["id"], &answer["ok"]), (&json!(at), &json!(true)), "{answer}");
        }
        // Later requests are refused or get no answer.
        if let Some(answer) = socket.frame_or_ending().await {
            assert_eq!((&answer["id"], &answer["ok"]), (&json!("2"), &json!(false)), "{answer}");
        }
        assert_eq!(socket.ending().await, refused(4001));
        assert_eq!(other.ending().await, refused(4001));
    }
}

async fn defaults_and_wishes(office: &Office) {
    let team = office.managed_team("wishes").await;
    let mut boss = office.manage(2, &team).await;
    let at = rfc3339(office.cluster.services(0).clock.wall_ms() + 3_600_000);
    for (params, name, permissions, scopes, expires_at) in [
        (json!({}), "kite key", json!(["read"]), json!(["*"]), Value::Null),
        (Value::Null, "kite key", json!(["read"]), json!(["*"]), Value::Null),
        (
            json!({"name": null, "scopes": null, "permissions": null, "expires_at": null}),
            "kite key",
            json!(["read"]),
            json!(["*"]),
            Value::Null,
        ),
        (
            json!({"name": "ci ä", "scopes": ["agent_to:a", "type:kite"], "permissions": ["*"], "expires_at": at}),
            "ci ä",
            json!(["admin"]),
            json!(["agent_to:a", "type:kite"]),
            json!(at),
        ),
        (
            json!({"permissions": ["write", "read", "read"]}),
            "kite key",
            json!(["read", "write"]),
            json!(["*"]),
            Value::Null,
        ),
    ] {
        let id = boss.answer("keys.create", params).await["id"].clone();
        let list = boss.answer("keys.list", json!({})).await;
        let key = list["keys"]
            .as_array()
            .unwrap()
            .iter()
            .find(|key| key["id"] == id)
            .unwrap();
        assert_eq!(key["name"], name);
        assert_eq!((&key["permissions"], &key["scopes"]), (&permissions, &scopes));
        assert_eq!((&key["expires_at"], &key["agent_id"]), (&expires_at, &Value::Null));
        assert_eq!(key["revoked"], false);
    }
}

async fn operators_manage_the_keys_of_their_own_team(office: &Office) {
    let team = office.managed_team("of a tenant").await;
    let system = Team {
        id: format!("team_{}", "0".repeat(32)),
        key: office.admin.clone(),
    };
    let tenant = keys_of(office, &team).await[0]["id"].clone();
    let mut socket = office.manage(1, &system).await;
    let why = socket.refusal("keys.revoke", json!({"id": tenant})).await;
    assert_eq!(why, "no such key");
    let made = socket.answer("keys.create", json!({"permissions": ["admin"]})).await;
    let list = socket.answer("keys.list", json!({})).await;
    assert_eq!(list["team_id"], system.id);
    assert!(list["keys"].as_array().unwrap().iter().all(|key| key["id"] != tenant));
    let second = Team {
        key: text(&made["api_key"]),
        ..system.clone()
    };
    let id = json!({"id": made["id"]});
    office.manage(2, &second).await.answer("keys.revoke", id).await;
    let words = connect(&second, &["*"], None).frame();
    let mut socket = Socket::open(&office.urls[0]).await;
    socket.say(&words).await;
    assert_eq!(socket.ending().await, refused(4001));
}

async fn a_list_that_would_not_fit_a_frame(office: &Office) {
    let team = office.managed_team("many scopes").await;
    let mut boss = office.manage(0, &team).await;
    let scopes: Vec<String> = (0..64).map(|n| format!("source:{n:02}{}", "x".repeat(247))).collect();
    let count = 20;
    for _ in 0..count {
        boss.answer("keys.create", json!({"scopes": scopes})).await;
    }
    let list = boss.answer("keys.list", json!({})).await;
    let keys = list["keys"].as_array().unwrap();
    assert_eq!(keys.len(), count + 2);
    assert_eq!(keys[0]["scopes"], json!(["*"]));
    assert_eq!(keys[5]["scopes"], json!([scopes[0], "… and 63 more"]));
}
