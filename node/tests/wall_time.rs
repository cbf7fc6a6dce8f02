//! The calendar goes by the clocks of a majority: one that is days off moves nothing, wherever it is.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;
#[path = "common/sink.rs"]
mod sink;
#[path = "common/webhooks.rs"]
mod webhooks;

use agentpost_node::base::clock::Clock;
use agentpost_raft_store::core::query;

use common::{TestCluster, eventually};
use sink::Sink;
use webhooks::World;

const HOUR_MS: u64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS as i64;

#[track_caller]
fn is_now(ms: u64) {
    let now_ms = Clock::system().wall_ms();
    assert!(ms.abs_diff(now_ms) < HOUR_MS, "{ms} is far from {now_ms}");
}

/// Writes something and tells what wall time stands at now.
async fn write(world: &World, node: usize) -> u64 {
    world.send_through(node, "b", "x").await;
    let reader = world.cluster.services(node).reader;
    let state = eventually("a read", async || reader.linearizable().await.ok()).await;
    query::applied(&*state).unwrap().wall_ms
}

/// How far `node` says that the clock of `of` is ahead.
fn divergence_s(cluster: &TestCluster, node: usize, of: usize) -> Option<f64> {
    let name = format!("agentpost_clock_divergence_seconds{{node=\"{}\"}} ", of + 1);
    let text = cluster.services(node).metrics_text();
    let value = text.lines().find_map(|line| line.strip_prefix(&name));
    value.map(|value| value.parse().unwrap())
}

/// Waits until every node has seen which clock is off, and no other.
async fn all_see(cluster: &TestCluster, odd: Option<usize>) {
    eventually("a divergence in the metrics of all nodes", async || {
        let sees = |node: usize, of: usize| {
            let is_odd = divergence_s(cluster, node, of).map(|seconds| seconds.abs() > 5.0);
            is_odd == Some(odd == Some(of))
        };
        (0..3).all(|node| (0..3).all(|of| sees(node, of))).then_some(())
    })
    .await;
}

/// Lets node `to` lead.
async fn hand_over(cluster: &TestCluster, to: usize) {
    eventually("a hand-over", async || {
        let leader = cluster.leader().await;
        let handle = cluster.services(leader).cluster;
        (leader == to || handle.transfer(to as u64 + 1).await.is_ok()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_clock_of_three_moves_nothing_on_a_follower_or_on_the_leader() {
    let world = World::start(3).await;
    let cluster = &world.cluster;
    for ms in [2 * DAY_MS, -2 * DAY_MS] {
        for leads in [false, true] {
            let odd = cluster.follower().await;
            if leads {
                hand_over(cluster, odd).await;
            }
            let clock = cluster.services(odd).clock;
            clock.shift(ms);
            // Before the others were asked again, and after.
            is_now(write(&world, odd).await);
            all_see(cluster, Some(odd)).await;
            for node in 0..3 {
                is_now(write(&world, node).await);
            }
            // A node that takes over with such a clock.
            hand_over(cluster, odd).await;
            is_now(write(&world, odd).await);
            clock.shift(-ms);
            all_see(cluster, None).await;
        }
    }
    is_now(write(&world, 0).await);
    world.cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_clocks_of_three_move_the_calendar_and_nothing_moves_it_back() {
    let world = World::start(3).await;
    let leader = world.cluster.leader().await;
    // The leader is the one that stays.
    let others: Vec<_> = (0..3).filter(|node| *node != leader).collect();
    for node in &others {
        world.cluster.services(*node).clock.shift(2 * DAY_MS);
    }
    let ahead_ms = eventually("wall time two days ahead", async || {
        let ms = write(&world, leader).await;
        (ms > Clock::system().wall_ms() + DAY_MS as u64).then_some(ms)
    })
    .await;
    for node in &others {
        world.cluster.services(*node).clock.shift(-2 * DAY_MS);
    }
    all_see(&world.cluster, None).await;
    assert!(write(&world, leader).await >= ahead_ms);
    world.cluster.stop().await;
}

/// The founder asks the others before it writes the first date.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_founded_by_a_node_from_another_day_begins_today() {
    let clock_of = |node| {
        let clock = Clock::system();
        if node == 0 {
            clock.shift(2 * DAY_MS);
        }
        clock
    };
    let cluster = TestCluster::start_with_clocks(3, World::SETTINGS, clock_of).await;
    let services = cluster.services(0);
    let state = eventually("a read", async || services.reader.linearizable().await.ok()).await;
    let hash = services.secrets.key_hash(&cluster.admin_key());
    is_now(query::key::by_hash(&*state, &hash).unwrap().unwrap().created_at_ms);
    let world = World::of(cluster).await;
    is_now(write(&world, 0).await);
    world.cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_signed_with_a_time_near_that_of_the_others() {
    let world = World::start(3).await;
    let sink = Sink::start().await;
    world.register("b", &sink.url("/hook")).await;
    let leader = world.cluster.leader().await;
    let clock = world.cluster.services(leader).clock;
    for (calls, ms) in [(1, 2 * DAY_MS), (2, -4 * DAY_MS)] {
        clock.shift(ms);
        world.send("b", "x").await;
        let call = sink.called("/hook", calls).await.remove(calls - 1);
        let timestamp: u64 = call.header("webhook-timestamp").parse().unwrap();
        is_now(timestamp * 1000);
    }
    world.cluster.stop().await;
}
