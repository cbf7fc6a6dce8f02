//! Topic messages in the Kite API: who sees them, at which seq, and how often, on three nodes.

use agentpost_proto::limits;
use agentpost_raft_store::core::query;
use agentpost_testkit::socket::Socket;
use futures::{StreamExt as _, stream};
use serde_json::{Value, json};

use crate::common::eventually;
use crate::common::office::{Office, office};
use crate::common::web::{Call, Team};

/// The compared parts of an event: seq, `data.to`, `data.topic` and body.
type Seen = (u64, String, Value, String);

impl Office {
    async fn subscribe(&self, node: usize, team: &Team, agent: &str, topic: &str) {
        let call = Call::post("/v1/messages/subscribe", &json!({ "topic": topic }));
        call.key(&team.key).agent(agent).to(&self.urls[node]).await.ok();
    }

    /// Publishes; returns the message id in Kite's form.
    async fn publish(&self, node: usize, team: &Team, from: &str, topic: &str, body: &str) -> String {
        let wanted = json!({ "topic": topic, "type": "news.item", "body": body });
        let call = Call::post("/v1/messages", &wanted).key(&team.key).agent(from);
        let sent = call.to(&self.urls[node]).await.ok();
        let id = sent["messageId"]
            .as_str()
            .unwrap()
            .parse::<agentpost_proto::id::MessageId>();
        id.unwrap().kite()
    }

    /// Waits until every publish of the team is in all inboxes.
    async fn fanned_out(&self, team: &Team) {
        let id = team.id.parse().unwrap();
        eventually("all receivers", async || {
            let state = self.cluster.services(0).fresh_state().await?;
            let jobs = query::delivery::fanout_jobs(&*state).unwrap();
            (!jobs.iter().any(|(team, ..)| *team == id)).then_some(())
        })
        .await;
    }
}

async fn next(socket: &mut Socket) -> Seen {
    let frame = socket.frame().await;
    assert_eq!(frame["type"], "event", "{frame}");
    assert_eq!(frame["seq"], frame["event"]["kiteseq"]);
    let data = &frame["event"]["data"];
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    (
        frame["seq"].as_u64().unwrap(),
        text(&data["to"]),
        data["topic"].clone(),
        text(&data["body"]),
    )
}

fn of_topic(seq: u64, to: &str, topic: &str, body: &str) -> Seen {
    (seq, to.to_owned(), json!(topic), body.to_owned())
}

