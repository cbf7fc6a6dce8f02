//! Wall clocks that jump by days neither hasten retries nor delay them.

use std::time::Duration;

use agentpost_proto::limits::RETRY_DELAYS_MS;
use agentpost_proto::record::DeliveryState;
use agentpost_testkit::receiver::{Answer, Receiver};
use tokio::time::sleep;

use crate::common::eventually;
use crate::common::webhooks::{WebhookOffice, only};

const DAY_MS: i64 = 24 * 3600 * 1000;

/// Shifts the leader's clock, the followers' clocks, or all of them, forward and back in turn.
async fn jump(office: &WebhookOffice, turn: usize) {
    let leader = office.cluster.leader().await;
    let ms = [2 * DAY_MS, -2 * DAY_MS, -2 * DAY_MS, 2 * DAY_MS][turn % 4];
    for node in office.cluster.running() {
        let moves = match turn % 3 {
            0 => node == leader,
            1 => node != leader,
            _ => true,
        };
        if moves {
            office.cluster.services(node).clock.shift(ms);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wall_clocks_that_jump_two_days_do_not_move_retries() {
    let office = WebhookOffice::start(3).await;
    let receiver = Receiver::start().await.unwrap();
    receiver.script("/hook", [500, 500, 500].map(Answer::status));
    office.register("b", &receiver.url("/hook")).await;
    office.send("b", "x").await;
    let mut turn = 0;
    eventually("three calls", async || {
        sleep(Duration::from_millis(300)).await;
        jump(&office, turn).await;
        turn += 1;
        (receiver.calls_to("/hook").len() >= 3).then_some(())
    })
    .await;
    // The next retry is due 100 s later. Under load these waits may miss a call that comes too soon; they cannot fail
    // without one.
    for _ in 0..8 {
        jump(&office, turn).await;
        turn += 1;
        sleep(Duration::from_millis(500)).await;
    }
    let calls = receiver.calls_to("/hook");
    assert_eq!(calls.len(), 3, "the last step did not wait");
    for (pair, delay_ms) in calls.windows(2).zip(RETRY_DELAYS_MS) {
        assert!(pair[1].at_us - pair[0].at_us >= delay_ms * 1_000);
    }
    let delivery = only(office.deliveries().await);
    assert_eq!((delivery.state(), delivery.step), (DeliveryState::Scheduled, 3));
    assert_eq!((delivery.closed_failed, delivery.closed_unknown), (3, 0));
}

/// A node whose clock is days off takes over while a retry waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_leader_with_a_wrong_clock_keeps_the_retry_times() {
    for ms in [2 * DAY_MS, -2 * DAY_MS] {
        let office = WebhookOffice::start(3).await;
        let receiver = Receiver::start().await.unwrap();
        receiver.script("/hook", [500, 500, 200].map(Answer::status));
        office.register("b", &receiver.url("/hook")).await;
        office.send("b", "x").await;
        receiver.called("/hook", 2).await;
        let next = office.cluster.follower().await;
        office.cluster.services(next).clock.shift(ms);
        let leader = office.cluster.leader().await;
        let asked = office.cluster.services(leader).cluster.transfer(next as u64 + 1).await;
        asked.unwrap();
        let calls = receiver.called("/hook", 3).await;
        assert!(calls[2].at_us - calls[1].at_us >= RETRY_DELAYS_MS[1] * 1_000);
        let delivery = only(office.settled(1).await);
        assert_eq!((delivery.state(), delivery.attempt_no), (DeliveryState::Delivered, 3));
    }
}
