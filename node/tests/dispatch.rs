//! The dispatcher in a cluster of real nodes: what becomes of a message whose receiver has a webhook.
//!
//! Times are lower bounds only: a retry may be late on a busy machine, never early.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;
#[path = "common/sink.rs"]
mod sink;
#[path = "common/webhooks.rs"]
mod webhooks;

use std::time::Duration;

use agentpost_proto::record::{AttemptEnd, DeliveryEnd, DeliveryState};
use agentpost_raft_store::core::query;

use common::{TestCluster, eventually};
use sink::{Answer, Sink};
use webhooks::{World, only};

#[tokio::test(flavor = "multi_thread")]
async fn a_message_reaches_a_webhook_once() {
    let world = World::start(3).await;
    let sink = Sink::start().await;
    world.register("b", &sink.url("/hook")).await;
    // Through a follower: the leader dispatches, whoever took the message.
    let follower = world.cluster.follower().await;
    let sent = world.send_through(follower, "b", "hello").await;
    let call = only(sink.called("/hook", 1).await);
    let delivery = only(world.settled(1).await);
    assert_eq!(delivery.state(), DeliveryState::Delivered);
    assert_eq!((delivery.attempt_no, delivery.closed_delivered), (1, 1));
    assert_eq!(delivery.message_seq, sent.seq);
    assert_eq!(call.body["body"]["text"], "hello");
    assert_eq!(call.body["deliveryId"], call.header("webhook-id"));
    assert_eq!(
        (call.header("x-attempt"), call.header("x-retry-step")),
        ("1".to_owned(), "0".to_owned())
    );
    let epoch = delivery.attempts[0].epoch;
    assert_eq!(call.header("x-dispatch-epoch"), epoch.to_string());
    assert_eq!(sink.count(), 1);
    world.indexes_are_empty().await;
    world.cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_climb_the_ladder_and_no_step_is_early() {
    let world = World::start(1).await;
    let sink = Sink::start().await;
    sink.script("/hook", [500, 503, 204].map(Answer::status));
    world.register("b", &sink.url("/hook")).await;
    world.send("b", "x").await;
    let calls = sink.called("/hook", 3).await;
    assert!(calls[1].at - calls[0].at >= Duration::from_secs(1));
    assert!(calls[2].at - calls[1].at >= Duration::from_secs(10));
    let steps: Vec<_> = calls.iter().map(|call| call.header("upstash-retried")).collect();
    assert_eq!(steps, ["0", "1", "2"]);
    let id = calls[0].header("webhook-id");
    assert!(
        calls
            .iter()
            .all(|call| call.header("webhook-id") == id && call.header("x-redelivery").is_empty())
    );
    let delivery = only(world.settled(1).await);
    assert_eq!(
        (
            delivery.closed_failed,
            delivery.closed_delivered,
            delivery.closed_unknown
        ),
        (2, 1, 0)
    );
    world.cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_may_ask_for_more_time() {
    let world = World::start(1).await;
    let sink = Sink::start().await;
    let busy = Answer::status(429).header("retry-after", 3);
    sink.script("/hook", [busy, Answer::status(200)]);
    world.register("b", &sink.url("/hook")).await;
    world.send("b", "x").await;
    let calls = sink.called("/hook", 2).await;
    assert!(calls[1].at - calls[0].at >= Duration::from_secs(3));
    world.cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gone_ends_all_deliveries_of_the_url_and_tells_the_sender_of_each() {
    let world = World::start(1).await;
    let sink = Sink::start().await;
    let wait = Answer::status(500).header("retry-after", 1_000);
    let mut script = vec![wait; 20];
    script.push(Answer::status(410));
    sink.script("/hook", script);
    world.register("b", &sink.url("/hook")).await;
    for n in 0..20 {
        world.send("b", &n.to_string()).await;
        sink.called("/hook", n + 1).await;
    }
    world.send("b", "last").await;
    let deliveries = world.settled(21).await;
    assert!(deliveries.iter().all(|d| d.state() == DeliveryState::Dead));
    let ended = |end| deliveries.iter().filter(|d| d.end() == end).count();
    assert_eq!((ended(DeliveryEnd::Gone), ended(DeliveryEnd::Disabled)), (1, 20));
    assert_eq!(world.notices().await, 21);
    assert_eq!(sink.count(), 21);
    world.indexes_are_empty().await;
    world.cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_shall_not_be_tried_again_is_dead_at_once() {
    let world = World::start(1).await;
    let sink = Sink::start().await;
    sink.script(
        "/hook",
        [Answer::status(489).header("upstash-nonretryable-error", "true")],
    );
    world.register("b", &sink.url("/hook")).await;
    world.send("b", "x").await;
    let delivery = only(world.settled(1).await);
    assert_eq!(delivery.end(), DeliveryEnd::NonRetryable);
    assert_eq!((world.notices().await, sink.count()), (1, 1));
    world.cluster.stop().await;
}

/// One URL hangs, one cannot be reached; the deliveries to a third are all made before the first call to the
/// hanging one has ended.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_or_slow_url_does_not_delay_another() {
    let world = World::start(1).await;
    let sink = Sink::start().await;
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nowhere = format!("http://{}/", closed.local_addr().unwrap());
    drop(closed);
    sink.script("/slow", [Answer::status(200).after(Duration::from_secs(25))]);
    world.register("slow", &sink.url("/slow")).await;
    world.register("dead", &nowhere).await;
    world.register("fine", &sink.url("/fine")).await;
    for n in 0..30 {
        for to in ["slow", "dead", "fine"] {
            world.send(to, &n.to_string()).await;
        }
    }
    sink.called("/fine", 30).await;
    assert_eq!(sink.calls("/slow").len(), 8, "as many at a time as one URL may have");
    let delivered = eventually("30 deliveries", async || {
        let all = world.deliveries().await;
        let delivered = all.iter().filter(|d| d.state() == DeliveryState::Delivered).count();
        (delivered == 30).then_some(all)
    })
    .await;
    let slow = delivered.iter().filter(|d| d.agent == "slow");
    assert!(
        slow.clone().all(|d| d.attempts.is_empty()),
        "none of the slow ones has ended"
    );
    world.cluster.kill(0).await;
}

/// A thousand deliveries cost far fewer log entries than they have attempts.
#[tokio::test(flavor = "multi_thread")]
async fn claims_and_outcomes_travel_together() {
    let world = World::start(1).await;
    let sink = Sink::start().await;
    for n in 0..20 {
        world.register(&format!("agent-{n}"), &sink.url(&format!("/{n}"))).await;
    }
    let sends = (0..1_000).map(|n| {
        let world = &world;
        async move { world.send(&format!("agent-{}", n % 20), "x").await }
    });
    futures::future::join_all(sends).await;
    let deliveries = world.settled(1_000).await;
    assert!(
        deliveries
            .iter()
            .all(|d| d.state() == DeliveryState::Delivered && d.attempt_no == 1)
    );
    assert_eq!(sink.count(), 1_000);
    let text = world.cluster.services(0).metrics_text();
    let entries: u64 = text
        .lines()
        .filter(|line| line.starts_with("agentpost_dispatch_entries_total"))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
        .sum();
    assert!(entries < 500, "{entries} entries for 1,000 deliveries");
    world.cluster.stop().await;
}

/// The old leader finishes its calls before it lets another lead, so nothing is called twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_graceful_transfer_with_calls_under_way_repeats_nothing() {
    let world = World::start(3).await;
    let sink = Sink::start().await;
    sink.script("/hook", [Answer::status(200).after(Duration::from_millis(300))]);
    world.register("b", &sink.url("/hook")).await;
    let mut sent = 0;
    for _ in 0..3 {
        for _ in 0..20 {
            world.send("b", "x").await;
        }
        sent += 20;
        sink.called("/hook", sent - 15).await;
        let to = world.cluster.follower().await;
        let leader = world.cluster.leader().await;
        let asked = world.cluster.services(leader).cluster.transfer(to as u64 + 1).await;
        asked.unwrap();
    }
    let deliveries = world.settled(sent).await;
    assert!(deliveries.iter().all(|d| d.state() == DeliveryState::Delivered));
    assert_eq!(deliveries.iter().map(|d| d.closed_unknown).sum::<u32>(), 0);
    assert_eq!(sink.count(), sent);
    world.cluster.caught_up().await;
    world.cluster.stop().await;
}

/// A node that stops in order waits for the call that it began.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_stops_finishes_its_calls() {
    let world = World::start(3).await;
    let sink = Sink::start().await;
    sink.script("/hook", [Answer::status(200).after(Duration::from_secs(2))]);
    world.register("b", &sink.url("/hook")).await;
    world.send("b", "x").await;
    sink.called("/hook", 1).await;
    let leader = world.cluster.leader().await;
    world.cluster.stop_node(leader).await;
    let delivery = only(world.settled(1).await);
    assert_eq!(
        (delivery.state(), delivery.closed_unknown),
        (DeliveryState::Delivered, 0)
    );
    assert_eq!(sink.count(), 1);
    world.cluster.stop().await;
}

/// The slow one: nobody knows what became of the dead leader's call, and after 33 s of cluster time the number
/// is closed and the next one is called.
#[tokio::test(flavor = "multi_thread")]
async fn the_call_of_a_leader_that_died_is_repeated_under_the_next_number() {
    let world = World::start(3).await;
    let sink = Sink::start().await;
    let never = Answer::status(200).after(Duration::from_secs(600));
    sink.script("/hook", [never, Answer::status(200)]);
    world.register("b", &sink.url("/hook")).await;
    world.send("b", "x").await;
    sink.called("/hook", 1).await;
    let leader = world.cluster.leader().await;
    world.cluster.kill(leader).await;
    let calls = sink.called("/hook", 2).await;
    assert!(calls[1].at - calls[0].at >= Duration::from_secs(30));
    assert_eq!(calls[1].header("webhook-id"), calls[0].header("webhook-id"));
    assert_eq!(
        (calls[1].header("x-attempt"), calls[1].header("upstash-retried")),
        ("2".to_owned(), "0".to_owned())
    );
    assert_eq!(calls[1].header("x-redelivery"), "possible");
    let delivery = only(world.settled(1).await);
    let ends: Vec<_> = delivery.attempts.iter().map(|attempt| attempt.end()).collect();
    assert_eq!(ends, [AttemptEnd::Unknown, AttemptEnd::Delivered]);
    world.cluster.stop().await;
}

/// More subscribers than one entry gives a message to: the rest follows in chunks, to each once.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_publish_reaches_every_inbox_once_and_in_order() {
    let world = World::start(3).await;
    for n in 0..1_000 {
        world.subscribe(&format!("agent-{n}"), "news", None).await;
    }
    let sink = Sink::start().await;
    world.subscribe("late", "news", Some(sink.url("/news"))).await;
    let mut seqs = Vec::new();
    for n in 0..3 {
        let sent = world.publish("news", &n.to_string()).await;
        assert!(sent.fanout_job);
        seqs.push(sent.seq);
    }
    let calls = sink.called("/news", 3).await;
    assert!(calls.iter().all(|call| call.body["event"] == "message.topic"));
    let services = world.cluster.services(0);
    for n in (0..1_000).step_by(111) {
        let state = services.reader.linearizable().await.unwrap();
        let items = query::inbox::after(&*state, world.team.id, &format!("agent-{n}"), 0, 10).unwrap();
        let received: Vec<_> = items.iter().map(|item| item.message.seq).collect();
        assert_eq!(received, seqs, "agent-{n}");
    }
    world.cluster.caught_up().await;
    world.cluster.stop().await;
}

