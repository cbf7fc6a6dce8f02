//! Webhooks while leaders die and hand over: what arrives, what is recorded, and that it ends.
//!
//! Waits are long (an attempt of unknown outcome is closed after 33 s, the last step of the ladder is 100 s), so
//! what can run side by side does.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use agentpost::api::abbababa::DeliveryDetail;
use anyhow::Result;
use jepsen_like_tests::checker::dispatch;
use jepsen_like_tests::cluster::Cluster;
use jepsen_like_tests::deliveries::{Deletion, Evidence, Faults, ended};
use jepsen_like_tests::receiver::{Answer, Pace};
use jepsen_like_tests::webhooks::Webhooks;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::sleep;

/// The whole ladder, five unknown attempts, and a machine with other things to do.
const PATIENCE: Duration = Duration::from_secs(300);

fn number_from(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}

fn valid(evidence: &Evidence) {
    let violations = dispatch::check(evidence);
    let some = &violations[..violations.len().min(8)];
    assert!(
        violations.is_empty(),
        "{} violations, first: {some:#?}",
        violations.len()
    );
}

/// Calls of the one delivery to an agent, and how many of its attempts ended unknown.
fn calls_and_unknown(evidence: &Evidence, agent: &str) -> (usize, usize) {
    let of_agent = evidence.deliveries.values().find(|d| d.to_agent_id == agent);
    let delivery = of_agent.unwrap();
    assert_eq!(delivery.state, "delivered", "{agent}: {delivery:?}");
    (
        evidence.by_delivery()[delivery.id.as_str()].len(),
        ended(delivery, "unknown"),
    )
}

/// One leader after the other dies at a place of the dispatcher, each with one delivery in its hands. The places
/// follow within less than 33 s, so that no delivery is in two leaders' hands.
async fn die_at(places: &[(&str, usize, usize)]) -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let names: Vec<&str> = places.iter().map(|(place, _, _)| *place).collect();
    let webhooks = Webhooks::start(&cluster, "failpoints", &names).await?;
    for (n, place) in names.iter().enumerate() {
        let leader = cluster.leader().await?;
        let doomed = leader % 3 + 1;
        cluster.arm(doomed, place).await?;
        cluster.transfer(doomed).await?;
        webhooks.send(&cluster, place, &format!("key-{n}")).await?;
        cluster.ended(doomed).await?;
        cluster.restart(doomed).await?;
        cluster.leader().await?;
    }
    let faults = Faults {
        unclean: places.len() as u32,
        stops: 0,
    };
    let evidence = webhooks.finish(&cluster, places.len(), faults, PATIENCE).await?;
    valid(&evidence);
    for (place, calls, unknown) in places {
        assert_eq!(calls_and_unknown(&evidence, place), (*calls, *unknown), "{place}");
    }
    Ok(())
}

/// The table of crash points: what the receiver sees, and what is recorded as unknown.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_dies_costs_at_most_one_call_more() {
    let before = [("before-claim", 1, 0), ("claim-committed", 1, 1), ("before-call", 1, 1)];
    let after = [
        ("after-call", 2, 1),
        ("before-outcome", 2, 1),
        ("outcome-committed", 1, 0),
    ];
    let (first, second) = tokio::join!(die_at(&before), die_at(&after));
    first.unwrap();
    second.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaders_killed_at_any_moment_under_load_break_no_rule() {
    const KILLS: u32 = 4;
    let seed = number_from("AGENTPOST_SEED").unwrap_or_else(rand::random);
    println!("AGENTPOST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::start(3).await.unwrap();
    let agents = ["quick", "slow", "shaky", "refusing"];
    let webhooks = Webhooks::start(&cluster, "kills", &agents).await.unwrap();
    let slow = Answer::status(200).after(Duration::from_millis(300));
    webhooks.receiver.script("/slow", Pace::Calls, [], slow);
    webhooks.receiver.statuses("/shaky", &[500], 200);
    let for_good = Answer::status(489).header("upstash-nonretryable-error", "true");
    webhooks.receiver.script("/refusing", Pace::Calls, [], for_good);
    let load = webhooks.load(&cluster, &agents, Duration::from_millis(15)).unwrap();
    for _ in 0..KILLS {
        sleep(Duration::from_millis(random.random_range(200..2_500))).await;
        let leader = cluster.leader().await.unwrap();
        cluster.kill(leader).unwrap();
        assert_ne!(cluster.leader().await.unwrap(), leader);
        sleep(Duration::from_millis(random.random_range(0..1_500))).await;
        cluster.restart(leader).await.unwrap();
    }
    let sent = load.end().await.unwrap();
    let faults = Faults {
        unclean: KILLS,
        stops: 0,
    };
    let evidence = webhooks.finish(&cluster, sent, faults, PATIENCE).await.unwrap();
    valid(&evidence);
    let unknown: usize = evidence.deliveries.values().map(|d| ended(d, "unknown")).sum();
    println!(
        "{sent} deliveries, {} calls, {unknown} unknown attempts",
        evidence.calls.len()
    );
    assert!(sent > 100, "only {sent} messages were sent");
    assert!(!evidence.dead.is_empty());
}

/// A leader that stands still for a moment reports what it had begun; one that stands still for longer than a call may
/// take comes too late with it, and starts nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_wakes_up_reports_or_comes_too_late() {
    let cluster = Cluster::start(3).await.unwrap();
    let webhooks = Webhooks::start(&cluster, "pauses", &["slow"]).await.unwrap();
    let slow = Answer::status(200).after(Duration::from_secs(2));
    webhooks.receiver.script("/slow", Pace::Calls, [], slow);
    let mut sent = 0;
    let faults = Faults { unclean: 1, stops: 1 };
    for (pause_s, repeated) in [(3, false), (40, true)] {
        let leader = cluster.leader().await.unwrap();
        let calls = webhooks.receiver.count();
        for _ in 0..6 {
            webhooks.send(&cluster, "slow", &format!("key-{sent}")).await.unwrap();
            sent += 1;
        }
        webhooks.receiver.wait_for(calls + 6, PATIENCE).await.unwrap();
        cluster.pause(leader).unwrap();
        let next = cluster.leader_without(leader).await.unwrap();
        assert_ne!(next, leader);
        sleep(Duration::from_secs(pause_s)).await;
        cluster.resume(leader).unwrap();
        let evidence = webhooks.finish(&cluster, sent, faults, PATIENCE).await.unwrap();
        valid(&evidence);
        let unknown: usize = evidence.deliveries.values().map(|d| ended(d, "unknown")).sum();
        println!(
            "after {pause_s} s: {} calls, {unknown} unknown attempts",
            evidence.calls.len()
        );
        assert_eq!(unknown > 0, repeated, "after {pause_s} s");
        assert!(evidence.deliveries.values().all(|d| d.state == "delivered"));
    }
}