fn direct(seq: u64, to: &str, body: &str) -> Seen {
    (seq, to.to_owned(), Value::Null, body.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn topic_mail_on_the_kite_face() {
    let office = office().await;
    tokio::join!(
        each_scope_sees_its_form_once(&office),
        a_publish_that_nobody_receives_wakes_wide_sessions(&office),
        a_large_publish_stands_where_its_chunk_put_it(&office),
    );
}

async fn each_scope_sees_its_form_once(office: &Office) {
    let team = office.new_team("forms").await;
    office.subscribe(0, &team, "alpha", "news").await;
    office.subscribe(1, &team, "beta", "news").await;
    office.subscribe(2, &team, "gamma", "news").await;
    let (mut alpha, _) = office.listen(0, &team, &["agent_to:alpha"], None).await;
    let (mut gamma, _) = office.listen(1, &team, &["agent_to:gamma"], None).await;
    let (mut wide, _) = office.listen(2, &team, &["*"], None).await;
    let (mut both, _) = office.listen(0, &team, &["agent_to:alpha", "type:kite"], None).await;
    let (mut mixed, _) = office
        .listen(1, &team, &["source:nobody", "agent_to:alpha"], None)
        .await;
    let (mut pair, _) = office
        .listen(2, &team, &["agent_to:alpha", "agent_to:gamma"], None)
        .await;

    let id = office.publish(1, &team, "beta", "news", "one").await;
    office.send(2, &team, "alpha", "two").await;
    office.publish(0, &team, "gamma", "news", "three").await;
    office.send(1, &team, "gamma", "four").await;

    for (socket, expected) in [
        (
            &mut alpha,
            vec![
                of_topic(1, "alpha", "news", "one"),
                direct(2, "alpha", "two"),
                of_topic(3, "alpha", "news", "three"),
            ],
        ),
        (
            &mut gamma,
            vec![of_topic(1, "gamma", "news", "one"), direct(4, "gamma", "four")],
        ),
        (
            &mut mixed,
            vec![
                of_topic(1, "alpha", "news", "one"),
                direct(2, "alpha", "two"),
                of_topic(3, "alpha", "news", "three"),
            ],
        ),
        (
            &mut pair,
            vec![
                of_topic(1, "topic:news", "news", "one"),
                direct(2, "alpha", "two"),
                of_topic(3, "alpha", "news", "three"),
                direct(4, "gamma", "four"),
            ],
        ),
    ] {
        for event in expected {
            assert_eq!(next(socket).await, event);
        }
        socket.silent().await;
    }
    for socket in [&mut wide, &mut both] {
        let everything = [
            of_topic(1, "topic:news", "news", "one"),
            direct(2, "alpha", "two"),
            of_topic(3, "topic:news", "news", "three"),
            direct(4, "gamma", "four"),
        ];
        for event in everything {
            assert_eq!(next(socket).await, event);
        }
        socket.silent().await;
    }
    let first: Value = serde_json::from_str(&alpha.log[2]).unwrap();
    assert_eq!(first["event"]["id"], json!(id));
    assert_eq!(first["event"]["data"]["type"], "news.item");
    assert_eq!(first["event"]["kitesummary"], "[agent msg] beta → alpha: one");
}

async fn a_publish_that_nobody_receives_wakes_wide_sessions(office: &Office) {
    let team = office.new_team("nobody").await;
    let (mut wide, _) = office.listen(0, &team, &["*"], None).await;
    let (mut alpha, _) = office.listen(1, &team, &["agent_to:alpha"], None).await;
    office.publish(2, &team, "beta", "empty", "hello?").await;
    assert_eq!(next(&mut wide).await, of_topic(1, "topic:empty", "empty", "hello?"));
    alpha.silent().await;
}

async fn a_large_publish_stands_where_its_chunk_put_it(office: &Office) {
    let team = office.new_team("large").await;
    office.subscribe(0, &team, "first", "all").await;
    let crowd: Vec<String> = (0..limits::FANOUT_CHUNK_ROWS).map(|n| format!("x{n}")).collect();
    stream::iter(&crowd)
        .for_each_concurrent(32, |agent| office.subscribe(1, &team, agent, "all"))
        .await;
    office.subscribe(2, &team, "last", "all").await;

    let (mut wide, _) = office.listen(0, &team, &["agent_to:last", "*"], Some("wide")).await;
    let (mut last, _) = office.listen(1, &team, &["agent_to:last"], None).await;
    let (mut ends, _) = office
        .listen(2, &team, &["agent_to:first", "agent_to:last"], Some("ends"))
        .await;
    office.publish(0, &team, "somebody", "all", "one").await;
    office.send(1, &team, "last", "two").await;
    office.fanned_out(&team).await;
    office.publish(2, &team, "somebody", "all", "three").await;
    office.fanned_out(&team).await;

    // The wide form has the seq of the publish; a wide session never sees the inbox entries.
    let one = next(&mut wide).await;
    assert_eq!(one, of_topic(1, "topic:all", "all", "one"));
    let (two, ..) = next(&mut wide).await;
    let three = next(&mut wide).await;
    assert_eq!((&three.1[..], &three.3[..]), ("topic:all", "three"));
    wide.silent().await;

    // In the inbox the message has the seq of its chunk, before or after the direct message.
    let mut inbox = vec![next(&mut last).await, next(&mut last).await, next(&mut last).await];
    assert!(inbox.windows(2).all(|w| w[0].0 < w[1].0), "{inbox:?}");
    let third = inbox.pop().unwrap();
    assert_eq!((&third.1[..], &third.2, &third.3[..]), ("last", &json!("all"), "three"));
    inbox.sort_by(|a, b| a.3.cmp(&b.3));
    assert!(inbox[0].0 > 1, "not at the publish");
    assert_eq!(inbox[0], of_topic(inbox[0].0, "last", "all", "one"));
    assert_eq!(inbox[1], direct(two, "last", "two"));

    // A session of two inboxes in two chunks gets two events, one for each inbox.
    let mut events = Vec::new();
    for _ in 0..5 {
        events.push(next(&mut ends).await);
    }
    assert!(events.windows(2).all(|w| w[0].0 < w[1].0), "{events:?}");
    let mut got: Vec<(&str, &str)> = events.iter().map(|e| (&e.1[..], &e.3[..])).collect();
    got.sort_unstable();
    assert_eq!(
        got,
        [
            ("first", "one"),
            ("first", "three"),
            ("last", "one"),
            ("last", "three"),
            ("last", "two")
        ]
    );
    ends.silent().await;

    // Both sessions resume on another node after an acknowledgement in the middle.
    let acked = events[2].0;
    ends.ack(acked).await;
    wide.ack(one.0).await;
    for (socket, client_id, seq) in [(&mut ends, "ends", acked), (&mut wide, "wide", one.0)] {
        socket.roundtrip().await;
        eventually("the ack in the state", async || {
            let state = office.cluster.services(0).fresh_state().await?;
            let cursor = query::inbox::cursor(&*state, team.id.parse().unwrap(), "", client_id).unwrap()?;
            (cursor.seq == seq).then_some(())
        })
        .await;
    }
    let (mut ends, _) = office
        .listen(0, &team, &["agent_to:first", "agent_to:last"], Some("ends"))
        .await;
    for event in &events[3..] {
        assert_eq!(&next(&mut ends).await, event);
    }
    ends.silent().await;
    let (mut wide, _) = office.listen(1, &team, &["agent_to:last", "*"], Some("wide")).await;
    assert_eq!(next(&mut wide).await.0, two);
    assert_eq!(next(&mut wide).await, three);
    wide.silent().await;
}
