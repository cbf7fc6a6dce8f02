//! The rules of deliveries, one test each, on a core without Raft.

pub mod world;

use agentpost_proto::command::operation::Op;
use agentpost_proto::command::{AttemptResult, CancelDelivery, DeleteWebhook, ErrorCode, Redrive};
use agentpost_proto::id::DeliveryId;
use agentpost_proto::limits;
use agentpost_proto::record::{AttemptEnd, DeliveryEnd, DeliveryState};
use agentpost_raft_store::core::apply::delivery::{DELIVERY_RETENTION_MS, NOT_SENT_DELAY_MS, OTHER_ATTEMPTS_KEPT};
use agentpost_raft_store::core::query;
use agentpost_raft_store::core::query::delivery;
use serde_json::{Value, json};

use self::world::{URL, World};

fn status(status: u32) -> AttemptResult {
    AttemptResult {
        status,
        error: "status".to_owned(),
        ..AttemptResult::default()
    }
}

#[test]
fn an_attempt_is_granted_once_in_its_number_and_not_early() {
    let mut world = World::new();
    let number = world.send();
    assert!(!world.claim(number, 2), "numbers rise by one");
    assert!(!world.claim(number + 1, 1), "of a delivery that exists");
    assert!(world.claim(number, 1));
    assert!(!world.claim(number, 1), "no number is granted twice");
    assert!(!world.claim(number, 2), "one attempt at a time");
    assert!(world.outcome(number, 1, status(500)));
    assert!(!world.claim(number, 2), "its second has not passed");
    world.pass(999);
    assert!(!world.claim(number, 2));
    world.pass(1);
    assert!(world.claim(number, 2));
}

#[test]
fn only_the_newest_epoch_claims() {
    let mut world = World::new();
    let (number, old) = (world.send(), world.core.epoch);
    world.begin_epoch();
    assert!(!world.claim_in(old, number, 1));
    assert!(!world.claim_in(0, number, 1));
    assert!(world.claim(number, 1));
}

#[test]
fn an_outcome_counts_once_and_only_for_its_claim() {
    let mut world = World::new();
    let (number, old) = (world.send(), world.core.epoch);
    assert!(!world.outcome(number, 1, status(200)), "nothing was claimed");
    assert!(world.claim(number, 1));
    assert!(!world.outcome(number, 2, status(200)), "another number");
    assert!(!world.outcome_in(old + 1, number, 1, status(200)), "another epoch");
    world.begin_epoch();
    assert!(
        world.outcome_in(old, number, 1, status(500)),
        "an old epoch is fine until it is taken over"
    );
    assert!(!world.outcome_in(old, number, 1, status(500)), "a repeat moves nothing");
    let delivery = world.delivery(number);
    assert_eq!((delivery.step, delivery.closed_failed), (1, 1));
}

#[test]
fn the_retry_schedule_has_four_steps_then_one_dead_letter_and_one_notice() {
    let mut world = World::new();
    let number = world.send();
    for wait in limits::RETRY_DELAYS_MS {
        assert_eq!(world.fail(number, status(503)), wait);
    }
    world.fail(number, status(500));
    let delivery = world.delivery(number);
    assert_eq!(
        (delivery.state(), delivery.end()),
        (DeliveryState::Dead, DeliveryEnd::Exhausted)
    );
    assert_eq!((delivery.attempt_no, delivery.closed_failed, delivery.step), (4, 4, 3));
    assert_eq!(world.dead(), [number]);
    let id = DeliveryId::from_slice(&delivery.id).unwrap();
    let expected = json!({
        "messageId": format!("msg_{}", hex_of(&delivery.message_id)),
        "toAgentId": "bob", "url": URL, "attempts": 4, "lastStatus": 500, "lastError": "status",
        "deliveryId": id.to_string(),
    });
    assert_eq!(world.notices(), [expected]);
    assert!(!world.claim(number, 5), "dead is dead");
    assert!(!world.outcome(number, 4, status(200)));
    assert_eq!(world.notices().len(), 1);
}

