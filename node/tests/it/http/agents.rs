//! The directory of agents on three nodes: registered agents, their sessions, and unreachable nodes.

use axum::http::Method;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use agentpost_proto::api::kite::{Agent, Agents};
use agentpost_testkit::socket::Socket;
use futures::{StreamExt as _, stream};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::common::eventually;
use crate::common::office::{Office, connect, office};
use crate::common::web::{Call, Team};

const AGENTS: &str = "/api/v1/agents";

impl Office {
    /// Sends a message; returns the status of the answer.
    async fn mail_status(&self, node: usize, team: &Team, to: &str) -> u16 {
        self.try_send(node, team, to, "x").await.status
    }

    async fn register(&self, node: usize, key: &str, id: &str, name: Option<&str>) -> Agent {
        let call = Call::post(AGENTS, &json!({ "id": id, "name": name })).bearer(key);
        serde_json::from_value(call.to(&self.urls[node]).await.ok()).unwrap()
    }

    /// A page to which every node contributed. On a busy machine a node may answer too late, so this repeats.
    async fn page(&self, node: usize, key: &str, query: &str) -> Agents {
        eventually("a page of all nodes", async || {
            let page = self.page_if_ready(node, key, query).await?;
            page.unreachable_nodes.is_empty().then_some(page)
        })
        .await
    }

    /// A page; `None` while there is no leader.
    async fn page_if_ready(&self, node: usize, key: &str, query: &str) -> Option<Agents> {
        let call = Call::get(format!("{AGENTS}?{query}")).bearer(key);
        let answer = call.to(&self.urls[node]).await;
        (answer.status != 503).then(|| serde_json::from_value(answer.ok()).unwrap())
    }

    /// The agents and their session counts according to node `node`.
    async fn present(&self, node: usize, team: &Team, query: &str) -> Vec<(String, u64)> {
        present(self.page(node, &team.key, query).await).0
    }

    /// Waits until every running node shows these agents and these unreachable nodes.
    async fn all_tell(&self, team: &Team, query: &str, agents: &[(&str, u64)], unreachable: &[u64]) {
        let agents: Vec<_> = agents.iter().map(|(id, n)| ((*id).to_owned(), *n)).collect();
        let expected = (agents, unreachable.to_vec());
        for node in self.cluster.running() {
            eventually(&format!("{expected:?} on node {node}"), async || {
                let page = self.page_if_ready(node, &team.key, query).await?;
                (present(page) == expected).then_some(())
            })
            .await;
        }
    }
}

/// Agents with their session counts, and the nodes that did not answer.
type Present = (Vec<(String, u64)>, Vec<u64>);

