//! The cost of a command depends on the command alone. It is measured in rows touched, which are the same on every
//! machine: not the rest of the batch, nor the length of the queue that the command uses, may change their number.

use agentpost_proto::command::operation::Op;
use agentpost_proto::command::reply::Reply as R;
use agentpost_proto::command::{
    AttemptRef, Claim, CloseEndpoint, DeleteWebhook, Grant, MarkRead, Permission, RegisterWebhook, SendBatch, Sweep,
    WebhookEvent,
};
use agentpost_proto::limits;
use agentpost_raft_store::core::query;
use agentpost_testkit::commands::{
    create_key, create_team, encode, id_of, message_id, principal, send, team_id, unlimited,
};
use bytes::Bytes;

use crate::common::core::Core;

/// Where bob's messages are delivered.
const URL: &str = "https://bob.example/hook";

/// A core with a team without limits.
fn core() -> Core {
    let mut core = Core::begun(1_000);
    let root = || Some(principal("system", "root"));
    core.apply(root(), create_team("acme", Some(unlimited())));
    let key = create_key("acme", "w", Permission::Write, "");
    core.apply(root(), Op::CreateKey(key));
    core
}

fn encoded(core: &Core, op: Op) -> Bytes {
    encode(
        core.wall_ms,
        core.epoch,
        core.cluster_ms,
        Some(principal("acme", "w")),
        op,
    )
}

/// A command of the cluster itself.
fn internal(core: &Core, op: Op) -> Bytes {
    encode(core.wall_ms, core.epoch, core.cluster_ms, None, op)
}

/// Sends from alice, one command each, to the agents that `to` names. Their ids are `name` and a number.
fn sends(core: &Core, name: &str, count: usize, to: impl Fn(usize) -> String) -> Vec<Bytes> {
    let op = |n| Op::Send(send(&format!("{name}{n}"), "alice", &to(n)));
    (0..count).map(|n| encoded(core, op(n))).collect()
}

/// Fills an inbox in large batches.
fn fill(core: &mut Core, agent: &str, count: usize) {
    let names: Vec<String> = (0..count).map(|n| format!("f{n}")).collect();
    let commands: Vec<Bytes> = names
        .chunks(limits::BATCH_ITEMS_MAX)
        .map(|chunk| chunk.iter().map(|id| send(id, "alice", agent)).collect())
        .map(|sends| encoded(core, Op::SendBatch(SendBatch { sends })))
        .collect();
    for batch in commands.chunks(10) {
        core.batch(batch, &mut Vec::new());
    }
}

fn mark(core: &Core, message: &str) -> Bytes {
    let op = MarkRead {
        agent: "bob".to_owned(),
        message_id: message_id(message).to_bytes(),
        read: true,
    };
    encoded(core, Op::MarkRead(op))
}

/// Applies the commands in one batch, none of which may be rejected. Returns the rows that each touched.
fn costs(core: &mut Core, commands: &[Bytes]) -> Vec<u64> {
    let answers = core.batch(commands, &mut Vec::new());
    let accepted = |reply: Option<R>| assert!(!matches!(reply, Some(R::Rejection(_))), "{reply:?}");
    let cost = |(reply, touched): (agentpost_proto::command::Reply, u64)| {
        accepted(reply.reply);
        touched
    };
    answers.into_iter().map(cost).collect()
}

/// The mean of the first and of the last hundred.
fn ends(costs: &[u64]) -> (u64, u64) {
    let mean = |costs: &[u64]| costs.iter().sum::<u64>() / costs.len() as u64;
    (mean(&costs[..100]), mean(&costs[costs.len() - 100..]))
}

#[test]
fn a_full_inbox_costs_at_most_twice_an_empty_one() {
    let mut core = core();
    fill(&mut core, "bob", limits::INBOX_ENTRIES_MAX as usize);
    let to_full = sends(&core, "a", 2_000, |_| "bob".to_owned());
    let to_empty = sends(&core, "b", 2_000, |n| format!("agent{n}"));
    let full: u64 = costs(&mut core, &to_full).iter().sum();
    let empty: u64 = costs(&mut core, &to_empty).iter().sum();
    assert_eq!(
        query::inbox::head(&core.memory, team_id("acme"), "bob")
            .unwrap()
            .entries,
        limits::INBOX_ENTRIES_MAX
    );
    assert!(
        full <= 2 * empty,
        "2,000 sends touch {full} rows, and {empty} to empty inboxes"
    );
}

