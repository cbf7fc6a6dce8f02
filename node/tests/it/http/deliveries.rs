//! The deliveries API: visibility, paging, redriving, cancelling.

use agentpost_proto::api::abbababa::{DeliveriesResponse, DeliveryFailed, DeliveryResponse, RedriveResponse};
use agentpost_testkit::receiver::{Answer, Receiver};
use axum::http::Method;
use serde_json::{Value, json};

use crate::common::web;
use crate::common::web::{Call, Team, bodies, mail, new_key};
use crate::common::webhooks::WebhookOffice;
use crate::common::{TestCluster, eventually};

/// The body of the receiver's answers.
const RESPONSE: &str = "RESPONSE-BODY";

/// A team with one delivered, one dead and one waiting delivery, all of messages from `alpha`.
struct DeliveryOffice {
    _cluster: TestCluster,
    urls: Vec<String>,
    receiver: Receiver,
    admin: String,
    team: Team,
    /// An admin key of the team that is bound to no agent.
    team_admin: String,
}

impl DeliveryOffice {
    async fn start(nodes: usize) -> DeliveryOffice {
        let cluster = TestCluster::start_with(nodes, WebhookOffice::SETTINGS).await;
        let (urls, admin) = (cluster.urls(), cluster.admin_key());
        let team = Team::create(&urls[0], &admin, "ours").await;
        let wanted = json!({ "name": "a", "permissions": ["admin"] });
        let (_, team_admin) = new_key(&urls[0], &admin, &team.id, &wanted).await;
        let receiver = Receiver::start().await.unwrap();
        receiver.set_default(Answer::status(200).body(RESPONSE));
        receiver.script("/dead", [non_retryable()]);
        receiver.script(
            "/waits",
            [Answer::status(500).header("retry-after", 3600).body(RESPONSE)],
        );
        let office = DeliveryOffice {
            _cluster: cluster,
            urls,
            receiver,
            admin,
            team,
            team_admin,
        };
        for agent in ["delivered", "dead", "waits"] {
            office.register(agent, &format!("/{agent}")).await;
            office.send(agent).await;
        }
        office
    }