fn present(page: Agents) -> Present {
    let agents = page.agents.into_iter().map(|agent| (agent.id, agent.sessions));
    (agents.collect(), page.unreachable_nodes)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_directory_of_a_team() {
    let office = office().await;
    tokio::join!(
        registered_agents_and_agents_with_mail_are_listed(&office),
        listeners_are_counted_on_every_node(&office),
        teams_share_nothing(&office),
        pages_join_while_agents_are_added(&office),
        strict_recipients_are_the_registered_ones(&office),
        keys_register_only_agents_that_they_may_act_as(&office),
        bad_input_has_its_answer_and_registers_nobody(&office),
    );
}

async fn registered_agents_and_agents_with_mail_are_listed(office: &Office) {
    let team = office.new_team("listed").await;
    let empty = Call::get(AGENTS).bearer(&team.key).to(&office.urls[1]).await.ok();
    assert_eq!(empty, json!({ "agents": [], "next": null, "unreachable_nodes": [] }));
    let alpha = office.register(0, &team.key, "alpha", Some("Älpha 1")).await;
    assert_eq!(
        (
            alpha.id.as_str(),
            alpha.name.as_deref(),
            alpha.registered,
            alpha.sessions
        ),
        ("alpha", Some("Älpha 1"), true, 0)
    );
    team.bound(&office.urls[1], &office.admin, "beta").await;
    assert_eq!(office.mail_status(2, &team, "gamma").await, 200);
    // Mail to the reserved agent is refused, so it never gets an inbox. A sender that received nothing has none either.
    assert_eq!(office.mail_status(2, &team, "system").await, 404);
    for node in 0..3 {
        for mount in ["/api/v1", "/v1"] {
            let path = format!("{mount}/agents?team_id={}", team.id);
            let body = Call::get(path).key(&team.key).to(&office.urls[node]).await.ok();
            let page: Agents = serde_json::from_value(body.clone()).unwrap();
            assert_eq!(page.agents[0], alpha);
            let shown: Vec<_> = page.agents.iter().map(|a| (a.id.as_str(), a.registered)).collect();
            assert_eq!(shown, [("alpha", true), ("beta", true), ("gamma", false)]);
            assert!(page.agents[1].registered_at.as_ref().unwrap().ends_with('Z'));
            let gamma =
                json!({ "id": "gamma", "name": null, "registered": false, "registered_at": null, "sessions": 0 });
            assert_eq!((&body["agents"][2], &body["next"]), (&gamma, &Value::Null));
        }
    }
    // Registering again changes the name and keeps the date. Without a name the old one is removed.
    let renamed = office.register(1, &team.key, "alpha", Some("A")).await;
    assert_eq!(renamed.registered_at, alpha.registered_at);
    assert_eq!(renamed.name.as_deref(), Some("A"));
    assert_eq!(office.register(2, &team.key, "alpha", None).await.name, None);
    let gamma = office.register(0, &team.key, "gamma", None).await;
    assert!(gamma.registered && gamma.registered_at.is_some());
    assert_eq!(office.page(1, &team.key, "").await.agents.len(), 3);
}

async fn listeners_are_counted_on_every_node(office: &Office) {
    let team = office.new_team("listeners").await;
    for agent in ["alpha", "beta", "delta"] {
        office.register(0, &team.key, agent, None).await;
    }
    let beta = office.bound(&team, "beta").await;
    let narrow = json!({ "name": "n", "permissions": ["read"], "scopes": ["agent_to:delta", "agent_to:beta"] });
    let (_, narrow) = office.key(&team, narrow).await;
    let (first, _) = office.listen(0, &team, &["agent_to:alpha"], None).await;
    let (second, _) = office
        .listen(1, &team, &["agent_to:alpha", "agent_to:alpha"], None)
        .await;
    let several = ["agent_to:beta", "type:push", "agent_to:alpha"];
    let (several, _) = office.listen(2, &team, &several, None).await;
    let (wide, _) = office.listen(0, &team, &["*", "source:alpha"], None).await;
    // The scopes that the key permits count, not the requested ones.
    let (own, _) = office.listen(1, &beta, &["*"], None).await;
    let (left, _) = office
        .listen(2, &narrow, &["agent_to:delta", "agent_to:alpha"], None)
        .await;
    // A connected session is counted at once.
    for node in 0..3 {
        let agents = office.present(node, &team, "").await;
        let expected = [("alpha", 3), ("beta", 2), ("delta", 1)];
        assert_eq!(agents, expected.map(|(id, n)| (id.to_owned(), n)), "node {node}");
    }
    eventually("a registration that tells the same", async || {
        let alpha = office.register(1, &team.key, "alpha", None).await;
        (alpha.sessions == 3).then_some(())
    })
    .await;
    second.cut();
    office
        .all_tell(&team, "", &[("alpha", 2), ("beta", 2), ("delta", 1)], &[])
        .await;
    several.cut();
    office
        .all_tell(&team, "", &[("alpha", 1), ("beta", 1), ("delta", 1)], &[])
        .await;
    for socket in [first, wide, own, left] {
        socket.cut();
    }
    office
        .all_tell(&team, "", &[("alpha", 0), ("beta", 0), ("delta", 0)], &[])
        .await;
    // A refused session was never counted.
    let mut refused = Socket::open(&office.urls[0]).await;
    refused.say(&connect(&beta, &["agent_to:alpha"], None).frame()).await;
    assert_eq!(refused.frame().await["code"], 4001);
    assert_eq!(office.present(0, &team, "limit=1").await, [("alpha".to_owned(), 0)]);
}

async fn teams_share_nothing(office: &Office) {
    let (one, other) = (office.new_team("one").await, office.new_team("other").await);
    office.register(0, &one.key, "alpha", Some("one's")).await;
    office.register(1, &other.key, "alpha", Some("other's")).await;
    office.register(2, &other.key, "theirs", None).await;
    assert_eq!(office.mail_status(0, &one, "mine").await, 200);
    let _sockets = [
        office.listen(0, &one, &["agent_to:alpha"], None).await.0,
        office.listen(1, &other, &["agent_to:alpha"], None).await.0,
        office
            .listen(2, &other, &["agent_to:alpha", "agent_to:mine"], None)
            .await
            .0,
    ];
    for node in 0..3 {
        let page = office.page(node, &one.key, "").await;
        let shown: Vec<_> = page
            .agents
            .iter()
            .map(|a| (&a.id[..], a.name.as_deref(), a.sessions))
            .collect();
        assert_eq!(shown, [("alpha", Some("one's"), 1), ("mine", None, 0)], "node {node}");
        let page = office.page(node, &other.key, "").await;
        let shown: Vec<_> = page
            .agents
            .iter()
            .map(|a| (&a.id[..], a.name.as_deref(), a.sessions))
            .collect();
        assert_eq!(
            shown,
            [("alpha", Some("other's"), 2), ("theirs", None, 0)],
            "node {node}"
        );
        // The refusal of another team does not show whether it exists.
        for team in [&other.id, "team_x"] {
            let foreign = Call::get(format!("{AGENTS}?team_id={team}")).bearer(&one.key);
            let error = foreign.to(&office.urls[node]).await.error(403);
            assert_eq!(error, "this API key belongs to another team");
        }
    }
}

async fn pages_join_while_agents_are_added(office: &Office) {
    let team = office.new_team("pages").await;
    let id = |n: u32| format!("agent-{:04}", n * 7919 % 10_000);
    let before: BTreeSet<String> = (0..45).map(id).collect();
    // Some agents are registered, some have received mail, some both.
    stream::iter(0..45)
        .for_each_concurrent(16, async |n| {
            if n % 3 != 0 {
                office.register(n as usize % 3, &team.key, &id(n), None).await;
            }
            if n % 3 != 1 {
                assert_eq!(office.mail_status(n as usize % 3, &team, &id(n)).await, 200);
            }
        })
        .await;
    let done = AtomicBool::new(false);
    let adding = async {
        let mut n = 45;
        while !done.load(Ordering::Relaxed) && n < 500 {
            office.register(n as usize % 3, &team.key, &id(n), None).await;
            n += 1;
        }
        n
    };
    let reading = async {
        for limit in [1, 7, 44] {
            let all = walk(office, &team, limit).await;
            let all: BTreeSet<String> = all.into_iter().collect();
            assert!(all.is_superset(&before), "{:?}", before.difference(&all));
        }
        done.store(true, Ordering::Relaxed);
    };
    let (added, ()) = tokio::join!(adding, reading);
    let expected: BTreeSet<String> = (0..added).map(id).collect();
    let all = walk(office, &team, 50).await;
    assert_eq!(all, expected.iter().cloned().collect::<Vec<_>>());
    // After a full last page there is no further page.
    let page = office
        .page(0, &team.key, &format!("after={}&limit=2", all[all.len() - 3]))
        .await;
    assert_eq!((page.agents.len(), page.next), (2, None));
    let page = office.page(0, &team.key, "after=zzz&consistency=local").await;
    assert_eq!((page.agents.len(), page.next), (0, None));
}

/// All ids, with each page from the next node.
async fn walk(office: &Office, team: &Team, limit: usize) -> Vec<String> {
    let mut all = Vec::new();
    let mut query = format!("limit={limit}");
    for node in (0..3).cycle() {
        let page = office.page(node, &team.key, &query).await;
        assert!(page.agents.len() <= limit);
        all.extend(page.agents.into_iter().map(|agent| agent.id));
        assert!(all.windows(2).all(|pair| pair[0] < pair[1]), "{all:?}");
        match page.next {
            Some(next) => query = format!("limit={limit}&after={next}"),
            None => break,
        }
    }
    all
}

async fn strict_recipients_are_the_registered_ones(office: &Office) {
    let team = office.new_team("strict").await;
    assert_eq!(office.mail_status(0, &team, "old").await, 200);
    let strict = Call::patch(
        format!("/admin/v1/teams/{}", team.id),
        &json!({ "strict_recipients": true }),
    );
    strict.bearer(&office.admin).to(&office.urls[1]).await.ok();
    for node in 0..3 {
        let agent = format!("agent-{node}");
        for writer in 0..3 {
            assert_eq!(office.mail_status(writer, &team, &agent).await, 404);
        }
        office.register(node, &team.key, &agent, None).await;
        for writer in 0..3 {
            assert_eq!(
                office.mail_status(writer, &team, &agent).await,
                200,
                "{agent} by node {writer}"
            );
        }
    }
    team.bound(&office.urls[2], &office.admin, "bound").await;
    assert_eq!(office.mail_status(0, &team, "bound").await, 200);
    // Listing an agent does not register it.
    assert_eq!(office.page(1, &team.key, "").await.agents.len(), 5);
    assert_eq!(office.mail_status(1, &team, "old").await, 404);
}

async fn keys_register_only_agents_that_they_may_act_as(office: &Office) {
    let team = office.new_team("rights").await;
    let (_, reader) = office.key(&team, json!({ "name": "r", "permissions": ["read"] })).await;
    let alpha = office.bound(&team, "alpha").await;
    let post = |id: &str| Call::post(AGENTS, &json!({ "id": id }));
    for url in &office.urls {
        Call::get(AGENTS).bearer(&reader.key).to(url).await.ok();
        Call::get(AGENTS).bearer(&alpha.key).to(url).await.ok();
        for (holder, id) in [
            (&reader, "beta"),
            (&alpha, "beta"),
            (&team, "system"),
            (&alpha, "system"),
        ] {
            post(id).bearer(&holder.key).to(url).await.error(403);
        }
        post("alpha").bearer(&alpha.key).to(url).await.ok();
        let foreign = Call::post(format!("{AGENTS}?team_id=team_x"), &json!({ "id": "beta" }));
        foreign.bearer(&team.key).to(url).await.error(403);
        for call in [Call::get(AGENTS), post("beta"), Call::get(format!("{AGENTS}?limit=0"))] {
            call.clone().to(url).await.error(401);
            call.bearer("kite_00000000_00000000000000000000000000000000")
                .to(url)
                .await
                .error(401);
        }
    }
    assert_eq!(office.present(0, &team, "").await, [("alpha".to_owned(), 0)]);
}

fn bad_reads() -> Vec<(Call, u16)> {
    let queries = [
        "after=",
        "after=a%20b",
        "after=..",
        "after=%ff",
        "after=a&after=a",
        "limit=",
        "limit=0",
        "limit=201",
        "limit=-1",
        "limit=all",
        "limit=1&limit=2",
        "consistency=none",
        "team_id=a&team_id=b",
    ];
    let list = |query: &str| (Call::get(format!("{AGENTS}?{query}")), 400);
    let mut cases = queries.map(list).to_vec();
    cases.push(list(&format!("after={}", "x".repeat(129))));
    cases
}

fn bad_registrations() -> Vec<(Call, u16)> {
    let raw = |body: &str| (Call::new(Method::POST, AGENTS).raw(body.to_owned()), 400);
    let post = |body: Value| (Call::post(AGENTS, &body), 400);
    let twice = r#"{"id":"gamma","id":"beta"}"#;
    let half = r#"{"id":"gamma","name":"\ud800"}"#;
    let mut cases = ["", "{", "[]", "null", "7", "not json", "{} x", "{}", twice, half]
        .map(raw)
        .to_vec();
    let ids = [
        json!(""),
        json!(7),
        json!(["a"]),
        json!("a b"),
        json!("ä"),
        json!(".."),
        json!("x".repeat(129)),
    ];
    cases.extend(ids.map(|id| post(json!({ "id": id }))));
    let names = [
        json!(""),
        json!(7),
        json!({}),
        json!("a\nb"),
        json!("\u{1b}[2J"),
        json!("ä".repeat(129)),
    ];
    cases.extend(names.map(|name| post(json!({ "id": "gamma", "name": name }))));
    let no_text = Call::new(Method::POST, AGENTS).raw(&b"{\"id\":\"\xff\"}"[..]);
    let large = Call::post(AGENTS, &json!({ "id": "gamma", "x": "y".repeat(64 * 1024) }));
    cases.extend([
        (no_text, 400),
        (large, 413),
        (Call::delete(AGENTS), 405),
        (Call::new(Method::PUT, "/v1/agents"), 405),
        (Call::get(format!("{AGENTS}/gamma")), 404),
    ]);
    cases
}

async fn bad_input_has_its_answer_and_registers_nobody(office: &Office) {
    let team = office.new_team("bad").await;
    for (call, status) in [bad_reads(), bad_registrations()].concat() {
        for url in &office.urls {
            let answer = call.clone().bearer(&team.key).to(url).await;
            assert_eq!(answer.status, status, "{call}: {}", answer.body);
            assert_eq!(status == 405, answer.headers.contains_key("allow"), "{call}");
            // Errors of the Kite API have one sentence and no other field.
            let keys: Vec<&String> = answer.body.as_object().unwrap().keys().collect();
            assert!(keys == ["error"] || status == 404, "{call}: {}", answer.body);
        }
    }
    assert_eq!(office.present(1, &team, "").await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_does_not_answer_is_named_and_the_rest_is_counted() {
    let office = office().await;
    let team = office.new_team("gone").await;
    for agent in ["alpha", "beta"] {
        office.register(0, &team.key, agent, None).await;
    }
    let mut sockets = Vec::new();
    for node in 0..3 {
        sockets.push(office.listen(node, &team, &["agent_to:alpha"], None).await.0);
    }
    office.all_tell(&team, "", &[("alpha", 3), ("beta", 0)], &[]).await;

    office.cluster.kill(2).await;
    office.all_tell(&team, "", &[("alpha", 2), ("beta", 0)], &[3]).await;
    // A listener that never answers has the address of the node.
    let mute = eventually("the port of the node that died", async || {
        TcpListener::bind(office.cluster.peer_addr(2)).await.ok()
    })
    .await;
    office.all_tell(&team, "", &[("alpha", 2), ("beta", 0)], &[3]).await;
    drop(mute);

    // The restarted node has no sessions.
    office.cluster.restart(2).await;
    office.all_tell(&team, "", &[("alpha", 2), ("beta", 0)], &[]).await;
    let (_back, _) = office.listen(2, &team, &["agent_to:beta"], None).await;
    office.all_tell(&team, "", &[("alpha", 2), ("beta", 1)], &[]).await;

    // Without a quorum a node still counts its own sessions, until it closes them.
    office.cluster.kill(2).await;
    office.cluster.kill(1).await;
    let call = Call::get(AGENTS).bearer(&team.key);
    call.to(&office.urls[0]).await.error(503);
    let register = Call::post(AGENTS, &json!({ "id": "gamma" })).bearer(&team.key);
    assert!([503, 504].contains(&register.to(&office.urls[0]).await.status));
    office
        .all_tell(&team, "consistency=local", &[("alpha", 0), ("beta", 0)], &[2, 3])
        .await;
}