#[test]
fn marking_in_order_costs_the_same_from_first_to_last() {
    let mut core = core();
    fill(&mut core, "bob", 2_000);
    let marks: Vec<Bytes> = (0..2_000).map(|n| mark(&core, &format!("f{n}"))).collect();
    let (first, last) = ends(&costs(&mut core, &marks));
    assert!(last <= first + 1, "{first} rows at first, {last} at last");
}

/// The read ones of an inbox over its bound are removed first. Here the batch itself has marked them read.
#[test]
fn making_room_does_not_step_over_what_the_batch_marked() {
    let mut core = core();
    fill(&mut core, "bob", limits::INBOX_ENTRIES_MAX as usize);
    let mut commands: Vec<Bytes> = (0..1_000).map(|n| mark(&core, &format!("f{n}"))).collect();
    commands.extend(sends(&core, "a", 2_000, |_| "bob".to_owned()));
    let costs = costs(&mut core, &commands);
    let (read, unread) = ends(&costs[1_000..]);
    assert!(
        read.abs_diff(unread) <= 2,
        "{read} rows for a read one, {unread} for an unread one"
    );
}

#[test]
fn retention_costs_the_same_beside_many_sends() {
    let mut core = core();
    fill(&mut core, "bob", 256);
    core.cluster_ms += limits::RETENTION_MS;
    let sweep = internal(&core, Op::Sweep(Sweep {}));
    let mut beside = core.clone();
    let mut batch = sends(&core, "a", 5_000, |n| format!("agent{n}"));
    batch.push(sweep.clone());
    let alone = costs(&mut core, &[sweep])[0];
    let beside = costs(&mut beside, &batch)[5_000];
    assert!(alone > 256);
    assert!(
        beside <= alone + alone / 10,
        "{alone} rows alone, {beside} beside 5,000 sends"
    );
}

/// A core in which `count` deliveries to bob are due at one moment, and the generation of his endpoint.
fn due(count: usize) -> (Core, u64) {
    let mut core = core();
    let register = RegisterWebhook {
        agent: "bob".to_owned(),
        webhook_id: Bytes::copy_from_slice(&id_of("hook")),
        url: URL.to_owned(),
        events: vec![WebhookEvent::MessageReceived as i32],
    };
    let register = encoded(&core, Op::RegisterWebhook(register));
    costs(&mut core, &[register]);
    fill(&mut core, "bob", count);
    let endpoint = query::topic::endpoint(&core.memory, team_id("acme"), "bob", URL).unwrap();
    (core, endpoint.unwrap().generation)
}

#[test]
fn a_claim_costs_the_same_after_many_claims() {
    let (mut core, _) = due(2_000);
    let claims: Vec<Bytes> = (1..=2_000)
        .map(|number| Claim {
            epoch: core.epoch,
            grants: vec![Grant {
                attempt: Some(AttemptRef {
                    team_id: team_id("acme").to_bytes(),
                    number,
                    attempt_no: 1,
                }),
                node: 1,
            }],
        })
        .map(|claim| internal(&core, Op::Claim(claim)))
        .collect();
    let (first, last) = ends(&costs(&mut core, &claims));
    assert!(last <= first + 1, "{first} rows at first, {last} at last");
}

#[test]
fn closing_an_endpoint_costs_the_same_for_each_delivery() {
    let per_delivery = |count: usize| {
        let (mut core, generation) = due(count);
        let delete = DeleteWebhook {
            agent: "bob".to_owned(),
        };
        let close = CloseEndpoint {
            epoch: core.epoch,
            team_id: team_id("acme").to_bytes(),
            generation,
        };
        let delete = encoded(&core, Op::DeleteWebhook(delete));
        let close = internal(&core, Op::CloseEndpoint(close));
        costs(&mut core, &[delete, close])[1] / count as u64
    };
    let (few, many) = (per_delivery(16), per_delivery(256));
    assert!(
        many <= few + 1,
        "{few} rows for each of 16, {many} for each of the most"
    );
}
