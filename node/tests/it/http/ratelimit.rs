//! Quotas: they are exact when clients of three nodes race for the last units, they follow UTC days and months of
//! replicated time, and every answer shows them.

use std::collections::BTreeSet;

use agentpost_proto::id::TeamId;
use agentpost_proto::record::Lease;
use agentpost_proto::time;
use agentpost_raft_store::core::keys::{self, Queue};
use agentpost_raft_store::core::kv::{Kv as _, Order};
use agentpost_raft_store::core::query;
use agentpost_raft_store::core::view::decode;
use axum::http::Method;
use futures::future::join_all;
use serde_json::{Value, json};

use crate::common::office::{Office, office};
use crate::common::web::{Answer, Call, Team, mail, new_key};
use crate::common::{TestCluster, eventually, read_state};

const UNLIMITED: u64 = 2_147_483_647;

/// The limit and the remaining units that an answer shows.
#[track_caller]
fn shown(answer: &Answer) -> (u64, u64) {
    let number = |name: &str| -> u64 {
        let value = answer
            .headers
            .get(name)
            .unwrap_or_else(|| panic!("no {name}: {}", answer.body));
        value.to_str().unwrap().parse().unwrap()
    };
    let reset = number("x-ratelimit-reset");
    assert_eq!(reset % 86_400, 0, "a UTC midnight");
    (number("x-ratelimit-limit"), number("x-ratelimit-remaining"))
}

/// The `Retry-After` of a 429 in seconds.
#[track_caller]
fn refused(answer: &Answer) -> u64 {
    assert_eq!(answer.status, 429, "{}", answer.body);
    answer.headers["retry-after"].to_str().unwrap().parse().unwrap()
}

fn post(team: &Team, agent: &str) -> Call {
    Call::post("/v1/messages", &mail("receiver", &json!({})))
        .key(&team.key)
        .agent(agent)
}

fn get(team: &Team, agent: &str) -> Call {
    Call::get("/v1/messages").key(&team.key).agent(agent)
}

fn webhook(team: &Team, agent: &str) -> Call {
    let wanted = json!({ "url": "https://example.com/hook", "events": ["message.received"] });
    Call::post("/v1/messages/webhook", &wanted).key(&team.key).agent(agent)
}

async fn patch_limits(url: &str, admin: &str, team: &Team, limits: &Value) {
    let path = format!("/admin/v1/teams/{}", team.id);
    Call::patch(path, &json!({ "limits": limits }))
        .bearer(admin)
        .to(url)
        .await
        .ok();
}

/// Sets the clocks of all nodes to one time and waits until the nodes have compared them.
async fn set_clocks(cluster: &TestCluster, unix_ms: u64) {
    for node in cluster.running() {
        let clock = cluster.services(node).clock;
        clock.shift(unix_ms as i64 - clock.wall_ms() as i64);
    }
    let is_there = |node: &usize| cluster.services(*node).services.wall_time.now_ms().abs_diff(unix_ms) < 600_000;
    eventually("nodes that agree on the time", async || {
        cluster.running().iter().all(is_there).then_some(())
    })
    .await;
}

/// The counted reads of an agent on its newest day, and the number of leases of all agents.
async fn counted(cluster: &TestCluster, node: usize, team: &Team, agent: &str) -> (u64, usize) {
    let id: TeamId = team.id.parse().unwrap();
    let state = read_state(&cluster.services(node)).await;
    let count = query::team::day_count(&*state, &keys::read_count(id, agent)).unwrap();
    let rows = state.range(keys::queue_from(Queue::Leases, None), Order::Ascending);
    let leases = rows.map(|row| decode::<Lease>(row.unwrap().1).unwrap());
    (count.used, leases.filter(|lease| lease.units > 0).count())
}

/// One node and a team with small quotas.
struct Desk {
    url: String,
    admin: String,
    team: Team,
}

impl Desk {
    #[track_caller]
    fn matches(call: &Call, answer: &Answer, status: u16, quota: (u64, u64)) {
        assert_eq!(
            (answer.status, shown(answer)),
            (status, quota),
            "{call}: {}",
            answer.body
        );
    }

    async fn check(&self, status: u16, quota: (u64, u64), call: Call) -> Answer {
        let answer = call.clone().to(&self.url).await;
        Self::matches(&call, &answer, status, quota);
        answer
    }

    async fn check_refused(&self, limit: u64, call: Call) {
        let wait = refused(&self.check(429, (limit, 0), call).await);
        assert!((1..=86_400).contains(&wait));
    }