/// Leadership goes round while calls are under way: nothing is unknown, nothing is called twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn graceful_transfers_repeat_no_call() {
    let transfers = number_from("AGENTPOST_TRANSFERS").unwrap_or(20);
    let cluster = Cluster::start(3).await.unwrap();
    let agents = ["quick", "slow", "shaky"];
    let webhooks = Webhooks::start(&cluster, "transfers", &agents).await.unwrap();
    let slow = Answer::status(200).after(Duration::from_millis(400));
    webhooks.receiver.script("/slow", Pace::Calls, [], slow);
    webhooks.receiver.statuses("/shaky", &[500], 200);
    let load = webhooks.load(&cluster, &agents, Duration::from_millis(25)).unwrap();
    for _ in 0..transfers {
        let leader = cluster.leader().await.unwrap();
        cluster.transfer(leader % 3 + 1).await.unwrap();
        sleep(Duration::from_millis(100)).await;
    }
    let sent = load.end().await.unwrap();
    let evidence = webhooks
        .finish(&cluster, sent, Faults::default(), PATIENCE)
        .await
        .unwrap();
    valid(&evidence);
    let others = evidence.deliveries.values().filter(|d| d.state != "delivered");
    assert_eq!(others.collect::<Vec<_>>(), Vec::<&DeliveryDetail>::new());
    assert_eq!(evidence.calls.len(), sent + sent / agents.len());
    let epochs = evidence.calls.iter().map(|call| call.epoch);
    let epochs: std::collections::BTreeSet<u64> = epochs.collect();
    println!(
        "{transfers} transfers: {sent} deliveries, {} calls in {} epochs",
        evidence.calls.len(),
        epochs.len()
    );
    assert!(epochs.len() as u64 > transfers / 2, "hardly any call in between");
}

/// Nothing fails but the receivers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_always_failing_receiver_gets_four_calls_and_a_deleted_one_no_more() {
    let cluster = Cluster::start(3).await.unwrap();
    let webhooks = Webhooks::start(&cluster, "ladder", &["failing", "leaving"])
        .await
        .unwrap();
    for agent in ["failing", "leaving"] {
        webhooks.receiver.statuses(&format!("/{agent}"), &[], 500);
        webhooks.send(&cluster, agent, agent).await.unwrap();
    }
    let calls = webhooks.receiver.wait_for(2, PATIENCE).await.unwrap();
    assert_eq!(calls.len(), 2);
    let leaving = cluster.client(&webhooks.team, "leaving").unwrap();
    leaving.delete_webhook().await.unwrap();
    let deletion = Deletion {
        path: "/leaving".to_owned(),
        at_us: webhooks.receiver.started().elapsed().as_micros() as u64,
    };
    let mut evidence = webhooks.finish(&cluster, 2, Faults::default(), PATIENCE).await.unwrap();
    evidence.deletions = vec![deletion];
    valid(&evidence);
    let failing = evidence
        .deliveries
        .values()
        .find(|d| d.to_agent_id == "failing")
        .unwrap();
    assert_eq!(
        (failing.state.as_str(), failing.end.as_deref()),
        ("dead", Some("exhausted"))
    );
    let calls = evidence.by_delivery();
    let calls = calls[failing.id.as_str()].iter();
    let steps: Vec<(u32, u32)> = calls.map(|call| (call.attempt, call.step)).collect();
    assert_eq!(steps, [(1, 0), (2, 1), (3, 2), (4, 3)]);
    println!(
        "retries came {:?} ms after their time",
        dispatch::lateness_ms(&evidence)
    );
    let left = evidence
        .deliveries
        .values()
        .find(|d| d.to_agent_id == "leaving")
        .unwrap();
    assert_eq!(
        (left.state.as_str(), left.end.as_deref()),
        ("cancelled", Some("deleted"))
    );
}
