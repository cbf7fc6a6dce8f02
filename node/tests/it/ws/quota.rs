//! The monthly events of the Kite API: what sessions are told, when a team is blocked, and that it loses no message.

use std::time::Duration;

use agentpost_node::server::ws;
use agentpost_proto::time::{month, next_month_ms, parse_rfc3339, rfc3339};
use agentpost_testkit::socket::{Socket, refused};
use serde_json::{Value, json};

use crate::common::eventually;
use crate::common::office::{Office, connect, office};
use crate::common::web::{Answer, Call, Team};

const DAY_MS: i64 = 86_400_000;

/// Three nodes whose `urls` serve only `/ws`, with sessions that check the quota every 200 ms.
async fn start() -> Office {
    let mut office = office().await;
    for (node, url) in office.urls.iter_mut().enumerate() {
        let options = ws::ws_state::SessionOptions {
            look_every: Duration::from_millis(200),
            ..ws::ws_state::SessionOptions::default()
        };
        *url = office.cluster.serve_ws(node, options).await;
    }
    office
}

impl Office {
    async fn limited_team(&self, name: &str, events: u64, price: Option<u64>) -> Team {
        let limits = json!({"monthly_events": events, "overage_price_atomic": price, "daily_sends": 0});
        Team::with_limits(&self.cluster.url(0), &self.admin, name, &limits).await
    }

    async fn set_limits(&self, team: &Team, limits: Value) {
        let patch = Call::patch(format!("/admin/v1/teams/{}", team.id), &json!({"limits": limits}));
        patch.bearer(&self.admin).to(&self.cluster.url(1)).await.ok();
    }

    async fn mail(&self, node: usize, team: &Team, body: &str) -> Answer {
        let mail = json!({"from": "sender", "to": "alpha", "body": body});
        let call = Call::post(format!("/api/v1/agents/messages?team_id={}", team.id), &mail);
        call.bearer(&team.key).to(&self.cluster.url(node)).await
    }

    /// Connects; returns the socket and its first frames.
    async fn greeted(&self, node: usize, team: &Team, scopes: &[&str], frames: usize) -> (Socket, Vec<Value>) {
        let mut socket = Socket::open(&self.urls[node]).await;
        socket.say(&connect(team, scopes, None).frame()).await;
        let mut greeting = Vec::new();
        for _ in 0..frames {
            greeting.push(socket.frame().await);
        }
        (socket, greeting)
    }
}

