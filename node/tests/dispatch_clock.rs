//! Wall clocks that jump by days neither fire the ladder nor hold it up.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;
#[path = "common/sink.rs"]
mod sink;
#[path = "common/webhooks.rs"]
mod webhooks;

use std::time::Duration;

use agentpost_proto::limits::RETRY_DELAYS_MS;
use agentpost_proto::record::DeliveryState;
use tokio::time::sleep;

use sink::{Answer, Sink};
use webhooks::{World, only};

const DAY_MS: i64 = 24 * 3600 * 1000;

/// One after the other: the leader's clock, the others', all of them, forward and back.
async fn jump(world: &World, turn: usize) {
    let leader = world.cluster.leader().await;
    let ms = [2 * DAY_MS, -2 * DAY_MS, -2 * DAY_MS, 2 * DAY_MS][turn % 4];
    for node in world.cluster.running() {
        let moves = match turn % 3 {
            0 => node == leader,
            1 => node != leader,
            _ => true,
        };
        if moves {
            world.cluster.services(node).clock.shift(ms);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_that_jump_two_days_do_not_move_the_ladder() {
    let world = World::start(3).await;
    let sink = Sink::start().await;
    sink.script("/hook", [500, 500, 500].map(Answer::status));
    world.register("b", &sink.url("/hook")).await;
    world.send("b", "x").await;
    let mut turn = 0;
    while sink.calls("/hook").len() < 3 {
        sleep(Duration::from_millis(300)).await;
        jump(&world, turn).await;
        turn += 1;
        assert!(turn < 200, "the ladder stands still: {:?}", world.deliveries().await);
    }
    // The last step is 100 s away, on every clock that counts.
    for _ in 0..8 {
        jump(&world, turn).await;
        turn += 1;
        sleep(Duration::from_millis(500)).await;
    }
    let calls = sink.calls("/hook");
    assert_eq!(calls.len(), 3, "the last step did not wait");
    for (pair, delay_ms) in calls.windows(2).zip(RETRY_DELAYS_MS) {
        assert!(pair[1].at - pair[0].at >= Duration::from_millis(delay_ms));
    }
    let delivery = only(world.deliveries().await);
    assert_eq!((delivery.state(), delivery.step), (DeliveryState::Scheduled, 3));
    assert_eq!((delivery.closed_failed, delivery.closed_unknown), (3, 0));
    world.cluster.stop().await;
}

/// A leader with another idea of the date takes over while a retry waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_from_another_day_keeps_the_ladder() {
    for ms in [2 * DAY_MS, -2 * DAY_MS] {
        let world = World::start(3).await;
        let sink = Sink::start().await;
        sink.script("/hook", [500, 500, 200].map(Answer::status));
        world.register("b", &sink.url("/hook")).await;
        world.send("b", "x").await;
        sink.called("/hook", 2).await;
        let next = world.cluster.follower().await;
        world.cluster.services(next).clock.shift(ms);
        let leader = world.cluster.leader().await;
        let asked = world.cluster.services(leader).cluster.transfer(next as u64 + 1).await;
        asked.unwrap();
        let calls = sink.called("/hook", 3).await;
        assert!(calls[2].at - calls[1].at >= Duration::from_millis(RETRY_DELAYS_MS[1]));
        let delivery = only(world.settled(1).await);
        assert_eq!((delivery.state(), delivery.attempt_no), (DeliveryState::Delivered, 3));
        world.cluster.stop().await;
    }
}
