//! Deliveries over HTTP: who sees what of them, paging, redriving, cancelling.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;
#[path = "common/sink.rs"]
mod sink;
#[path = "common/web.rs"]
#[allow(dead_code)]
mod web;

use agentpost_proto::api::abbababa::{DeliveriesResponse, DeliveryFailed, DeliveryResponse, RedriveResponse};
use axum::http::Method;
use serde_json::{Value, json};

use common::{TestCluster, eventually};
use sink::{Answer, Sink};
use web::{Call, Team, bodies, mail, new_key};

const SETTINGS: &str = "[webhooks]\nallow_http = true\nallow_networks = [\"127.0.0.0/8\"]\n";

/// A team whose mail is delivered, dead or waiting, one delivery each, all from `alpha`.
struct World {
    cluster: TestCluster,
    urls: Vec<String>,
    sink: Sink,
    admin: String,
    team: Team,
    /// An admin key of the team, bound to nobody.
    team_admin: String,
}

impl World {
    async fn start(nodes: usize) -> World {
        let cluster = TestCluster::start_with(nodes, SETTINGS).await;
        let (urls, admin) = (cluster.urls(), cluster.admin_key());
        let team = Team::create(&urls[0], &admin, "ours").await;
        let wanted = json!({ "name": "a", "permissions": ["admin"] });
        let (_, team_admin) = new_key(&urls[0], &admin, &team.id, &wanted).await;
        let sink = Sink::start().await;
        sink.script("/dead", [non_retryable()]);
        sink.script("/waits", [Answer::status(500).header("retry-after", 3600)]);
        let world = World {
            cluster,
            urls,
            sink,
            admin,
            team,
            team_admin,
        };
        for agent in ["delivered", "dead", "waits"] {
            world.register(agent, &format!("/{agent}")).await;
            world.send(agent).await;
        }
        world
    }

    async fn register(&self, agent: &str, path: &str) -> Value {
        let body = json!({ "url": self.sink.url(path), "events": ["message.received"] });
        let call = Call::post("/v1/messages/webhook", &body);
        call.key(&self.team.key).agent(agent).to(&self.urls[0]).await.ok()["webhook"].clone()
    }

    async fn send(&self, to: &str) -> String {
        let call = Call::post("/v1/messages", &mail(to, &json!({ "to": to })));
        let sent = call.key(&self.team.key).agent("alpha").to(&self.urls[0]).await.ok();
        sent["messageId"].as_str().unwrap().to_owned()
    }

    async fn as_agent(&self, agent: &str, call: Call) -> web::Answer {
        call.key(&self.team.key).agent(agent).to(&self.urls[0]).await
    }

    async fn list(&self, agent: &str, query: &str) -> Vec<Value> {
        let list = self
            .as_agent(agent, Call::get(format!("/v1/deliveries?{query}")))
            .await
            .ok();
        serde_json::from_value::<DeliveriesResponse>(list.clone()).unwrap();
        assert_eq!(list["deliveries"], list["data"]);
        list["deliveries"].as_array().unwrap().clone()
    }

    /// The only delivery to `agent`, as soon as it is `state` after `attempts`.
    async fn settled(&self, agent: &str, state: &str, attempts: u32) -> Value {
        eventually(&format!("a {state} delivery to {agent}"), async || {
            let found = self.list(agent, "").await.pop()?;
            (found["state"] == state && found["attempts"] == attempts).then_some(found)
        })
        .await
    }

    /// Waits until each of the three is where its name says.
    async fn all_settled(&self) -> [Value; 3] {
        [
            self.settled("delivered", "delivered", 1).await,
            self.settled("dead", "dead", 1).await,
            self.settled("waits", "scheduled", 1).await,
        ]
    }
}

fn non_retryable() -> Answer {
    Answer::status(489).header("upstash-nonretryable-error", true)
}

fn path_of(delivery: &Value) -> String {
    format!("/v1/deliveries/{}", delivery["id"].as_str().unwrap())
}

fn redrive(path: &str) -> Call {
    Call::new(Method::POST, format!("{path}/redrive"))
}

