//! The webhook dispatcher in a cluster of real nodes.
//!
//! Assertions about time are lower bounds: on a busy machine a retry may be late, never early.

use std::time::Duration;

use agentpost_proto::record::{AttemptEnd, DeliveryEnd, DeliveryState};
use agentpost_raft_store::core::query;
use agentpost_testkit::ports;
use agentpost_testkit::receiver::{Answer, Receiver};
use futures::future::join_all;

use crate::common::webhooks::{WebhookOffice, only};
use crate::common::{TestCluster, eventually, read_state};

#[tokio::test(flavor = "multi_thread")]
async fn a_message_reaches_a_webhook_once() {
    let office = WebhookOffice::start(3).await;
    let receiver = Receiver::start().await.unwrap();
    office.register("b", &receiver.url("/hook")).await;
    // The leader dispatches, whichever node accepted the message.
    let follower = office.cluster.follower().await;
    let sent = office.send_through(follower, "b", "hello").await;
    let call = only(receiver.called("/hook", 1).await);
    let delivery = only(office.settled(1).await);
    assert_eq!(delivery.state(), DeliveryState::Delivered);
    assert_eq!((delivery.attempt_no, delivery.closed_delivered), (1, 1));
    assert_eq!(delivery.message_seq, sent.seq);
    assert_eq!(call.json()["body"]["text"], "hello");
    assert_eq!(call.json()["deliveryId"], call.header("webhook-id").unwrap());
    assert_eq!(
        (call.header("x-attempt"), call.header("x-retry-step")),
        (Some("1"), Some("0"))
    );
    let epoch = delivery.attempts[0].epoch;
    assert_eq!(call.header("x-dispatch-epoch"), Some(&*epoch.to_string()));
    assert_eq!(receiver.count(), 1);
    office.indexes_are_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_follow_the_schedule_and_none_is_early() {
    let office = WebhookOffice::start(1).await;
    let receiver = Receiver::start().await.unwrap();
    receiver.script("/hook", [500, 503, 204].map(Answer::status));
    office.register("b", &receiver.url("/hook")).await;
    office.send("b", "x").await;
    let calls = receiver.called("/hook", 3).await;
    assert!(calls[1].at_us - calls[0].at_us >= 1_000_000);
    assert!(calls[2].at_us - calls[1].at_us >= 10_000_000);
    let steps: Vec<_> = calls.iter().map(|call| call.header("upstash-retried")).collect();
    assert_eq!(steps, ["0", "1", "2"].map(Some));
    let id = calls[0].header("webhook-id");
    assert!(id.is_some());
    assert!(
        calls
            .iter()
            .all(|call| call.header("webhook-id") == id && call.header("x-redelivery").is_none())
    );
    let delivery = only(office.settled(1).await);
    assert_eq!(
        (
            delivery.closed_failed,
            delivery.closed_delivered,
            delivery.closed_unknown
        ),
        (2, 1, 0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_may_ask_for_more_time() {
    let office = WebhookOffice::start(1).await;
    let receiver = Receiver::start().await.unwrap();
    let busy = Answer::status(429).header("retry-after", 3);
    receiver.script("/hook", [busy, Answer::status(200)]);
    office.register("b", &receiver.url("/hook")).await;
    office.send("b", "x").await;
    let calls = receiver.called("/hook", 2).await;
    assert!(calls[1].at_us - calls[0].at_us >= 3_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn gone_ends_all_deliveries_of_the_url_and_tells_the_sender_of_each() {
    let office = WebhookOffice::start(1).await;
    let receiver = Receiver::start().await.unwrap();
    let wait = Answer::status(500).header("retry-after", 1_000);
    let mut script = vec![wait; 20];
    script.push(Answer::status(410));
    receiver.script("/hook", script);
    office.register("b", &receiver.url("/hook")).await;
    for n in 0..20 {
        office.send("b", &n.to_string()).await;
        receiver.called("/hook", n + 1).await;
    }
    office.send("b", "last").await;
    let deliveries = office.settled(21).await;
    assert!(deliveries.iter().all(|d| d.state() == DeliveryState::Dead));
    let ended = |end| deliveries.iter().filter(|d| d.end() == end).count();
    assert_eq!((ended(DeliveryEnd::Gone), ended(DeliveryEnd::Disabled)), (1, 20));
    assert_eq!(office.notices().await, 21);
    assert_eq!(receiver.count(), 21);
    office.indexes_are_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_non_retryable_answer_makes_a_dead_letter_at_once() {
    let office = WebhookOffice::start(1).await;
    let receiver = Receiver::start().await.unwrap();
    receiver.script(
        "/hook",
        [Answer::status(489).header("upstash-nonretryable-error", "true")],
    );
    office.register("b", &receiver.url("/hook")).await;
    office.send("b", "x").await;
    let delivery = only(office.settled(1).await);
    assert_eq!(delivery.end(), DeliveryEnd::NonRetryable);
    assert_eq!((office.notices().await, receiver.count()), (1, 1));
}

/// One URL hangs and one refuses connections. All deliveries to a third URL are made before the first call to the hanging
/// one has ended.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_or_slow_url_does_not_delay_another() {
    let office = &WebhookOffice::start(1).await;
    let receiver = Receiver::start().await.unwrap();
    receiver.script("/slow", [Answer::never()]);
    office.register("slow", &receiver.url("/slow")).await;
    office.register("dead", &ports::refusing_url()).await;
    office.register("fine", &receiver.url("/fine")).await;
    // All messages are sent at once, because the first call to the slow URL ends after 30 s and this machine may be busy.
    let sends = (0..30).flat_map(|n| ["slow", "dead", "fine"].map(|to| (to, n.to_string())));
    join_all(sends.map(|(to, body)| async move { office.send(to, &body).await })).await;
    receiver.called("/fine", 30).await;
    assert_eq!(
        receiver.calls_to("/slow").len(),
        8,
        "as many at a time as one URL may have"
    );
    let delivered = eventually("30 deliveries", async || {
        let all = office.deliveries().await;
        let delivered = all.iter().filter(|d| d.state() == DeliveryState::Delivered).count();
        (delivered == 30).then_some(all)
    })
    .await;
    let slow = delivered.iter().filter(|d| d.agent == "slow");
    assert!(
        slow.clone().all(|d| d.attempts.is_empty()),
        "none of the slow ones has ended"
    );
    office.cluster.kill(0).await;
}

/// Claims and outcomes are batched: a thousand deliveries take far fewer log entries than attempts.
#[tokio::test(flavor = "multi_thread")]
async fn claims_and_outcomes_are_batched() {
    let office = WebhookOffice::start(1).await;
    let receiver = Receiver::start().await.unwrap();
    for n in 0..20 {
        office
            .register(&format!("agent-{n}"), &receiver.url(&format!("/{n}")))
            .await;
    }
    let sends = (0..1_000).map(|n| {
        let office = &office;
        async move { office.send(&format!("agent-{}", n % 20), "x").await }
    });
    join_all(sends).await;
    let deliveries = office.settled(1_000).await;
    assert!(
        deliveries
            .iter()
            .all(|d| d.state() == DeliveryState::Delivered && d.attempt_no == 1)
    );
    assert_eq!(receiver.count(), 1_000);
    let text = office.cluster.services(0).metrics_text();
    let entries: u64 = text
        .lines()
        .filter(|line| line.starts_with("agentpost_dispatch_entries_total"))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
        .sum();
    assert!(entries < 500, "{entries} entries for 1,000 deliveries");
}

/// The old leader finishes its calls before it hands over, so no call is repeated.
#[tokio::test(flavor = "multi_thread")]
async fn a_graceful_transfer_with_calls_under_way_repeats_nothing() {
    let office = WebhookOffice::start(3).await;
    let receiver = Receiver::start().await.unwrap();
    receiver.script("/hook", [Answer::status(200).after(Duration::from_millis(300))]);
    office.register("b", &receiver.url("/hook")).await;
    let mut sent = 0;
    for _ in 0..3 {
        for _ in 0..20 {
            office.send("b", "x").await;
        }
        sent += 20;
        receiver.called("/hook", sent - 15).await;
        let to = office.cluster.follower().await;
        let leader = office.cluster.leader().await;
        let asked = office.cluster.services(leader).cluster.transfer(to as u64 + 1).await;
        asked.unwrap();
    }
    let deliveries = office.settled(sent).await;
    assert!(deliveries.iter().all(|d| d.state() == DeliveryState::Delivered));
    assert_eq!(deliveries.iter().map(|d| d.closed_unknown).sum::<u32>(), 0);
    assert_eq!(receiver.count(), sent);
    office.cluster.caught_up().await;
}

/// A graceful stop waits for open calls.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_stops_finishes_its_calls() {
    let office = WebhookOffice::start(3).await;
    let receiver = Receiver::start().await.unwrap();
    receiver.script("/hook", [Answer::status(200).after(Duration::from_secs(2))]);
    office.register("b", &receiver.url("/hook")).await;
    office.send("b", "x").await;
    receiver.called("/hook", 1).await;
    let leader = office.cluster.leader().await;
    office.cluster.stop_node(leader).await;
    let delivery = only(office.settled(1).await);
    assert_eq!(
        (delivery.state(), delivery.closed_unknown),
        (DeliveryState::Delivered, 0)
    );
    assert_eq!(receiver.count(), 1);
}

/// The outcome of the dead leader's call is unknown. After 33 s of cluster time its attempt is closed and the next one is
/// made.
#[tokio::test(flavor = "multi_thread")]
async fn the_call_of_a_leader_that_died_is_repeated_under_the_next_number() {
    let office = WebhookOffice::start(3).await;
    let receiver = Receiver::start().await.unwrap();
    receiver.script("/hook", [Answer::never(), Answer::status(200)]);
    office.register("b", &receiver.url("/hook")).await;
    office.send("b", "x").await;
    receiver.called("/hook", 1).await;
    let leader = office.cluster.leader().await;
    office.cluster.kill(leader).await;
    let calls = receiver.called("/hook", 2).await;
    assert!(calls[1].at_us - calls[0].at_us >= 30_000_000);
    assert_eq!(calls[1].header("webhook-id"), calls[0].header("webhook-id"));
    assert_eq!(
        (calls[1].header("x-attempt"), calls[1].header("upstash-retried")),
        (Some("2"), Some("0"))
    );
    assert_eq!(calls[1].header("x-redelivery"), Some("possible"));
    let delivery = only(office.settled(1).await);
    let ends: Vec<_> = delivery.attempts.iter().map(|attempt| attempt.end()).collect();
    assert_eq!(ends, [AttemptEnd::Unknown, AttemptEnd::Delivered]);
}

/// There are more subscribers than one log entry serves; further entries serve the rest, each subscriber once.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_publish_reaches_every_inbox_once_and_in_order() {
    let office = WebhookOffice::start(3).await;
    for n in 0..1_000 {
        office.subscribe(&format!("agent-{n}"), "news", None).await;
    }
    let receiver = Receiver::start().await.unwrap();
    office.subscribe("late", "news", Some(receiver.url("/news"))).await;
    let mut seqs = Vec::new();
    for n in 0..3 {
        let sent = office.publish("news", &n.to_string()).await;
        assert!(sent.fanout_job);
        seqs.push(sent.seq);
    }
    let calls = receiver.called("/news", 3).await;
    assert!(calls.iter().all(|call| call.json()["event"] == "message.topic"));
    let services = office.cluster.services(0);
    for n in (0..1_000).step_by(111) {
        let state = read_state(&services).await;
        let items = query::inbox::after(&*state, office.team.id, &format!("agent-{n}"), 0, 10).unwrap();
        let received: Vec<_> = items.iter().map(|item| item.message.seq).collect();
        assert_eq!(received, seqs, "agent-{n}");
    }
    office.cluster.caught_up().await;
}

/// Cluster time advances without writes while a delivery waits. In an empty cluster it stands still, and no entries are
/// written.
#[tokio::test(flavor = "multi_thread")]
async fn cluster_time_is_carried_forward_while_something_ages() {
    let office = WebhookOffice::start(1).await;
    let services = office.cluster.services(0);
    let applied = async || query::applied(&*read_state(&services).await).unwrap();
    let quiet = applied().await;
    // A cluster that ticks writes an entry a second. Under load this wait may miss that; it cannot fail without it.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert_eq!(applied().await.last, quiet.last);
    office.send("b", "x").await;
    let sent = applied().await;
    let later = eventually("time without a write", async || {
        let now = applied().await;
        (now.cluster_ms >= sent.cluster_ms + 3_000).then_some(now)
    })
    .await;
    let entries = later.last.unwrap().index - sent.last.unwrap().index;
    let seconds = (later.cluster_ms - sent.cluster_ms) / 1_000;
    assert!(entries <= seconds + 1, "{entries} entries in {seconds} s");
}

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_of_a_deleted_webhook_are_cancelled_without_a_notice() {
    let office = WebhookOffice::start(1).await;
    let receiver = Receiver::start().await.unwrap();
    receiver.script("/hook", [Answer::status(500).header("retry-after", 1_000)]);
    office.register("b", &receiver.url("/hook")).await;
    for n in 0..3 {
        office.send("b", "x").await;
        receiver.called("/hook", n + 1).await;
    }
    office.delete_webhook("b").await;
    let deliveries = office.settled(3).await;
    assert!(deliveries.iter().all(|d| d.end() == DeliveryEnd::Deleted));
    assert_eq!((office.notices().await, receiver.count()), (0, 3));
    office.indexes_are_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_node_goes_on_with_what_is_due() {
    let cluster = TestCluster::start_with(1, WebhookOffice::SETTINGS).await;
    let office = WebhookOffice::of(cluster).await;
    let receiver = Receiver::start().await.unwrap();
    receiver.script("/hook", [Answer::status(500), Answer::status(200)]);
    office.register("b", &receiver.url("/hook")).await;
    office.send("b", "x").await;
    eventually("a recorded failure", async || {
        only(office.deliveries().await).attempts.first().cloned()
    })
    .await;
    office.cluster.kill(0).await;
    office.cluster.restart(0).await;
    let delivery = only(office.settled(1).await);
    assert_eq!(
        (
            delivery.closed_failed,
            delivery.closed_delivered,
            delivery.closed_unknown
        ),
        (1, 1, 0)
    );
}

/// A call may outlive the leadership that made it. This test cannot see the calls of a node that was cut off, so the
/// node is killed; the next leader cannot tell the difference.
#[tokio::test(flavor = "multi_thread")]
async fn calls_of_the_leader_before_count_against_the_limit_of_a_url() {
    let office = &WebhookOffice::start(3).await;
    let receiver = Receiver::start().await.unwrap();
    receiver.script("/slow", [Answer::never()]);
    office.register("slow", &receiver.url("/slow")).await;
    office.register("fine", &receiver.url("/fine")).await;
    join_all((0..20).map(|n| async move { office.send("slow", &n.to_string()).await })).await;
    receiver.called("/slow", 8).await;
    office.cluster.kill(office.cluster.leader().await).await;
    // The URLs take turns, so the slow one would have had its calls before the fine one has all of its own.
    join_all((0..30).map(|n| async move { office.send("fine", &n.to_string()).await })).await;
    receiver.called("/fine", 30).await;
    let called = receiver.calls_to("/slow").len();
    // On a machine that is slow enough some of the eight have been taken over by now, and others were made instead.
    let deliveries = office.deliveries().await;
    let closed: usize = deliveries
        .iter()
        .filter(|d| d.agent == "slow")
        .map(|d| d.attempts.len())
        .sum();
    assert!(called <= 8 + closed, "{called} calls, {closed} of them closed");
}