fn kinds(frames: &[Value]) -> Vec<&str> {
    frames.iter().map(|frame| frame["type"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_monthly_quota_in_sessions() {
    let office = start().await;
    tokio::join!(
        a_team_that_becomes_blocked_is_told_once_and_loses_nothing(&office),
        a_slow_listener_gets_all_that_was_accepted(&office),
        a_raised_limit_ends_the_block(&office),
        a_price_instead_of_a_block(&office),
        without_a_limit_nothing_is_blocked(&office),
    );
}

async fn a_team_that_becomes_blocked_is_told_once_and_loses_nothing(office: &Office) {
    let team = office.limited_team("blocked", 3, None).await;
    let now_ms = office.cluster.services(0).clock.wall_ms();
    let mut sockets = Vec::new();
    for node in 0..3 {
        let (mailbox, greeting) = office.greeted(node, &team, &["agent_to:alpha"], 2).await;
        assert_eq!(kinds(&greeting), ["connected", "quota_snapshot"]);
        let end = parse_rfc3339(greeting[1]["current_period_end"].as_str().unwrap()).unwrap();
        let expected = json!({
            "type": "quota_snapshot", "provider": "agentpost", "events_used": 0, "events_limit": 3,
            "current_period_end": rfc3339(next_month_ms(now_ms)),
        });
        assert!(
            greeting[1] == expected || month(end - 1) > month(now_ms),
            "{}",
            greeting[1]
        );
        sockets.push(mailbox);
        sockets.push(office.greeted(node, &team, &["*"], 2).await.0);
    }
    for n in 1..=3 {
        let usage = office.mail(n % 3, &team, &n.to_string()).await.ok()["usage"].clone();
        let expected = json!({"events_used": n, "events_limit": 3, "amount_charged_atomic": 0});
        assert_eq!(usage, expected);
    }
    // All accepted messages come before the error.
    for socket in &mut sockets {
        assert_eq!(socket.bodies(3).await, ["1", "2", "3"]);
        assert_eq!(socket.ending().await, refused(4005));
        let told: Value = serde_json::from_str(socket.log.last().unwrap()).unwrap();
        assert_eq!(told["message"], "the team's 3 events of this month are used up");
    }
    for node in 0..3 {
        let over = office.mail(node, &team, "too much").await;
        let seconds = over.body["retry_after_secs"].as_u64().unwrap();
        assert!((1..=31 * 86_400).contains(&seconds));
        assert_eq!(over.headers["retry-after"], seconds.to_string().as_str());
        assert_eq!(over.body.as_object().unwrap().len(), 2);
        assert_eq!(over.error(429), "the team's 3 events of this month are used up");

        // A blocked team that reconnects is told so and gets every message that it has not acknowledged.
        let (mut socket, greeting) = office.greeted(node, &team, &["agent_to:alpha"], 3).await;
        assert_eq!(kinds(&greeting), ["connected", "quota_snapshot", "billing_block"]);
        assert_eq!(
            (&greeting[1]["events_used"], &greeting[1]["events_limit"]),
            (&json!(3), &json!(3))
        );
        let seconds = greeting[2]["action"]["retry_after_secs"].as_u64().unwrap();
        let expected = json!({
            "type": "billing_block", "provider": "agentpost", "retryable": true,
            "reason": "the team's 3 events of this month are used up",
            "action": {"type": "wait_or_raise_limit", "retry_after_secs": seconds},
        });
        assert_eq!(greeting[2], expected);
        assert!((1..=31 * 86_400).contains(&seconds));
        assert_eq!(socket.bodies(3).await, ["1", "2", "3"]);
        // This is longer than two checks of the quota.
        assert_eq!(socket.frame_within(Duration::from_millis(1_000)).await, None);
        let page = socket.answer("events.recent", json!({})).await;
        assert_eq!(page["events"].as_array().unwrap().len(), 3);
        let stats = socket.answer("dashboard.stats", json!({})).await;
        assert_eq!(stats["webhooks_today"], 3);
    }
}

/// The session is live only: it never sees a message that it does not get before its end.
async fn a_slow_listener_gets_all_that_was_accepted(office: &Office) {
    let events = 90;
    let team = office.limited_team("slow", events, None).await;
    let mut socket = Socket::open_narrow(&office.urls[2]).await;
    socket.greet(connect(&team, &["*"], None)).await;
    let body = "x".repeat(100_000);
    for n in 0..events as usize {
        office.mail(n % 3, &team, &body).await.ok();
    }
    office.mail(0, &team, "too much").await.error(429);
    for seq in 1..=events {
        assert_eq!(socket.event().await.0, seq);
    }
    assert_eq!(socket.ending().await, refused(4005));
}

async fn a_raised_limit_ends_the_block(office: &Office) {
    let team = office.limited_team("raised", 1, None).await;
    office.mail(0, &team, "1").await.ok();
    let (mut greeted_blocked, greeting) = office.greeted(1, &team, &["*"], 3).await;
    assert_eq!(kinds(&greeting)[2], "billing_block");
    office.set_limits(&team, json!({"monthly_events": 3})).await;
    let (mut socket, greeting) = office.greeted(2, &team, &["*"], 2).await;
    assert_eq!(
        (kinds(&greeting)[1], &greeting[1]["events_limit"]),
        ("quota_snapshot", &json!(3))
    );
    office.mail(1, &team, "2").await.ok();
    assert_eq!(
        (socket.event().await.1, greeted_blocked.event().await.1),
        ("2".to_owned(), "2".to_owned())
    );
    // This is longer than two checks of the quota, so both sessions know that the team may send.
    assert_eq!(greeted_blocked.frame_within(Duration::from_millis(1_000)).await, None);
    office.mail(2, &team, "3").await.ok();
    for socket in [&mut socket, &mut greeted_blocked] {
        assert_eq!(socket.event().await.1, "3");
        assert_eq!(socket.ending().await, refused(4005));
    }
    // A limit that is lowered below the usage blocks too.
    office.set_limits(&team, json!({"monthly_events": 4})).await;
    let (mut socket, _) = office.greeted(0, &team, &["agent_to:alpha"], 2).await;
    office.set_limits(&team, json!({"monthly_events": 2})).await;
    assert_eq!(socket.bodies(3).await, ["1", "2", "3"]);
    assert_eq!(socket.ending().await, refused(4005));
    // An overage price ends the block too.
    office.set_limits(&team, json!({"overage_price_atomic": 5})).await;
    assert_eq!(
        office.mail(0, &team, "4").await.ok()["usage"]["amount_charged_atomic"],
        5
    );
}

async fn a_price_instead_of_a_block(office: &Office) {
    let team = office.limited_team("overage", 2, Some(1_500)).await;
    let (mut socket, _) = office.greeted(0, &team, &["*"], 2).await;
    for (n, charged) in [(1, 0), (2, 0), (3, 1_500), (4, 1_500)] {
        let usage = office.mail(n % 3, &team, "x").await.ok()["usage"].clone();
        let expected = json!({"events_used": n, "events_limit": 2, "amount_charged_atomic": charged});
        assert_eq!(usage, expected);
    }
    socket.bodies(4).await;
    assert_eq!(socket.frame_within(Duration::from_millis(1_000)).await, None);
    let (mut late, greeting) = office.greeted(1, &team, &["*"], 2).await;
    assert_eq!(
        (&greeting[1]["events_used"], &greeting[1]["events_limit"]),
        (&json!(4), &json!(2))
    );
    late.silent().await;
}

async fn without_a_limit_nothing_is_blocked(office: &Office) {
    let team = office.limited_team("unlimited", 0, None).await;
    let (mut socket, greeting) = office.greeted(0, &team, &["*"], 2).await;
    assert_eq!(greeting[1]["events_limit"], 9_007_199_254_740_991u64);
    let usage = office.mail(1, &team, "x").await.ok()["usage"].clone();
    let expected = json!({"events_used": 1, "events_limit": 9_007_199_254_740_991u64, "amount_charged_atomic": 0});
    assert_eq!(usage, expected);
    socket.bodies(1).await;
    assert_eq!(socket.frame_within(Duration::from_millis(600)).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_month_ends_the_block() {
    let office = start().await;
    let team = office.limited_team("month", 1, None).await;
    office.mail(0, &team, "1").await.ok();
    office.mail(1, &team, "2").await.error(429);
    let (mut stays, greeting) = office.greeted(0, &team, &["agent_to:alpha"], 3).await;
    assert_eq!(kinds(&greeting)[2], "billing_block");
    assert_eq!(stays.bodies(1).await, ["1"]);
    let end = |frame: &Value| parse_rfc3339(frame["current_period_end"].as_str().unwrap()).unwrap();
    let ended = end(&greeting[1]);
    for node in 0..3 {
        office.cluster.services(node).clock.shift(32 * DAY_MS);
    }
    // Nothing has been sent in the new month, so only the clocks show that it began.
    for node in 0..3 {
        let greeting = eventually("a greeting of the new month", async || {
            let (_, greeting) = office.greeted(node, &team, &["*"], 2).await;
            (end(&greeting[1]) > ended).then_some(greeting)
        })
        .await;
        assert_eq!(
            (&greeting[1]["events_used"], &greeting[1]["events_limit"]),
            (&json!(0), &json!(1))
        );
    }
    let (mut socket, _) = office.greeted(2, &team, &["agent_to:alpha"], 2).await;
    assert_eq!(socket.bodies(1).await, ["1"]);
    socket.silent().await;
    let usage = office.mail(2, &team, "new").await.ok()["usage"].clone();
    assert_eq!(usage["events_used"], 1);
    // The new block is told again, also to the session that has stayed since the month before.
    for socket in [&mut socket, &mut stays] {
        assert_eq!(socket.bodies(1).await, ["new"]);
        assert_eq!(socket.ending().await, refused(4005));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_answered_before_a_blocked_team_is_told() {
    let office = start().await;
    let team = office.limited_team("busy", 60, None).await;
    for n in 0..59 {
        office.mail(n % 3, &team, &"x".repeat(20_000)).await.ok();
    }
    let mut socket = Socket::open_narrow(&office.urls[0]).await;
    socket.greet(connect(&team, &["*"], None)).await;
    // The answers are megabytes that nobody reads yet, so most of them wait when the team becomes blocked.
    let requests = 15;
    for at in 0..requests {
        let request = json!({"type": "request", "id": at.to_string(), "method": "events.recent"});
        socket.say(&request).await;
    }
    office.mail(0, &team, "last").await.ok();
    // The session looks at the quota every 200 ms. If it is late on a slow machine, the block is told later, which the
    // assertions below allow too.
    tokio::time::sleep(Duration::from_millis(600)).await;
    let (mut answered, mut seen) = (0, 0);
    while let Some(frame) = socket.frame_or_ending().await {
        match frame["type"].as_str() {
            Some("event") => seen += 1,
            _ => {
                assert_eq!(
                    (&frame["id"], &frame["ok"]),
                    (&json!(answered.to_string()), &json!(true))
                );
                answered += 1;
            }
        }
    }
    assert_eq!((answered, seen, socket.ended()), (requests, 1, refused(4005)));
}