    /// Calls as agent a.
    fn call(&self, method: Method, path: &str) -> Call {
        Call::new(method, path).key(&self.team.key).agent("a")
    }

    /// An unauthenticated caller sees the default limit with 0 remaining; a caller without an agent sees the full limit.
    async fn nobody(&self) {
        let (empty, some) = (json!({}), mail("b", &json!({})));
        self.check(401, (1_000, 0), Call::post("/v1/messages", &some)).await;
        self.check(401, (1_000, 0), Call::post("/v1/messages/batch", &empty).key("aba_x"))
            .await;
        self.check(401, (10_000, 0), Call::get("/api/v1/messages").key("aba_x"))
            .await;
        self.check(401, (10_000, 0), Call::get("/api/v1/messages/msg_1")).await;
        self.check(401, (100, 0), Call::post("/api/v1/messages/webhook", &empty))
            .await;
        self.check(404, (10_000, 0), Call::get("/v1/nowhere")).await;
        self.check(405, (10_000, 0), Call::delete("/v1/messages").key("aba_x"))
            .await;
        let key = &self.team.key;
        self.check(403, (5, 5), Call::post("/v1/messages", &some).key(key))
            .await;
        self.check(403, (7, 7), Call::get("/v1/messages").key(key)).await;
        self.check(405, (7, 7), Call::get("/v1/messages/batch").key(key)).await;
    }

    async fn every_status(&self) {
        let team = &self.team;
        self.check(200, (5, 4), post(team, "a")).await;
        self.check(200, (7, 6), get(team, "a")).await;
        self.check(200, (7, 5), get(team, "a")).await;
        // Another agent has its own quota.
        self.check(200, (5, 4), post(team, "b")).await;
        let reader = json!({ "name": "reader", "permissions": ["read"], "agent_id": "a" });
        let (_, reader) = new_key(&self.url, &self.admin, &team.id, &reader).await;
        let forbidden = Call::post("/v1/messages", &mail("b", &json!({}))).key(&reader);
        self.check(403, (5, 4), forbidden).await;
        self.check(400, (5, 4), self.call(Method::POST, "/v1/messages").raw("{"))
            .await;
        let large = self.call(Method::POST, "/v1/messages").raw(vec![b' '; 600 * 1024]);
        self.check(413, (5, 4), large).await;
        self.check(400, (7, 5), self.call(Method::GET, "/v1/messages?limit=0"))
            .await;
        self.check(404, (7, 5), self.call(Method::GET, "/v1/messages/msg_1"))
            .await;
        self.check(404, (7, 5), self.call(Method::PATCH, "/v1/messages/msg_1"))
            .await;
        self.check(200, (7, 5), self.call(Method::GET, "/v1/deliveries")).await;
        self.check(404, (7, 5), self.call(Method::GET, "/api/v1/nowhere")).await;
        self.check(405, (7, 5), self.call(Method::DELETE, "/api/v1/messages"))
            .await;
        self.check(405, (7, 5), self.call(Method::PUT, "/v1/messages/batch"))
            .await;
    }

    async fn to_the_last_send_and_read(&self) {
        let team = &self.team;
        // A batch shows the quota after its last send. A repeat under an idempotency key is not counted.
        let items = json!({ "messages": [mail("b", &json!({})), {}, mail("b", &json!({ "n": 2 }))] });
        let batch = self.call(Method::POST, "/v1/messages/batch").json(&items);
        self.check(200, (5, 2), batch).await;
        self.check(200, (5, 1), post(team, "a").once("k")).await;
        self.check(200, (5, 1), post(team, "a").once("k")).await;
        let other = self.call(Method::POST, "/v1/messages").json(&mail("c", &json!({})));
        self.check(422, (5, 1), other.once("k")).await;
        self.check(200, (5, 0), post(team, "a")).await;
        self.check_refused(5, post(team, "a")).await;
        for left in (0..5).rev() {
            self.check(200, (7, left), get(team, "a")).await;
        }
        self.check_refused(7, get(team, "a")).await;
        // Only lists count as reads.
        self.check(404, (7, 0), self.call(Method::GET, "/v1/messages/msg_1"))
            .await;
    }

