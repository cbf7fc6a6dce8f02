//! Reads run on a pool of their own, of which a team has at most half: they delay neither Raft nor other teams.

use std::time::Duration;

use agentpost_node::shard::read_pool::{Share, TEAM_WAITING_MAX};
use agentpost_proto::limits::{BATCH_ITEMS_MAX, PAGE_EXAMINED_MAX};
use agentpost_testkit::socket::refused;
use serde_json::json;

use crate::common::office::Office;
use crate::common::reads::{Held, SHARE};
use crate::common::upload::{metric, until};
use crate::common::web::{Call, Team, list as list_of, mail};
use crate::common::{TestCluster, TestTeam};

/// More reads than the pool has places.
const MANY: usize = 24;

async fn list(url: &str, team: &TestTeam) -> usize {
    let listed = Call::get("/v1/messages").key(&team.key).agent("b").to(url).await.ok();
    listed["messages"].as_array().unwrap().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_full_of_reads_delays_neither_raft_nor_writes() {
    let cluster = TestCluster::start(3).await;
    let team = cluster.team("readers").await;
    let leader = cluster.leader().await;
    let node = cluster.services(leader);
    let term = node.cluster.this_node.status().term;
    let held = [
        Held::by(&node, Share::Team(team.id), MANY),
        Held::by(&node, Share::Node, MANY),
    ];
    assert_eq!(held[0].running(4).await, 4, "half of the places");
    assert_eq!(held[1].running(4).await, 4, "the other half");
    let reading = tokio::spawn({
        let (url, team) = (cluster.url(leader), team.clone());
        async move { list(&url, &team).await }
    });
    for n in 0..20 {
        let sent = Call::post("/v1/messages", &mail("b", &json!({ "n": n })));
        sent.key(&team.key).agent("a").to(&cluster.url(leader)).await.ok();
    }
    for _ in 0..20 {
        assert!(node.fresh_state().await.is_some(), "heartbeats are answered");
    }
    let status = node.cluster.this_node.status();
    assert_eq!((status.role.as_str(), status.term), ("leader", term));
    assert!(!reading.is_finished(), "a list waits for its turn");
    for held in held {
        assert_eq!(held.let_go().await, MANY);
    }
    assert_eq!(reading.await.unwrap(), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_team_that_reads_much_leaves_half_of_the_pool_to_others() {
    let cluster = TestCluster::start(1).await;
    let (greedy, other) = (cluster.team("greedy").await, cluster.team("other").await);
    let held = Held::by(&cluster.services(0), Share::Team(greedy.id), MANY);
    assert_eq!(held.running(4).await, 4);
    assert_eq!(list(&cluster.url(0), &other).await, 0, "answered while the others wait");
    assert_eq!(held.running(0).await, 0, "no more of them began");
    assert_eq!(held.let_go().await, MANY);
}

impl Office {
    /// Creates a key that may read; returns its id, and the team with that key.
    async fn reading_key(&self, team: &Team) -> (String, Team) {
        self.key(team, json!({ "name": "reader", "permissions": ["read"] }))
            .await
    }

    /// Revokes a key and sends a message afterwards. Both are acknowledged.
    async fn revoke_and_send(&self, team: &Team, id: &str) {
        let revoke = Call::delete(format!("/admin/v1/keys/{id}")).bearer(&self.admin);
        revoke.to(&self.urls[0]).await.ok();
        self.send(0, team, "b", "after").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_waited_shows_nothing_to_a_key_that_was_revoked_meanwhile() {
    let office = Office::start(1, "").await;
    let team = office.new_team("readers").await;
    let node = office.cluster.services(0);
    for path in ["/v1/messages", "/v1/messages?wait=1", "/v1/messages?consistency=local"] {
        let (id, doomed) = office.reading_key(&team).await;
        let held = Held::share_of(&node, &team).await;
        let call = Call::get(path).key(&doomed.key).agent("b");
        let url = office.urls[0].clone();
        let listing = tokio::spawn(async move { call.to(&url).await });
        until(&node, "reads_waiting", 1).await;
        office.revoke_and_send(&team, &id).await;
        held.let_go().await;
        listing.await.unwrap().error(401);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_waited_sends_nothing_that_was_stored_after_its_key_was_revoked() {
    let office = Office::start(1, "").await;
    let team = office.new_team("readers").await;
    let node = office.cluster.services(0);
    let (id, doomed) = office.reading_key(&team).await;
    let (mut socket, _) = office.listen(0, &doomed, &["*"], None).await;
    let held = Held::share_of(&node, &team).await;
    office.send(0, &team, "b", "before").await;
    until(&node, "reads_waiting", 1).await;
    office.revoke_and_send(&team, &id).await;
    held.let_go().await;
    assert_eq!(socket.ending().await, refused(4001));
    let told = socket.log.iter().any(|frame| frame.contains("after"));
    assert!(!told, "{:?}", socket.log);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_answers_its_client_while_its_read_waits() {
    let office = Office::start(1, "").await;
    let team = office.new_team("readers").await;
    let node = office.cluster.services(0);
    let (mut socket, _) = office.listen(0, &team, &["*"], None).await;
    let held = Held::share_of(&node, &team).await;
    office.send(0, &team, "b", "late").await;
    until(&node, "reads_waiting", 1).await;
    socket.ping().await;
    assert_eq!(metric(&node, "reads_waiting"), 1, "its read still waits");
    held.let_go().await;
    assert_eq!(socket.event().await.1, "late");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_read_is_refused_stays_open_and_reads_later() {
    let office = Office::start(1, "").await;
    let team = office.new_team("readers").await;
    let node = office.cluster.services(0);
    let (mut socket, _) = office.listen(0, &team, &["*"], None).await;
    let waiting = TEAM_WAITING_MAX;
    let held = Held::by(&node, Share::Team(team.id.parse().unwrap()), SHARE + waiting);
    until(&node, "reads_waiting", waiting as u64).await;
    office.send(0, &team, "b", "late").await;
    until(&node, "reads_refused_total", 2).await;
    socket.ping().await;
    held.let_go().await;
    assert_eq!(socket.event().await.1, "late");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_is_stored_is_answered_200_though_its_message_cannot_be_read() {
    let office = Office::start(1, "").await;
    let team = office.new_team("writers").await;
    let node = office.cluster.services(0);
    let url = &office.urls[0];
    let send = Call::post("/v1/messages", &mail("b", &json!("x")))
        .key(&team.key)
        .agent("a");
    let send = send.once("once");
    let first = send.to(url).await.ok();
    let waiting = TEAM_WAITING_MAX;
    let held = Held::by(&node, Share::Team(team.id.parse().unwrap()), SHARE + waiting);
    until(&node, "reads_waiting", waiting as u64).await;
    let id = first["messageId"].as_str().unwrap();
    let mark = Call::patch(format!("/v1/messages/{id}"), &json!({ "read": true }));
    let marked = mark.key(&team.key).agent("b").to(url).await.ok();
    assert_eq!((&marked["success"], &marked["data"]), (&json!(true), &json!(null)));
    let repeated = send.to(url).await.ok();
    assert_eq!(repeated["messageId"], first["messageId"]);
    assert_eq!(repeated["data"]["body"], json!({ "text": "x" }));
    let refused = metric(&node, "reads_refused_total");
    assert!(refused >= 2, "{refused}");
    held.let_go().await;
    let listed = list_of(url, &team, "b", "status=read").await;
    assert_eq!(listed["messages"].as_array().unwrap().len(), 1);
}

/// Entries that one read examines at most, and one more.
const TWO_TURNS: usize = PAGE_EXAMINED_MAX + 1;

/// Fills the inbox of `b` with messages that a filter for `to_be_found` leaves out, then with one that it finds.
async fn fill(office: &Office, team: &Team) {
    let batch = |count: usize, from: &str| {
        let messages: Vec<_> = (0..count).map(|_| mail("b", &json!("x"))).collect();
        Call::post("/v1/messages/batch", &json!({ "messages": messages }))
            .key(&team.key)
            .agent(from)
    };
    for begin in (0..TWO_TURNS).step_by(BATCH_ITEMS_MAX) {
        let call = batch(BATCH_ITEMS_MAX.min(TWO_TURNS - begin), "noise");
        call.to(&office.urls[0]).await.ok();
    }
    batch(1, "to_be_found").to(&office.urls[0]).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_poll_answers_at_its_deadline_though_there_is_more_to_examine() {
    let office = Office::start(1, "").await;
    let team = office.new_team("poll").await;
    let node = office.cluster.services(0);
    fill(&office, &team).await;
    let held = Held::share_of(&node, &team).await;
    let path = "/v1/messages?fromAgentId=to_be_found&wait=1";
    let call = Call::get(path).key(&team.key).agent("b");
    let url = office.urls[0].clone();
    let polling = tokio::spawn(async move { call.to(&url).await });
    until(&node, "reads_waiting", 1).await;
    // Its deadline passes before its first turn.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    held.let_go().await;
    let page = polling.await.unwrap().ok();
    assert_eq!(page["messages"], json!([]));
    let cursor = page["cursor"].as_str().unwrap();
    let rest = list_of(
        &office.urls[0],
        &team,
        "b",
        &format!("fromAgentId=to_be_found&cursor={cursor}"),
    )
    .await;
    assert_eq!(rest["messages"].as_array().unwrap().len(), 1, "the cursor goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_waits_for_no_further_turn_of_a_list() {
    let office = Office::start(1, "").await;
    let team = office.new_team("pages").await;
    let node = office.cluster.services(0);
    fill(&office, &team).await;
    let held = Held::share_of(&node, &team).await;
    let list = |query: &str| {
        let call = Call::get(format!("/v1/messages?fromAgentId=to_be_found&{query}"));
        let (call, url) = (call.key(&team.key).agent("b"), office.urls[0].clone());
        tokio::spawn(async move { call.to(&url).await })
    };
    let (at_offset, polling) = (list("offset=1"), list("wait=60"));
    until(&node, "reads_waiting", 2).await;
    node.lifetime.shutdown.cancel();
    held.let_go().await;
    at_offset.await.unwrap().error(503);
    assert_eq!(polling.await.unwrap().ok()["messages"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_waits_for_no_read() {
    let office = Office::start(1, "").await;
    let team = office.new_team("writers").await;
    let node = office.cluster.services(0);
    let held = Held::share_of(&node, &team).await;
    let before = metric(&node, "previews_skipped_total");
    let call = Call::post("/v1/messages/subscribe", &json!({ "topic": "news" }));
    call.key(&team.key).agent("b").to(&office.urls[0]).await.ok();
    assert_eq!(metric(&node, "previews_skipped_total"), before + 1);
    assert_eq!(held.let_go().await, SHARE, "they were held all the time");
}
