//! Wall time follows the clocks of a majority: one clock that is days off changes nothing, on whichever node it is.

use agentpost_node::base::clock::Clock;
use agentpost_raft_store::core::query;
use agentpost_testkit::receiver::Receiver;

use crate::common::webhooks::WebhookOffice;
use crate::common::{TestCluster, eventually, read_state};

const HOUR_MS: u64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS as i64;

#[track_caller]
fn is_now(ms: u64) {
    let now_ms = Clock::system().wall_ms();
    assert!(ms.abs_diff(now_ms) < HOUR_MS, "{ms} is far from {now_ms}");
}

/// Sends a message and returns the wall time of its log entry.
async fn write(office: &WebhookOffice, node: usize) -> u64 {
    office.send_through(node, "b", "x").await;
    let state = read_state(&office.cluster.services(node)).await;
    query::applied(&*state).unwrap().wall_ms
}

/// The seconds by which the clock of `of` is ahead according to the metrics of `node`.
fn divergence_s(cluster: &TestCluster, node: usize, of: usize) -> Option<f64> {
    let name = format!("agentpost_clock_divergence_seconds{{node=\"{}\"}} ", of + 1);
    let text = cluster.services(node).metrics_text();
    let value = text.lines().find_map(|line| line.strip_prefix(&name));
    value.map(|value| value.parse().unwrap())
}

/// Waits until the metrics of every node show exactly this clock as wrong.
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

/// Transfers leadership to node `to`.
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
    let office = WebhookOffice::start(3).await;
    let cluster = &office.cluster;
    for ms in [2 * DAY_MS, -2 * DAY_MS] {
        for leads in [false, true] {
            let odd = cluster.follower().await;
            if leads {
                hand_over(cluster, odd).await;
            }
            let clock = cluster.services(odd).clock;
            clock.shift(ms);
            // Check before the node has asked the others again, and after.
            is_now(write(&office, odd).await);
            all_see(cluster, Some(odd)).await;
            for node in 0..3 {
                is_now(write(&office, node).await);
            }
            // The node with the wrong clock takes over.
            hand_over(cluster, odd).await;
            is_now(write(&office, odd).await);
            clock.shift(-ms);
            all_see(cluster, None).await;
        }
    }
    is_now(write(&office, 0).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_clocks_of_three_move_the_calendar_and_nothing_moves_it_back() {
    let office = WebhookOffice::start(3).await;
    let leader = office.cluster.leader().await;
    // The leader's clock stays right.
    let others: Vec<_> = (0..3).filter(|node| *node != leader).collect();
    for node in &others {
        office.cluster.services(*node).clock.shift(2 * DAY_MS);
    }
    let ahead_ms = eventually("wall time two days ahead", async || {
        let ms = write(&office, leader).await;
        (ms > Clock::system().wall_ms() + DAY_MS as u64).then_some(ms)
    })
    .await;
    for node in &others {
        office.cluster.services(*node).clock.shift(-2 * DAY_MS);
    }
    all_see(&office.cluster, None).await;
    assert!(write(&office, leader).await >= ahead_ms);
}

/// The founder asks the other nodes for their time before it writes the first entry.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_founded_by_a_node_from_another_day_begins_today() {
    let clock_of = |node| {
        let clock = Clock::system();
        if node == 0 {
            clock.shift(2 * DAY_MS);
        }
        clock
    };
    let cluster = TestCluster::start_with_clocks(3, WebhookOffice::SETTINGS, clock_of).await;
    let services = cluster.services(0);
    let state = read_state(&services).await;
    let hash = services.secrets.key_hash(&cluster.admin_key());
    is_now(query::key::by_hash(&*state, &hash).unwrap().unwrap().created_at_ms);
    let office = WebhookOffice::of(cluster).await;
    is_now(write(&office, 0).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_signed_with_a_time_near_that_of_the_others() {
    let office = WebhookOffice::start(3).await;
    let receiver = Receiver::start().await.unwrap();
    office.register("b", &receiver.url("/hook")).await;
    let leader = office.cluster.leader().await;
    let clock = office.cluster.services(leader).clock;
    for (calls, ms) in [(1, 2 * DAY_MS), (2, -4 * DAY_MS)] {
        clock.shift(ms);
        office.send("b", "x").await;
        let call = receiver.called("/hook", calls).await.remove(calls - 1);
        let timestamp: u64 = call.header("webhook-timestamp").unwrap().parse().unwrap();
        is_now(timestamp * 1000);
    }
}