#[tokio::test(flavor = "multi_thread")]
async fn receivers_see_all_and_the_sender_sees_states() {
    let world = World::start(3).await;
    let [delivered, dead, waits] = world.all_settled().await;
    for (row, agent, step) in [(&delivered, "delivered", 0), (&dead, "dead", 0), (&waits, "waits", 1)] {
        assert_eq!(
            (&row["toAgentId"], &row["fromAgentId"]),
            (&json!(agent), &json!("alpha"))
        );
        assert_eq!(row["url"], world.sink.url(&format!("/{agent}")));
        assert_eq!((&row["step"], &row["attemptCount"]), (&json!(step), &json!(1)));
        assert_eq!(row["due"].is_string(), agent == "waits");
        assert_eq!(row["endedAt"].is_string(), agent != "waits");
    }
    assert!(waits["dueInMs"].as_u64().unwrap() > 3_000_000);
    assert_eq!(dead["end"], "non_retryable");

    let states: Vec<_> = world
        .list("alpha", "")
        .await
        .iter()
        .map(|row| row["state"].clone())
        .collect();
    assert_eq!(states, ["delivered", "dead", "scheduled"]);
    for row in [&delivered, &dead, &waits] {
        let path = path_of(row);
        let receiver = row["toAgentId"].as_str().unwrap();
        let full = world.as_agent(receiver, Call::get(&path)).await.ok();
        serde_json::from_value::<DeliveryResponse>(full.clone()).unwrap();
        assert_eq!(full["delivery"], full["data"]);
        let attempt = &full["delivery"]["attempts"][0];
        assert_eq!((&attempt["number"], attempt["response"].is_string()), (&json!(1), true));
        assert!(attempt["status"].is_u64() && attempt["startedAt"].is_string() && attempt["tookMs"].is_u64());
        let seen = world.as_agent("alpha", Call::get(&path)).await.ok();
        serde_json::from_value::<DeliveryResponse>(seen.clone()).unwrap();
        let text = seen.to_string();
        for hidden in ["\"url\"", "127.0.0.1", "sink", "\"status\"", "tookMs"] {
            assert!(!text.contains(hidden), "{hidden} in {text}");
        }
        assert_eq!(seen["delivery"]["attempts"][0]["end"], attempt["end"]);
        for url in &world.urls {
            let by_admin = Call::get(&path).key(&world.team_admin).to(url).await.ok();
            assert_eq!(by_admin["delivery"]["url"], row["url"]);
            let other = Call::get(&path).key(&world.team.key).agent("stranger").to(url).await;
            assert_eq!(other.error(404), "no such delivery");
        }
    }
    // An admin key that is bound to an agent is that agent's key.
    let wanted = json!({ "name": "b", "permissions": ["admin"], "agent_id": "stranger" });
    let (_, bound) = new_key(&world.urls[0], &world.admin, &world.team.id, &wanted).await;
    let nothing = Call::get("/v1/deliveries").key(&bound).to(&world.urls[0]).await.ok();
    assert_eq!(nothing["deliveries"], json!([]));
    Call::get(path_of(&dead))
        .key(&bound)
        .to(&world.urls[0])
        .await
        .error(404);
    world.cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_deliveries_join() {
    let world = World::start(3).await;
    let [_, dead, _] = world.all_settled().await;
    let list = |query: String, url: usize| {
        let call = Call::get(format!("/api/v1/deliveries?{query}")).key(&world.team_admin);
        let url = world.urls[url % 3].clone();
        async move { call.to(&url).await }
    };
    let whole = world.list("alpha", "").await;
    for order in ["asc", "desc"] {
        let (mut ids, mut cursor) = (Vec::new(), String::new());
        for page in 0..4 {
            let answer = list(format!("order={order}&limit=1{cursor}"), page).await.ok();
            let rows = answer["deliveries"].as_array().unwrap();
            assert_eq!(rows.len(), usize::from(page < 3));
            ids.extend(rows.iter().map(|row| row["id"].clone()));
            cursor = format!("&cursor={}", answer["cursor"].as_str().unwrap());
        }
        let other = if order == "asc" { "desc" } else { "asc" };
        list(format!("order={other}{cursor}"), 0).await.error(400);
        if order == "desc" {
            ids.reverse();
        }
        let expected: Vec<_> = whole.iter().map(|row| row["id"].clone()).collect();
        assert_eq!(ids, expected);
    }
    for (state, count) in [
        ("scheduled", 1),
        ("claimed", 0),
        ("delivered", 1),
        ("dead", 1),
        ("cancelled", 0),
    ] {
        for order in ["asc", "desc"] {
            let found = list(format!("state={state}&order={order}"), 1).await.ok();
            assert_eq!(found["deliveries"].as_array().unwrap().len(), count, "{state}");
        }
    }
    assert_eq!(world.list("dead", "state=dead").await, [dead]);

    // Cursors belong to one kind of list and to one team.
    let inbox = world.as_agent("alpha", Call::get("/v1/messages")).await.ok();
    let inbox = inbox["cursor"].as_str().unwrap();
    list(format!("cursor={inbox}"), 0).await.error(400);
    let cursor = list(String::new(), 0).await.ok()["cursor"].as_str().unwrap().to_owned();
    world
        .as_agent("alpha", Call::get(format!("/v1/messages?cursor={cursor}")))
        .await
        .error(400);
    let other = Team::create(&world.urls[0], &world.admin, "other").await;
    let foreign = Call::get(format!("/v1/deliveries?cursor={cursor}"))
        .key(&other.key)
        .agent("alpha");
    foreign.to(&world.urls[1]).await.error(400);
    world.cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_delivery_is_redriven_once_by_those_who_may() {
    let world = World::start(3).await;
    let [delivered, dead, waits] = world.all_settled().await;
    let path = path_of(&dead);
    world.as_agent("alpha", redrive(&path)).await.error(403);
    world.as_agent("stranger", redrive(&path)).await.error(404);
    for row in [&delivered, &waits] {
        let receiver = row["toAgentId"].as_str().unwrap();
        world.as_agent(receiver, redrive(&path_of(row))).await.error(409);
    }
    world.sink.script("/dead", [Answer::status(204)]);
    let again = world.as_agent("dead", redrive(&path)).await.ok();
    let new: RedriveResponse = serde_json::from_value(again.clone()).unwrap();
    assert_ne!(json!(new.delivery_id), dead["id"]);
    for url in &world.urls {
        let repeat = redrive(&path).key(&world.team_admin).to(url).await.ok();
        assert_eq!(repeat, again);
    }
    let call = &world.sink.called("/dead", 2).await[1];
    assert_eq!(call.header("webhook-id"), new.delivery_id);
    let redriven = world.settled("dead", "delivered", 1).await;
    assert_eq!(
        (&redriven["id"], &redriven["redriveOf"]),
        (&json!(new.delivery_id), &dead["id"])
    );
    let old = world.as_agent("dead", Call::get(&path)).await.ok()["delivery"].clone();
    assert_eq!((&old["state"], &old["redrivenAs"]), (&json!("dead"), &redriven["id"]));
    // The one dead letter has made the one notice.
    let notices = world.as_agent("alpha", Call::get("/v1/messages")).await.ok();
    let body = &bodies(&notices)[0];
    let notice: DeliveryFailed = serde_json::from_value(body.clone()).unwrap();
    assert_eq!(
        (json!(notice.delivery_id), notice.last_status),
        (dead["id"].clone(), Some(489))
    );
    assert_eq!(bodies(&notices).len(), 1);
    world.cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_is_gone_is_disabled_until_it_is_registered_again() {
    let world = World::start(1).await;
    world.sink.script("/gone", [Answer::status(410)]);
    let before = world.register("gone", "/gone").await;
    let topic = json!({ "topic": "t", "callbackUrl": world.sink.url("/gone") });
    world
        .as_agent("gone", Call::post("/v1/messages/subscribe", &topic))
        .await
        .ok();
    world.send("gone").await;
    let dead = world.settled("gone", "dead", 1).await;
    assert_eq!(dead["end"], "gone");
    let hook = world.as_agent("gone", Call::get("/v1/messages/webhook")).await.ok()["webhook"].clone();
    assert_eq!((&hook["isActive"], &hook["disabled"]), (&json!(false), &json!(true)));
    let listed = world.as_agent("gone", Call::get("/v1/messages/subscribe")).await.ok();
    assert_eq!(listed["data"][0]["disabled"], true);
    // To subscribe without a URL keeps it as it is.
    let kept = world
        .as_agent("gone", Call::post("/v1/messages/subscribe", &json!({ "topic": "t" })))
        .await
        .ok();
    assert_eq!(kept["data"], listed["data"][0]);
    let text = world.as_agent("gone", redrive(&path_of(&dead))).await.error(409);
    assert!(text.contains("register it again"), "{text}");
    world.sink.script("/gone", [Answer::status(200)]);
    let after = world.register("gone", "/gone").await;
    assert!(after["isActive"] == true && after["secret"] != before["secret"]);
    world.as_agent("gone", redrive(&path_of(&dead))).await.ok();
    world.settled("gone", "delivered", 1).await;
    world.cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_delivery_is_cancelled_once() {
    let world = World::start(1).await;
    let [delivered, dead, waits] = world.all_settled().await;
    let path = path_of(&waits);
    world.as_agent("alpha", Call::delete(&path)).await.error(403);
    world.as_agent("stranger", Call::delete(&path)).await.error(404);
    for row in [&delivered, &dead] {
        let receiver = row["toAgentId"].as_str().unwrap();
        world.as_agent(receiver, Call::delete(path_of(row))).await.error(409);
    }
    let done = world.as_agent("waits", Call::delete(&path)).await.ok();
    assert_eq!(done["success"], true);
    world.as_agent("waits", Call::delete(&path)).await.error(409);
    let row = world.settled("waits", "cancelled", 1).await;
    assert_eq!((&row["end"], &row["due"]), (&json!("cancelled"), &Value::Null));
    // Without a notice: the only one is of the dead delivery.
    let notices = world.as_agent("alpha", Call::get("/v1/messages")).await.ok();
    assert_eq!(bodies(&notices).len(), 1);
    world.cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_team_finds_nothing_and_operators_everything() {
    let world = World::start(1).await;
    let [delivered, dead, waits] = world.all_settled().await;
    let other = Team::create(&world.urls[0], &world.admin, "other").await;
    let wanted = json!({ "name": "a", "permissions": ["admin"] });
    let (_, other_admin) = new_key(&world.urls[0], &world.admin, &other.id, &wanted).await;
    let unknown = format!("/v1/deliveries/dlv_{}", "0".repeat(32));
    let url = &world.urls[0];
    for path in [&path_of(&dead), &path_of(&waits), &unknown] {
        for call in [Call::get(path), Call::delete(path), redrive(path)] {
            let by_admin = call.clone().key(&other_admin).to(url).await;
            assert_eq!(by_admin.error(404), "no such delivery");
            // The agent of the same name in another team is another agent.
            let by_agent = call.key(&other.key).agent("dead").to(url).await;
            assert_eq!(by_agent.error(404), "no such delivery");
        }
    }
    let none = Call::get("/v1/deliveries").key(&other_admin).to(url).await.ok();
    assert_eq!(none["deliveries"], json!([]));

    let id = |row: &Value| row["id"].as_str().unwrap().to_owned();
    let of = |path: &str, team: &str| format!("/admin/v1/deliveries{path}?team={team}");
    let list = Call::get(of("", &world.team.id))
        .bearer(&world.admin)
        .to(url)
        .await
        .ok();
    let ids: Vec<_> = list["deliveries"].as_array().unwrap().iter().map(id).collect();
    assert_eq!(ids, [id(&delivered), id(&dead), id(&waits)]);
    assert_eq!(list["deliveries"][1], dead);
    let only_dead = Call::get(format!("{}&state=dead", of("", &world.team.id))).bearer(&world.admin);
    assert_eq!(only_dead.to(url).await.ok()["deliveries"], json!([dead]));
    let one = format!("/{}", id(&dead));
    let shown = Call::get(of(&one, &world.team.id))
        .bearer(&world.admin)
        .to(url)
        .await
        .ok();
    assert_eq!(shown["delivery"]["attempts"][0]["status"], 489);
    let again = format!("{one}/redrive");
    for (call, team, status) in [
        (Call::get(of(&one, &other.id)), "another team", 404),
        (Call::new(Method::POST, of(&again, &other.id)), "another team", 404),
        (Call::get(of(&one, "team_x")), "no team", 404),
        (Call::get(format!("/admin/v1/deliveries{one}")), "no team named", 400),
        (Call::get("/admin/v1/deliveries"), "no team named", 400),
        (
            Call::get(format!("{}&state=x", of("", &world.team.id))),
            "a bad state",
            400,
        ),
        (Call::get(of("/x", &world.team.id)), "no id", 404),
    ] {
        assert_eq!(call.bearer(&world.admin).to(url).await.status, status, "{team}");
    }
    for key in [&world.team_admin, &world.team.key] {
        Call::get(of(&one, &world.team.id)).bearer(key).to(url).await.error(403);
    }
    let made = Call::new(Method::POST, of(&again, &world.team.id))
        .bearer(&world.admin)
        .to(url)
        .await
        .ok();
    assert_ne!(made["deliveryId"], dead["id"]);
    let gone = Call::delete(of(&format!("/{}", id(&waits)), &world.team.id)).bearer(&world.admin);
    gone.clone().to(url).await.ok();
    gone.to(url).await.error(409);
    world.cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_lists_the_deliveries() {
    let world = World::start(1).await;
    let [_, dead, _] = world.all_settled().await;
    let path = format!("/v1/messages/{}/receipt", dead["messageId"].as_str().unwrap());
    let receipt = world.as_agent("alpha", Call::get(&path)).await.ok()["receipt"].clone();
    let expected = json!({ "id": dead["id"], "toAgentId": "dead", "state": "dead", "attempts": 1 });
    assert_eq!(receipt["delivered"], json!([expected]));
    let by_admin = Call::get(&path).key(&world.team_admin).to(&world.urls[0]).await.ok();
    assert_eq!(by_admin["receipt"]["delivered"][0]["url"], dead["url"]);
    world.as_agent("dead", Call::get(&path)).await.error(404);
    world.cluster.stop().await;
}