fn hex_of(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn without_a_response_a_notice_has_no_status() {
    let mut world = World::new();
    let number = world.send();
    let timeout = || AttemptResult {
        error: "timeout".to_owned(),
        ..AttemptResult::default()
    };
    for _ in 0..4 {
        world.fail(number, timeout());
    }
    let notice = &world.notices()[0];
    assert_eq!(
        (&notice["lastStatus"], &notice["lastError"]),
        (&Value::Null, &json!("timeout"))
    );
}

#[test]
fn retry_after_lengthens_a_wait_up_to_a_day() {
    let mut world = World::new();
    let number = world.send();
    let asked = |retry_after_ms| AttemptResult {
        retry_after_ms,
        ..status(429)
    };
    assert_eq!(world.fail(number, asked(5_000)), 5_000);
    assert_eq!(world.fail(number, asked(5_000)), 10_000, "never shorter than the step");
    assert_eq!(
        world.fail(number, asked(limits::RETRY_AFTER_MAX_MS + 1)),
        100_000,
        "beyond a day it is ignored"
    );
}

#[test]
fn a_call_that_never_began_costs_no_step() {
    let mut world = World::new();
    let number = world.send();
    let not_sent = || AttemptResult {
        not_sent: true,
        ..AttemptResult::default()
    };
    for n in 1..=20 {
        assert_eq!(world.fail(number, not_sent()), NOT_SENT_DELAY_MS);
        let delivery = world.delivery(number);
        assert_eq!(
            (delivery.step, delivery.attempt_no, delivery.closed_not_sent),
            (0, n, n)
        );
    }
    assert_eq!(world.delivery(number).attempts.len(), OTHER_ATTEMPTS_KEPT);
    assert_eq!(world.fail(number, status(500)), 1_000);
}

#[test]
fn success_ends_a_delivery_and_releases_the_message() {
    let mut world = World::new();
    let number = world.send();
    let seq = world.delivery(number).message_seq;
    assert_eq!(
        query::inbox::references(&world.core.memory, world.team(), seq).unwrap(),
        2
    );
    assert!(world.claim(number, 1));
    assert!(world.outcome(number, 1, status(204)));
    let delivery = world.delivery(number);
    assert_eq!(
        (delivery.state(), delivery.closed_delivered),
        (DeliveryState::Delivered, 1)
    );
    assert_eq!(
        query::inbox::references(&world.core.memory, world.team(), seq).unwrap(),
        1
    );
    assert!(world.notices().is_empty() && world.dead().is_empty());
    assert!(delivery::endpoint_heads(&world.core.memory).unwrap().is_empty());
    assert!(delivery::claims(&world.core.memory).unwrap().is_empty());
}

#[test]
fn a_410_disables_the_endpoint_and_its_open_deliveries_die_with_notices() {
    let mut world = World::new();
    let numbers: Vec<u64> = (0..300).map(|_| world.send()).collect();
    let generation = world.delivery(numbers[0]).generation;
    assert!(world.claim(numbers[1], 1));
    assert!(world.claim(numbers[0], 1));
    assert!(world.outcome(numbers[0], 1, status(410)));
    assert_eq!(world.delivery(numbers[0]).end(), DeliveryEnd::Gone);
    assert!(!world.claim(numbers[2], 1), "a closed endpoint grants nothing");
    assert_eq!(
        delivery::closings(&world.core.memory).unwrap(),
        [(world.team(), generation)]
    );
    assert_eq!(world.close(generation), (256, false));
    assert_eq!(world.close(generation), (42, true));
    assert_eq!(world.close(generation), (0, true));
    assert!(
        world.outcome(numbers[1], 1, status(500)),
        "a claimed one ends by its own outcome"
    );
    assert!(
        numbers[1..]
            .iter()
            .all(|n| world.delivery(*n).end() == DeliveryEnd::Disabled)
    );
    assert_eq!(world.notices().len(), 300);
    let last = query::team::head(&world.core.memory, world.team())
        .unwrap()
        .last_delivery;
    assert_eq!(world.send(), last, "a disabled endpoint takes no new deliveries");
    world.register(URL);
    let again = world.send();
    assert_eq!(again, last + 1, "registered again it does");
    assert_ne!(world.delivery(again).generation, generation, "as a new one");
}

#[test]
fn deleting_the_url_after_a_410_does_not_cancel_the_notices() {
    let mut world = World::new();
    let (gone, waiting) = (world.send(), world.send());
    let generation = world.delivery(gone).generation;
    world.fail(gone, status(410));
    let agent = "bob".to_owned();
    world.done("bob", Op::DeleteWebhook(DeleteWebhook { agent }));
    assert_eq!(world.close(generation), (1, true));
    assert_eq!(world.delivery(waiting).end(), DeliveryEnd::Disabled);
    assert_eq!(world.notices().len(), 2);
}

#[test]
fn a_success_after_a_410_elsewhere_is_a_success() {
    let mut world = World::new();
    let (one, two) = (world.send(), world.send());
    assert!(world.claim(one, 1) && world.claim(two, 1));
    assert!(world.outcome(one, 1, status(410)));
    assert!(world.outcome(two, 1, status(200)));
    assert_eq!(world.delivery(two).state(), DeliveryState::Delivered);
    assert_eq!(world.notices().len(), 1);
}

#[test]
fn a_deleted_webhook_cancels_without_notices() {
    let mut world = World::new();
    let (claimed, waiting, failed) = (world.send(), world.send(), world.send());
    let generation = world.delivery(claimed).generation;
    assert!(world.claim(claimed, 1));
    assert!(world.claim(failed, 1));
    world.done(
        "bob",
        Op::DeleteWebhook(DeleteWebhook {
            agent: "bob".to_owned(),
        }),
    );
    assert_eq!(world.close(generation), (1, true));
    assert!(world.outcome(claimed, 1, status(200)), "what was on its way may arrive");
    assert!(world.outcome(failed, 1, status(500)));
    assert_eq!(world.delivery(claimed).state(), DeliveryState::Delivered);
    for number in [waiting, failed] {
        let delivery = world.delivery(number);
        assert_eq!(
            (delivery.state(), delivery.end()),
            (DeliveryState::Cancelled, DeliveryEnd::Deleted)
        );
    }
    assert!(world.notices().is_empty() && world.dead().is_empty());
}

#[test]
fn a_489_needs_its_header() {
    let mut world = World::new();
    let (plain, marked) = (world.send(), world.send());
    assert_eq!(world.fail(plain, status(489)), 1_000);
    let non_retryable = AttemptResult {
        non_retryable: true,
        ..status(489)
    };
    world.fail(marked, non_retryable);
    assert_eq!(world.delivery(marked).end(), DeliveryEnd::NonRetryable);
    assert_eq!(world.notices().len(), 1);
}

#[test]
fn an_abandoned_claim_is_taken_over_when_its_call_cannot_run_any_more() {
    let mut world = World::new();
    let (number, old) = (world.send(), world.core.epoch);
    assert!(world.claim(number, 1));
    world.begin_epoch();
    world.pass(limits::TAKEOVER_AFTER_MS - 1);
    assert!(!world.takeover(number, 1), "a call may still be running");
    world.pass(1);
    assert!(!world.takeover(number, 2), "another number");
    assert!(world.takeover(number, 1));
    assert!(!world.takeover(number, 1));
    assert!(
        !world.outcome_in(old, number, 1, status(200)),
        "what comes later is stale"
    );
    let delivery = world.delivery(number);
    assert_eq!(
        (delivery.state(), delivery.step, delivery.closed_unknown),
        (DeliveryState::Scheduled, 0, 1)
    );
    assert_eq!(delivery.attempts[0].end(), AttemptEnd::Unknown);
    assert!(world.claim(number, 2), "at once, on the same step");
}

#[test]
fn a_delivery_with_too_many_unknown_outcomes_ends() {
    let mut world = World::new();
    let number = world.send();
    for n in 1..=6 {
        assert_eq!(world.delivery(number).state(), DeliveryState::Scheduled);
        assert!(world.claim(number, n));
        world.pass(limits::TAKEOVER_AFTER_MS);
        assert!(world.takeover(number, n));
    }
    assert_eq!(world.delivery(number).end(), DeliveryEnd::OutcomeUnknown);
    assert_eq!(world.notices().len(), 1);
    assert_eq!(world.notices()[0]["attempts"], 6);
}

fn cancel(world: &World, number: u64, agent: &str) -> Op {
    Op::CancelDelivery(CancelDelivery {
        delivery_id: world.delivery(number).id,
        agent: agent.to_owned(),
        ..CancelDelivery::default()
    })
}

fn redrive(world: &World, number: u64, agent: &str) -> Op {
    Op::Redrive(Redrive {
        delivery_id: world.delivery(number).id,
        agent: agent.to_owned(),
        ..Redrive::default()
    })
}

#[test]
fn the_receiver_or_an_admin_may_cancel_what_is_not_over() {
    let mut world = World::new();
    let (one, two) = (world.send(), world.send());
    let op = cancel(&world, one, "alice");
    assert_eq!(world.refused("alice", op), ErrorCode::Forbidden, "the sender may not");
    let op = cancel(&world, one, "carol");
    assert_eq!(
        world.refused("carol", op),
        ErrorCode::NotFound,
        "for others it does not exist"
    );
    assert!(world.claim(one, 1));
    let op = cancel(&world, one, "bob");
    world.done("bob", op.clone());
    let delivery = world.delivery(one);
    assert_eq!(
        (delivery.state(), delivery.closed_unknown),
        (DeliveryState::Cancelled, 1)
    );
    assert!(!world.outcome(one, 1, status(200)));
    assert_eq!(world.refused("bob", op), ErrorCode::Conflict);
    let op = cancel(&world, two, "");
    world.done("admin", op);
    assert!(world.notices().is_empty());
    assert!(delivery::endpoint_heads(&world.core.memory).unwrap().is_empty());
}

#[test]
fn a_dead_delivery_is_redriven_once_as_a_new_one() {
    let mut world = World::new();
    let number = world.send();
    let op = redrive(&world, number, "bob");
    assert_eq!(
        world.refused("bob", op.clone()),
        ErrorCode::Conflict,
        "it is not dead yet"
    );
    for _ in 0..4 {
        world.fail(number, status(500));
    }
    let first = world.done("bob", op.clone());
    assert_eq!(world.done("admin", op), first, "a repeat returns the same");
    let again = world.delivery(number + 1);
    assert_eq!(again.redrive_of, world.delivery(number).id);
    assert_eq!(
        (again.state(), again.step, again.attempt_no),
        (DeliveryState::Scheduled, 0, 0)
    );
    for _ in 0..4 {
        world.fail(number + 1, status(500));
    }
    assert_eq!(world.notices().len(), 2, "its death is news again");
    assert_eq!(world.dead(), [number + 1, number]);
}

#[test]
fn a_redrive_needs_the_url_and_the_message() {
    let mut world = World::new();
    let number = world.send();
    for _ in 0..4 {
        world.fail(number, status(500));
    }
    world.done(
        "bob",
        Op::DeleteWebhook(DeleteWebhook {
            agent: "bob".to_owned(),
        }),
    );
    let op = redrive(&world, number, "bob");
    assert_eq!(world.refused("bob", op.clone()), ErrorCode::Conflict);
    world.register(URL);
    let seq = world.delivery(number).message_seq;
    for _ in 0..2 {
        world.pass(DELIVERY_RETENTION_MS);
        assert_eq!(world.refused("bob", op.clone()), ErrorCode::Gone);
        sweep(&mut world);
    }
    assert_eq!(
        world.refused("bob", op),
        ErrorCode::NotFound,
        "and in the end it is forgotten"
    );
    assert!(
        query::inbox::team_after(&world.core.memory, world.team(), 0, 10)
            .unwrap()
            .iter()
            .all(|m| m.seq != seq)
    );
    assert!(world.dead().is_empty());
}

/// Sweeps until nothing aged is left.
fn sweep(world: &mut World) {
    while let Some(due) = query::due::sweep(&world.core.memory, world.core.cluster_ms, world.core.wall_ms).unwrap() {
        world.by(None, Op::Sweep(due));
    }
}
