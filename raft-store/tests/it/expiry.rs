//! A message that has expired is gone from that moment on, no matter when a sweep removes it. Nothing is swept here.

use agentpost_proto::command::operation::Op;
use agentpost_proto::command::{AttemptResult, ErrorCode, MarkRead, Redrive};
use agentpost_proto::record::{DeliveryEnd, DeliveryState};
use agentpost_raft_store::core::kv::Order;
use agentpost_raft_store::core::query;
use agentpost_raft_store::core::query::inbox::PageQuery;
use agentpost_testkit::commands::message_id;

use crate::deliveries::world::World;

fn status(status: u32) -> AttemptResult {
    AttemptResult {
        status,
        ..AttemptResult::default()
    }
}

/// The seqs of bob's inbox in both orders.
fn inbox(world: &World) -> [Vec<u64>; 2] {
    [Order::Ascending, Order::Descending].map(|order| {
        let query = PageQuery {
            after_seq: None,
            order,
            skip: 0,
            limit: 10,
            state: None,
            from: None,
            topic: None,
            wall_ms: world.core.wall_ms,
        };
        let page = query::inbox::page(&world.core.memory, world.team(), "bob", &query).unwrap();
        assert!(page.last_seq.is_some(), "a page moves past what has expired");
        page.items.iter().map(|item| item.seq).collect()
    })
}

#[test]
fn it_is_in_no_list_and_cannot_be_marked() {
    let mut world = World::new();
    world.send_until(5_000);
    world.send();
    let mark = Op::MarkRead(MarkRead {
        agent: "bob".to_owned(),
        message_id: message_id("m1").to_bytes(),
        read: true,
    });
    world.core.wall_ms = 4_999;
    assert_eq!(inbox(&world), [vec![1, 2], vec![2, 1]]);
    world.done("bob", mark.clone());
    world.core.wall_ms = 5_000;
    assert_eq!(world.refused("bob", mark), ErrorCode::NotFound);
    assert_eq!(inbox(&world), [vec![2], vec![2]]);
    assert!(
        query::inbox::message_at(&world.core.memory, world.team(), 1)
            .unwrap()
            .is_some(),
        "not swept"
    );
}

#[test]
fn it_is_not_delivered_any_more() {
    let mut world = World::new();
    let number = world.send_until(5_000);
    world.fail(number, status(500));
    world.core.wall_ms = 5_000;
    world.core.cluster_ms += 1_000;
    assert!(!world.claim(number, 2), "no call is granted");
    let delivery = world.delivery(number);
    assert_eq!(
        (delivery.state(), delivery.end(), delivery.attempt_no),
        (DeliveryState::Cancelled, DeliveryEnd::Expired, 1)
    );
    assert!(world.notices().is_empty(), "the sender named the time itself");
    assert_eq!(query::delivery::endpoint_heads(&world.core.memory).unwrap(), []);

    // The call of a claim that was granted in time may still end.
    let number = world.send_until(6_000);
    assert!(world.claim(number, 1));
    world.core.wall_ms = 6_000;
    assert!(world.outcome(number, 1, status(200)));
    assert_eq!(world.delivery(number).state(), DeliveryState::Delivered);
}

#[test]
fn it_is_not_delivered_again() {
    let mut world = World::new();
    let number = world.send_until(1_000_000);
    for _ in 0..4 {
        world.fail(number, status(500));
    }
    assert_eq!(world.delivery(number).state(), DeliveryState::Dead);
    let redrive = Op::Redrive(Redrive {
        delivery_id: world.delivery(number).id,
        agent: "bob".to_owned(),
        ..Redrive::default()
    });
    world.core.wall_ms = 1_000_000;
    assert_eq!(world.refused("bob", redrive), ErrorCode::Gone);
}
