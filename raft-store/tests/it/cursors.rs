//! Unusual cursors: many in one entry, malformed ones, and those of a version that did not index their last use.

use agentpost_proto::command::operation::Op;
use agentpost_proto::command::reply::Reply as R;
use agentpost_proto::command::{AckCursors, CursorAck, ErrorCode, Sweep};
use agentpost_proto::limits;
use agentpost_proto::record::Cursor;
use agentpost_raft_store::core::{keys, query};
use agentpost_testkit::commands::{ack, create_team, principal, team_id, unlimited};
use bytes::Bytes;
use prost::Message as _;

use crate::common::core::Core;

const NOW: u64 = 1_000_000;

fn world() -> Core {
    let mut core = Core::begun(NOW);
    core.apply(
        Some(principal("system", "root")),
        create_team("acme", Some(unlimited())),
    );
    core
}

fn acks(core: &mut Core, acks: Vec<CursorAck>) -> Option<ErrorCode> {
    let (reply, _) = core.apply(None, Op::AckCursors(AckCursors { acks }));
    match reply.reply.unwrap() {
        R::Rejection(rejection) => Some(rejection.code()),
        _ => None,
    }
}

fn exists(core: &Core, agent: &str, client_id: &str) -> bool {
    query::inbox::cursor(&core.memory, team_id("acme"), agent, client_id)
        .unwrap()
        .is_some()
}

fn counted(core: &Core) -> u32 {
    query::team::head(&core.memory, team_id("acme")).unwrap().cursors
}

/// The acks of an entry belong to different clients, so a wrong one must not affect the others.
#[test]
fn one_bad_ack_costs_the_others_nothing() {
    let mut core = world();
    let long = "c".repeat(limits::CLIENT_ID_BYTES_MAX + 1);
    let mut foreign = ack("acme", "bob", "c3", 0);
    foreign.team_id = Bytes::from_static(b"short");
    let mixed = vec![
        ack("acme", "bob", "c1", 0),
        ack("acme", "bo\0b", "c2", 0),
        ack("acme", "bob", "c\0", 0),
        ack("acme", "bob", &long, 0),
        foreign,
        ack("acme", "bob", "c4", 0),
    ];
    assert_eq!(acks(&mut core, mixed), None);
    assert!(exists(&core, "bob", "c1") && exists(&core, "bob", "c4"));
    assert_eq!(counted(&core), 2);
}

#[test]
fn an_entry_has_so_many_acks_and_they_come_from_nodes() {
    let mut core = world();
    let many = |count: usize| (0..count).map(|n| ack("acme", "", &format!("c{n}"), 0)).collect();
    assert_eq!(
        acks(&mut core, many(limits::ACKS_PER_ENTRY_MAX + 1)),
        Some(ErrorCode::Invalid)
    );
    assert_eq!(counted(&core), 0);
    assert_eq!(acks(&mut core, many(limits::ACKS_PER_ENTRY_MAX)), None);
    assert_eq!(counted(&core) as usize, limits::ACKS_PER_ENTRY_MAX);
    let op = Op::AckCursors(AckCursors { acks: many(1) });
    let (reply, _) = core.apply(Some(principal("system", "root")), op);
    assert!(matches!(reply.reply, Some(R::Rejection(_))));
}

/// A cursor that has no row of its last use gets one at its next use. From then on it is counted and ages.
#[test]
fn a_cursor_without_a_row_of_its_last_use_gets_one_at_its_next_use() {
    let mut core = world();
    let acme = team_id("acme");
    let old = Cursor {
        acked: true,
        ..Cursor::default()
    };
    let row = (keys::cursor(acme, "bob", "old"), Some(Bytes::from(old.encode_to_vec())));
    core.memory.write(vec![row]);
    core.cluster_ms += 2 * limits::CURSOR_TTL_MS;
    core.apply(None, Op::Sweep(Sweep::default()));
    assert!(exists(&core, "bob", "old"), "nobody knows its age");

    let touch = CursorAck {
        implied: true,
        ..ack("acme", "bob", "old", 0)
    };
    assert_eq!(acks(&mut core, vec![touch.clone(), touch]), None);
    assert_eq!(counted(&core), 1);
    let used = query::inbox::cursor(&core.memory, acme, "bob", "old")
        .unwrap()
        .unwrap()
        .used_ct_ms;
    assert_eq!(used, core.cluster_ms);
    core.cluster_ms += limits::CURSOR_TTL_MS;
    core.apply(None, Op::Sweep(Sweep::default()));
    assert!(!exists(&core, "bob", "old"));
    assert_eq!(counted(&core), 0);
}

/// The sweeper removes unused cursors. But the ticker does not carry time forward only because of them.
#[test]
fn an_unused_cursor_is_swept_but_needs_no_ticks() {
    let mut core = world();
    let due = |core: &Core| query::due::sweep(&core.memory, core.cluster_ms, core.wall_ms).unwrap();
    assert_eq!(acks(&mut core, vec![ack("acme", "bob", "", 0)]), None);
    assert!(!query::due::ages(&core.memory).unwrap());
    core.cluster_ms += limits::CURSOR_TTL_MS - 1;
    assert_eq!(due(&core), None);
    core.cluster_ms += 1;
    let sweep = due(&core).unwrap();
    core.apply(None, Op::Sweep(sweep));
    assert_eq!(due(&core), None);
}

/// The same at cluster time 0, because a stored 0 means that there is no row of the last use.
#[test]
fn a_cursor_at_cluster_time_0_gets_a_row_of_its_last_use() {
    let mut core = Core::default();
    assert_eq!(acks(&mut core, vec![ack("acme", "bob", "c1", 0)]), None);
    assert_eq!(acks(&mut core, vec![ack("acme", "bob", "c1", 0)]), None);
    assert_eq!(counted(&core), 1);
}