    async fn register(&self, agent: &str, path: &str) -> Value {
        let body = json!({ "url": self.receiver.url(path), "events": ["message.received"] });
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

    /// Waits until the only delivery to `agent` is in this state after this number of attempts.
    async fn settled(&self, agent: &str, state: &str, attempts: u32) -> Value {
        eventually(&format!("a {state} delivery to {agent}"), async || {
            let found = self.list(agent, "").await.pop()?;
            (found["state"] == state && found["attempts"] == attempts).then_some(found)
        })
        .await
    }

    /// Waits until each of the three deliveries is in the state of its name.
    async fn all_settled(&self) -> [Value; 3] {
        [
            self.settled("delivered", "delivered", 1).await,
            self.settled("dead", "dead", 1).await,
            self.settled("waits", "scheduled", 1).await,
        ]
    }
}

fn non_retryable() -> Answer {
    Answer::status(489)
        .header("upstash-nonretryable-error", true)
        .body(RESPONSE)
}

fn path_of(delivery: &Value) -> String {
    format!("/v1/deliveries/{}", delivery["id"].as_str().unwrap())
}

fn redrive(path: &str) -> Call {
    Call::new(Method::POST, format!("{path}/redrive"))
}

#[tokio::test(flavor = "multi_thread")]
async fn receivers_see_all_and_the_sender_sees_states() {
    let office = DeliveryOffice::start(3).await;
    let [delivered, dead, waits] = office.all_settled().await;
    for (row, agent, step) in [(&delivered, "delivered", 0), (&dead, "dead", 0), (&waits, "waits", 1)] {
        assert_eq!(
            (&row["toAgentId"], &row["fromAgentId"]),
            (&json!(agent), &json!("alpha"))
        );
        assert_eq!(row["url"], office.receiver.url(&format!("/{agent}")));
        assert_eq!((&row["step"], &row["attemptCount"]), (&json!(step), &json!(1)));
        assert_eq!(row["due"].is_string(), agent == "waits");
        assert_eq!(row["endedAt"].is_string(), agent != "waits");
    }
    assert!(waits["dueInMs"].as_u64().unwrap() > 3_000_000);
    assert_eq!(dead["end"], "non_retryable");

    let states: Vec<_> = office
        .list("alpha", "")
        .await
        .iter()
        .map(|row| row["state"].clone())
        .collect();
    assert_eq!(states, ["delivered", "dead", "scheduled"]);
    for row in [&delivered, &dead, &waits] {
        let path = path_of(row);
        let receiver = row["toAgentId"].as_str().unwrap();
        let full = office.as_agent(receiver, Call::get(&path)).await.ok();
        serde_json::from_value::<DeliveryResponse>(full.clone()).unwrap();
        assert_eq!(full["delivery"], full["data"]);
        let attempt = &full["delivery"]["attempts"][0];
        assert_eq!((&attempt["number"], attempt["response"].is_string()), (&json!(1), true));
        assert!(attempt["status"].is_u64() && attempt["startedAt"].is_string() && attempt["tookMs"].is_u64());
        let seen = office.as_agent("alpha", Call::get(&path)).await.ok();
        serde_json::from_value::<DeliveryResponse>(seen.clone()).unwrap();
        let text = seen.to_string();
        for hidden in ["\"url\"", "127.0.0.1", RESPONSE, "\"status\"", "tookMs"] {
            assert!(!text.contains(hidden), "{hidden} in {text}");
        }
        assert_eq!(seen["delivery"]["attempts"][0]["end"], attempt["end"]);
        for url in &office.urls {
            let by_admin = Call::get(&path).key(&office.team_admin).to(url).await.ok();
            assert_eq!(by_admin["delivery"]["url"], row["url"]);
            let other = Call::get(&path).key(&office.team.key).agent("stranger").to(url).await;
            assert_eq!(other.error(404), "no such delivery");
        }
    }
    // An admin key that is bound to an agent is that agent's key.
    let wanted = json!({ "name": "b", "permissions": ["admin"], "agent_id": "stranger" });
    let (_, bound) = new_key(&office.urls[0], &office.admin, &office.team.id, &wanted).await;
    let nothing = Call::get("/v1/deliveries").key(&bound).to(&office.urls[0]).await.ok();
    assert_eq!(nothing["deliveries"], json!([]));
    Call::get(path_of(&dead))
        .key(&bound)
        .to(&office.urls[0])
        .await
        .error(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_deliveries_join() {
    let office = DeliveryOffice::start(3).await;
    let [_, dead, _] = office.all_settled().await;
    let list = |query: String, url: usize| {
        let call = Call::get(format!("/api/v1/deliveries?{query}")).key(&office.team_admin);
        let url = office.urls[url % 3].clone();
        async move { call.to(&url).await }
    };
    let whole = office.list("alpha", "").await;
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
    assert_eq!(office.list("dead", "state=dead").await, [dead]);

    // A cursor is valid for one kind of list and one team.
    let inbox = office.as_agent("alpha", Call::get("/v1/messages")).await.ok();
    let inbox = inbox["cursor"].as_str().unwrap();
    list(format!("cursor={inbox}"), 0).await.error(400);
    let cursor = list(String::new(), 0).await.ok()["cursor"].as_str().unwrap().to_owned();
    office
        .as_agent("alpha", Call::get(format!("/v1/messages?cursor={cursor}")))
        .await
        .error(400);
    let other = Team::create(&office.urls[0], &office.admin, "other").await;
    let foreign = Call::get(format!("/v1/deliveries?cursor={cursor}"))
        .key(&other.key)
        .agent("alpha");
    foreign.to(&office.urls[1]).await.error(400);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_delivery_is_redriven_once_by_those_who_may() {
    let office = DeliveryOffice::start(3).await;
    let [delivered, dead, waits] = office.all_settled().await;
    let path = path_of(&dead);
    office.as_agent("alpha", redrive(&path)).await.error(403);
    office.as_agent("stranger", redrive(&path)).await.error(404);
    for row in [&delivered, &waits] {
        let receiver = row["toAgentId"].as_str().unwrap();
        office.as_agent(receiver, redrive(&path_of(row))).await.error(409);
    }
    office.receiver.script("/dead", [Answer::status(204)]);
    let again = office.as_agent("dead", redrive(&path)).await.ok();
    let new: RedriveResponse = serde_json::from_value(again.clone()).unwrap();
    assert_ne!(json!(new.delivery_id), dead["id"]);
    for url in &office.urls {
        let repeat = redrive(&path).key(&office.team_admin).to(url).await.ok();
        assert_eq!(repeat, again);
    }
    let call = &office.receiver.called("/dead", 2).await[1];
    assert_eq!(call.header("webhook-id"), Some(&*new.delivery_id));
    let redriven = office.settled("dead", "delivered", 1).await;
    assert_eq!(
        (&redriven["id"], &redriven["redriveOf"]),
        (&json!(new.delivery_id), &dead["id"])
    );
    let old = office.as_agent("dead", Call::get(&path)).await.ok()["delivery"].clone();
    assert_eq!((&old["state"], &old["redrivenAs"]), (&json!("dead"), &redriven["id"]));
    // One dead letter makes one notice.
    let notices = office.as_agent("alpha", Call::get("/v1/messages")).await.ok();
    let body = &bodies(&notices)[0];
    let notice: DeliveryFailed = serde_json::from_value(body.clone()).unwrap();
    assert_eq!(
        (json!(notice.delivery_id), notice.last_status),
        (dead["id"].clone(), Some(489))
    );
    assert_eq!(bodies(&notices).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_is_gone_is_disabled_until_it_is_registered_again() {
    let office = DeliveryOffice::start(1).await;
    office.receiver.script("/gone", [Answer::status(410)]);
    let before = office.register("gone", "/gone").await;
    let topic = json!({ "topic": "t", "callbackUrl": office.receiver.url("/gone") });
    office
        .as_agent("gone", Call::post("/v1/messages/subscribe", &topic))
        .await
        .ok();
    office.send("gone").await;
    let dead = office.settled("gone", "dead", 1).await;
    assert_eq!(dead["end"], "gone");
    let hook = office.as_agent("gone", Call::get("/v1/messages/webhook")).await.ok()["webhook"].clone();
    assert_eq!((&hook["isActive"], &hook["disabled"]), (&json!(false), &json!(true)));
    let listed = office.as_agent("gone", Call::get("/v1/messages/subscribe")).await.ok();
    assert_eq!(listed["data"][0]["disabled"], true);
    // Subscribing without a URL keeps the URL.
    let kept = office
        .as_agent("gone", Call::post("/v1/messages/subscribe", &json!({ "topic": "t" })))
        .await
        .ok();
    assert_eq!(kept["data"], listed["data"][0]);
    let text = office.as_agent("gone", redrive(&path_of(&dead))).await.error(409);
    assert!(text.contains("register it again"), "{text}");
    office.receiver.script("/gone", [Answer::status(200)]);
    let after = office.register("gone", "/gone").await;
    assert!(after["isActive"] == true && after["secret"] != before["secret"]);
    office.as_agent("gone", redrive(&path_of(&dead))).await.ok();
    office.settled("gone", "delivered", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_delivery_is_cancelled_once() {
    let office = DeliveryOffice::start(1).await;
    let [delivered, dead, waits] = office.all_settled().await;
    let path = path_of(&waits);
    office.as_agent("alpha", Call::delete(&path)).await.error(403);
    office.as_agent("stranger", Call::delete(&path)).await.error(404);
    for row in [&delivered, &dead] {
        let receiver = row["toAgentId"].as_str().unwrap();
        office.as_agent(receiver, Call::delete(path_of(row))).await.error(409);
    }
    let done = office.as_agent("waits", Call::delete(&path)).await.ok();
    assert_eq!(done["success"], true);
    office.as_agent("waits", Call::delete(&path)).await.error(409);
    let row = office.settled("waits", "cancelled", 1).await;
    assert_eq!((&row["end"], &row["due"]), (&json!("cancelled"), &Value::Null));
    // Cancelling makes no notice; the only one is of the dead delivery.
    let notices = office.as_agent("alpha", Call::get("/v1/messages")).await.ok();
    assert_eq!(bodies(&notices).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_team_finds_nothing_and_operators_everything() {
    let office = DeliveryOffice::start(1).await;
    let [delivered, dead, waits] = office.all_settled().await;
    let other = Team::create(&office.urls[0], &office.admin, "other").await;
    let wanted = json!({ "name": "a", "permissions": ["admin"] });
    let (_, other_admin) = new_key(&office.urls[0], &office.admin, &other.id, &wanted).await;
    let unknown = format!("/v1/deliveries/dlv_{}", "0".repeat(32));
    let url = &office.urls[0];
    for path in [&path_of(&dead), &path_of(&waits), &unknown] {
        for call in [Call::get(path), Call::delete(path), redrive(path)] {
            let by_admin = call.clone().key(&other_admin).to(url).await;
            assert_eq!(by_admin.error(404), "no such delivery");
            // An agent of the same name in another team is a different agent.
            let by_agent = call.key(&other.key).agent("dead").to(url).await;
            assert_eq!(by_agent.error(404), "no such delivery");
        }
    }
    let none = Call::get("/v1/deliveries").key(&other_admin).to(url).await.ok();
    assert_eq!(none["deliveries"], json!([]));

    let id = |row: &Value| row["id"].as_str().unwrap().to_owned();
    let of = |path: &str, team: &str| format!("/admin/v1/deliveries{path}?team={team}");
    let list = Call::get(of("", &office.team.id))
        .bearer(&office.admin)
        .to(url)
        .await
        .ok();
    let ids: Vec<_> = list["deliveries"].as_array().unwrap().iter().map(id).collect();
    assert_eq!(ids, [id(&delivered), id(&dead), id(&waits)]);
    assert_eq!(list["deliveries"][1], dead);
    let only_dead = Call::get(format!("{}&state=dead", of("", &office.team.id))).bearer(&office.admin);
    assert_eq!(only_dead.to(url).await.ok()["deliveries"], json!([dead]));
    let one = format!("/{}", id(&dead));
    let shown = Call::get(of(&one, &office.team.id))
        .bearer(&office.admin)
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
            Call::get(format!("{}&state=x", of("", &office.team.id))),
            "a bad state",
            400,
        ),
        (Call::get(of("/x", &office.team.id)), "no id", 404),
    ] {
        assert_eq!(call.bearer(&office.admin).to(url).await.status, status, "{team}");
    }
    for key in [&office.team_admin, &office.team.key] {
        Call::get(of(&one, &office.team.id))
            .bearer(key)
            .to(url)
            .await
            .error(403);
    }
    let made = Call::new(Method::POST, of(&again, &office.team.id))
        .bearer(&office.admin)
        .to(url)
        .await
        .ok();
    assert_ne!(made["deliveryId"], dead["id"]);
    let gone = Call::delete(of(&format!("/{}", id(&waits)), &office.team.id)).bearer(&office.admin);
    gone.clone().to(url).await.ok();
    gone.to(url).await.error(409);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_lists_the_deliveries() {
    let office = DeliveryOffice::start(1).await;
    let [_, dead, _] = office.all_settled().await;
    let path = format!("/v1/messages/{}/receipt", dead["messageId"].as_str().unwrap());
    let receipt = office.as_agent("alpha", Call::get(&path)).await.ok()["receipt"].clone();
    let expected = json!({ "id": dead["id"], "toAgentId": "dead", "state": "dead", "attempts": 1 });
    assert_eq!(receipt["delivered"], json!([expected]));
    let by_admin = Call::get(&path).key(&office.team_admin).to(&office.urls[0]).await.ok();
    assert_eq!(by_admin["receipt"]["delivered"][0]["url"], dead["url"]);
    office.as_agent("dead", Call::get(&path)).await.error(404);
}