/// Time goes on for what ages, although nobody writes; and stands still in an empty cluster, which stays quiet.
#[tokio::test(flavor = "multi_thread")]
async fn cluster_time_is_carried_forward_while_something_ages() {
    let world = World::start(1).await;
    let services = world.cluster.services(0);
    let applied = async || query::applied(&*services.reader.linearizable().await.unwrap()).unwrap();
    let quiet = applied().await;
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert_eq!(applied().await.last, quiet.last);
    world.send("b", "x").await;
    let sent = applied().await;
    let later = eventually("time without a write", async || {
        let now = applied().await;
        (now.cluster_ms >= sent.cluster_ms + 3_000).then_some(now)
    })
    .await;
    let entries = later.last.unwrap().index - sent.last.unwrap().index;
    let seconds = (later.cluster_ms - sent.cluster_ms) / 1_000;
    assert!(entries <= seconds + 1, "{entries} entries in {seconds} s");
    world.cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_of_a_deleted_webhook_are_cancelled_without_a_notice() {
    let world = World::start(1).await;
    let sink = Sink::start().await;
    sink.script("/hook", [Answer::status(500).header("retry-after", 1_000)]);
    world.register("b", &sink.url("/hook")).await;
    for n in 0..3 {
        world.send("b", "x").await;
        sink.called("/hook", n + 1).await;
    }
    world.delete_webhook("b").await;
    let deliveries = world.settled(3).await;
    assert!(deliveries.iter().all(|d| d.end() == DeliveryEnd::Deleted));
    assert_eq!((world.notices().await, sink.count()), (0, 3));
    world.indexes_are_empty().await;
    world.cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_node_goes_on_with_what_is_due() {
    let cluster = TestCluster::start_with(1, World::SETTINGS).await;
    let world = World::of(cluster).await;
    let sink = Sink::start().await;
    sink.script("/hook", [Answer::status(500), Answer::status(200)]);
    world.register("b", &sink.url("/hook")).await;
    world.send("b", "x").await;
    eventually("a recorded failure", async || {
        only(world.deliveries().await).attempts.first().cloned()
    })
    .await;
    world.cluster.kill(0).await;
    world.cluster.restart(0).await;
    let delivery = only(world.settled(1).await);
    assert_eq!(
        (
            delivery.closed_failed,
            delivery.closed_delivered,
            delivery.closed_unknown
        ),
        (1, 1, 0)
    );
    world.cluster.stop().await;
}