    async fn to_the_last_registration(&self) {
        let subscribe = |body: &Value| self.call(Method::POST, "/v1/messages/subscribe").json(body);
        self.check(200, (3, 2), webhook(&self.team, "a")).await;
        self.check(200, (3, 2), self.call(Method::GET, "/v1/messages/webhook"))
            .await;
        self.check(200, (3, 2), subscribe(&json!({ "topic": "t" }))).await;
        let with_url = json!({ "topic": "t", "webhookUrl": "https://example.com/t" });
        self.check(200, (3, 1), subscribe(&with_url)).await;
        self.check(400, (3, 1), subscribe(&json!({}))).await;
        self.check(200, (3, 0), webhook(&self.team, "a")).await;
        self.check_refused(3, webhook(&self.team, "a")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_of_the_face_shows_its_quota() {
    let office = Office::start(1, "").await;
    let url = office.urls[0].as_str();
    let admin = office.admin.clone();
    let limits = json!({ "daily_sends": 5, "daily_reads": 7, "daily_webhook_registrations": 3, "monthly_events": 0 });
    let team = Team::with_limits(url, &admin, "shown", &limits).await;
    let url = url.to_owned();
    let desk = Desk { url, admin, team };
    desk.nobody().await;
    desk.every_status().await;
    desk.to_the_last_send_and_read().await;
    desk.to_the_last_registration().await;

    let limits = json!({ "daily_sends": 0, "daily_reads": 0, "daily_webhook_registrations": 0 });
    let free = Team::with_limits(&desk.url, &desk.admin, "free", &limits).await;
    for call in [post(&free, "a"), get(&free, "a"), webhook(&free, "a")] {
        desk.check(200, (UNLIMITED, UNLIMITED), call).await;
    }
    for elsewhere in [
        Call::get("/health"),
        Call::get("/admin/v1/teams").bearer(&desk.admin),
        Call::post("/api/v1/agents/messages", &json!({})).bearer(&desk.team.key),
    ] {
        let answer = elsewhere.clone().to(&desk.url).await;
        assert!(!answer.headers.contains_key("x-ratelimit-limit"), "{elsewhere}");
    }
}

/// Sends `calls` calls to all nodes at once and repeats each one that failed without effect because there was no leader.
/// Returns the answers in any order.
async fn race(cluster: &TestCluster, calls: usize, call: impl Fn() -> Call) -> Vec<Answer> {
    let urls = cluster.urls();
    join_all((0..calls).map(|n| {
        let (call, url) = (call(), urls[n % urls.len()].clone());
        async move {
            eventually("an answer", async || {
                let answer = call.clone().to(&url).await;
                (answer.status != 503).then_some(answer)
            })
            .await
        }
    }))
    .await
}

/// Asserts that exactly `limit` calls succeeded and that each shows a different remaining number.
#[track_caller]
fn exact(answers: &[Answer], limit: u64) {
    let (taken, refusals): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 200);
    if answers.iter().any(|answer| answer.status == 504) {
        // During an election a call may or may not have been counted.
        return assert!(taken.len() as u64 <= limit);
    }
    assert_eq!(taken.len() as u64, limit);
    let places: BTreeSet<_> = taken.iter().map(|answer| shown(answer)).collect();
    assert_eq!(places, (0..limit).map(|left| (limit, left)).collect());
    for answer in refusals {
        refused(answer);
        assert_eq!(shown(answer), (limit, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_race_over_three_nodes_get_exactly_the_limit() {
    let office = office().await;
    let url = office.urls[0].as_str();
    let limits = json!({ "daily_sends": 40, "daily_reads": 60, "daily_webhook_registrations": 10 });
    let team = Team::with_limits(url, &office.admin, "race", &limits).await;

    exact(&race(&office.cluster, 90, || post(&team, "a")).await, 40);
    exact(&race(&office.cluster, 30, || webhook(&team, "a")).await, 10);

    // Reads never exceed the limit. Units that one node leased and did not spend are available to others later.
    let answers = race(&office.cluster, 90, || get(&team, "a")).await;
    let mut taken = answers.iter().filter(|answer| answer.status == 200).count();
    assert!(taken <= 60, "{taken} reads");
    assert!(answers.iter().all(|answer| matches!(answer.status, 200 | 429)));
    eventually("the rest of the day's reads on one node", async || {
        taken += usize::from(get(&team, "a").to(&office.cluster.url(1)).await.status == 200);
        (taken >= 60).then_some(())
    })
    .await;
    eventually("all leases returned", async || {
        (counted(&office.cluster, 0, &team, "a").await == (60, 0)).then_some(())
    })
    .await;
    for answer in race(&office.cluster, 6, || get(&team, "a")).await {
        refused(&answer);
    }
    assert_eq!(taken, 60);

    // A single node can use all units.
    let follower = office.cluster.url(office.cluster.follower().await);
    for left in (0..60).rev() {
        let answer = get(&team, "b").to(&follower).await;
        assert_eq!((answer.status, shown(&answer).0), (200, 60), "{left} left");
    }
    refused(&get(&team, "b").to(&follower).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn midnight_reopens_days_and_months_for_all_nodes_at_once() {
    let office = office().await;
    let last_noon = time::parse_rfc3339("2031-01-31T12:00:00Z").unwrap();
    set_clocks(&office.cluster, last_noon).await;
    let limits = json!({ "daily_sends": 2, "daily_reads": 3, "monthly_events": 3 });
    let team = Team::with_limits(&office.urls[0], &office.admin, "days", &limits).await;
    let kite = || {
        let body = json!({ "from": "k", "to": "receiver", "body": "x" });
        Call::post("/api/v1/agents/messages", &body).bearer(&team.key)
    };
    let use_up = async || {
        for url in &office.urls {
            assert_eq!(get(&team, "a").to(url).await.status, 200);
        }
        for url in &office.urls[..2] {
            assert_eq!(post(&team, "a").to(url).await.status, 200);
        }
        kite().to(&office.urls[2]).await.ok()
    };
    // Sends must wait for the next month, because the team's monthly events are used up too.
    let all_refused = async |until_month: u64| {
        for url in &office.urls {
            for (call, until) in [
                (get(&team, "a"), 43_200),
                (post(&team, "a"), until_month),
                (kite(), until_month),
            ] {
                let wait = refused(&call.to(url).await);
                assert!(wait <= until && wait + 600 > until, "{wait}");
            }
        }
    };
    assert_eq!(use_up().await["usage"]["events_used"], 3);
    all_refused(43_200).await;
    let over = kite().to(&office.urls[0]).await;
    let keys: Vec<_> = over.body.as_object().unwrap().keys().cloned().collect();
    assert_eq!(keys, ["error", "retry_after_secs"]);
    assert_eq!(over.body["retry_after_secs"], refused(&over));

    // Clocks that go back do not restore a quota.
    set_clocks(&office.cluster, last_noon - 2 * 86_400_000).await;
    for url in &office.urls {
        for call in [get(&team, "a"), post(&team, "a"), kite()] {
            refused(&call.to(url).await);
        }
    }
    // The next day is in the next month.
    set_clocks(&office.cluster, last_noon + 86_400_000).await;
    let answer = Call::get("/v1/messages/x")
        .key(&team.key)
        .agent("a")
        .to(&office.urls[1])
        .await;
    let midnight = (last_noon / 86_400_000 + 2) * 86_400;
    assert_eq!(answer.headers["x-ratelimit-reset"], midnight.to_string());
    assert_eq!(shown(&answer), (3, 3));
    assert_eq!(use_up().await["usage"]["events_used"], 3);
    all_refused(27 * 86_400 + 43_200).await;

    // One clock that is a day off neither begins a day nor ends one, on its own node or on others.
    let odd = office.cluster.follower().await;
    let reads_left = async |url: &str| {
        let answer = get(&team, "b").to(url).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        shown(&answer).1
    };
    let sees = async |is_off: fn(u64) -> bool| {
        let name = format!("agentpost_clock_divergence_seconds{{node=\"{}\"}} ", odd + 1);
        eventually("a divergence in the metrics", async || {
            let text = office.cluster.services(odd).metrics_text();
            let off = text.lines().find_map(|line| line.strip_prefix(&name)).unwrap();
            is_off(off.parse::<f64>().unwrap().abs() as u64).then_some(())
        })
        .await;
    };
    office.cluster.services(odd).clock.shift(-86_400_000);
    sees(|off_s| off_s > 80_000).await;
    assert_eq!(reads_left(&office.urls[odd]).await, 2);
    office.cluster.services(odd).clock.shift(3 * 86_400_000);
    sees(|off_s| off_s > 2 * 80_000).await;
    assert_eq!(reads_left(&office.urls[odd]).await, 1);
    assert_eq!(reads_left(&office.urls[odd]).await, 0);
    for url in &office.urls {
        refused(&get(&team, "b").to(url).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_limit_counts_at_once_on_every_node() {
    let office = office().await;
    let limits = json!({ "daily_sends": 100, "daily_reads": 1_000, "daily_webhook_registrations": 100 });
    let team = Team::with_limits(&office.urls[0], &office.admin, "changing", &limits).await;
    for url in &office.urls {
        for call in [get(&team, "a"), post(&team, "a"), webhook(&team, "a")] {
            assert_eq!(call.to(url).await.status, 200);
        }
    }
    // Every node now holds a lease of 64 reads, which it must not spend any more.
    let low = json!({ "daily_sends": 2, "daily_reads": 2, "daily_webhook_registrations": 2 });
    patch_limits(&office.urls[1], &office.admin, &team, &low).await;
    for url in &office.urls {
        for call in [get(&team, "a"), post(&team, "a"), webhook(&team, "a")] {
            let answer = call.to(url).await;
            refused(&answer);
            assert_eq!(shown(&answer), (2, 0));
        }
        let answer = Call::get("/v1/messages/x").key(&team.key).agent("a").to(url).await;
        assert_eq!(answer.status, 404);
        assert_eq!(shown(&answer), (2, 0));
    }
    let high = json!({ "daily_sends": 4, "daily_reads": 400, "daily_webhook_registrations": 4 });
    patch_limits(&office.urls[2], &office.admin, &team, &high).await;
    for call in [get(&team, "a"), post(&team, "a"), webhook(&team, "a")] {
        assert_eq!(call.to(&office.urls[0]).await.status, 200);
    }
    patch_limits(
        &office.urls[2],
        &office.admin,
        &team,
        &json!({ "daily_sends": 0, "daily_reads": 0 }),
    )
    .await;
    for url in &office.urls {
        for call in [get(&team, "a"), post(&team, "a")] {
            assert_eq!(shown(&call.to(url).await), (UNLIMITED, UNLIMITED));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unspent_leased_reads_are_returned() {
    let office = office().await;
    let team = Team::with_limits(&office.urls[0], &office.admin, "back", &json!({ "daily_reads": 1_200 })).await;
    let follower = office.cluster.follower().await;
    let other = (0..3).find(|node| *node != follower).unwrap();
    assert_eq!(get(&team, "a").to(&office.urls[follower]).await.status, 200);
    // On a busy machine the lease may have been returned already.
    let leased = counted(&office.cluster, other, &team, "a").await;
    assert!(matches!(leased, (64, 1) | (1, 0)), "{leased:?}");
    eventually("an idle lease returned", async || {
        (counted(&office.cluster, other, &team, "a").await == (1, 0)).then_some(())
    })
    .await;
    // A node that stops returns its leases; a node that crashes cannot.
    assert_eq!(get(&team, "a").to(&office.urls[follower]).await.status, 200);
    office.cluster.stop_node(follower).await;
    assert_eq!(counted(&office.cluster, other, &team, "a").await, (2, 0));
    office.cluster.restart(follower).await;
    assert_eq!(get(&team, "a").to(&office.urls[follower]).await.status, 200);
    office.cluster.kill(follower).await;
    let wasted = counted(&office.cluster, other, &team, "a").await;
    assert!(matches!(wasted, (66, 1) | (3, 0)), "{wasted:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_a_lease_in_hand_still_reads_locally() {
    let office = office().await;
    let team = Team::with_limits(
        &office.urls[0],
        &office.admin,
        "alone",
        &json!({ "daily_reads": 1_200 }),
    )
    .await;
    let local = || Call::get("/v1/messages?consistency=local").key(&team.key).agent("a");
    let left = office.cluster.leader().await;
    let others: Vec<usize> = (0..3).filter(|node| *node != left).collect();
    // On a busy machine the lease may end before the other nodes are down.
    let mut held = false;
    for _ in 0..10 {
        eventually("a read that leaves a lease", async || {
            (get(&team, "a").to(&office.urls[left]).await.status == 200).then_some(())
        })
        .await;
        join_all(others.iter().map(|node| office.cluster.kill(*node))).await;
        let answer = local().to(&office.urls[left]).await;
        if answer.status == 200 {
            assert_eq!(shown(&answer).0, 1_200);
            held = true;
            break;
        }
        for node in &others {
            office.cluster.restart_unready(*node).await;
        }
    }
    assert!(held, "no lease outlived the others");
    let over = eventually("the end of the lease", async || {
        let answer = local().to(&office.urls[left]).await;
        (answer.status != 200).then_some(answer)
    })
    .await;
    assert_eq!(over.headers["retry-after"], "1");
    assert_eq!(shown(&over).0, 1_200, "{}", over.body);
    over.error(503);
    // The node knows the caller's key from its own state.
    let linearizable = get(&team, "a").to(&office.urls[left]).await;
    assert_eq!(shown(&linearizable).0, 1_200);
    linearizable.error(503);
}
