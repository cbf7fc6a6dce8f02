//! A full inbox drops its oldest read entry, or its oldest entry, and never rejects a sender.

use agentpost_proto::command::operation::Op;
use agentpost_proto::command::{BeginEpoch, MarkRead, Permission, SendBatch};
use agentpost_proto::limits;
use agentpost_raft_store::core::query;
use agentpost_testkit::commands::{
    bootstrap, create_key, create_team, message_id, principal, send, team_id, unlimited,
};

use crate::common::core::Core;

#[test]
fn a_full_inbox_makes_room_by_itself() {
    let mut core = Core {
        wall_ms: 1_000,
        ..Core::default()
    };
    let key = || Some(principal("acme", "w"));
    core.apply(None, Op::BeginEpoch(BeginEpoch { node: 1, term: 1 }));
    core.apply(None, bootstrap("root"));
    core.apply(
        Some(principal("system", "root")),
        create_team("acme", Some(unlimited())),
    );
    let w = create_key("acme", "w", Permission::Write, "");
    core.apply(Some(principal("system", "root")), Op::CreateKey(w));
    let mut sent = 0..;
    let mut fill = |core: &mut Core, count: usize| {
        let names: Vec<String> = sent.by_ref().take(count).map(|n| format!("m{n}")).collect();
        for chunk in names.chunks(limits::BATCH_ITEMS_MAX) {
            let sends = chunk.iter().map(|id| send(id, "alice", "bob")).collect();
            core.apply(key(), Op::SendBatch(SendBatch { sends }));
        }
    };
    fill(&mut core, limits::INBOX_ENTRIES_MAX as usize);
    for read in ["m7", "m5"] {
        let op = MarkRead {
            agent: "bob".to_owned(),
            message_id: message_id(read).to_bytes(),
            read: true,
        };
        core.apply(key(), Op::MarkRead(op));
    }
    let bob = team_id("acme");
    let exists = |core: &Core, id: &str| {
        query::inbox::message(&core.memory, bob, message_id(id))
            .unwrap()
            .is_some()
    };
    let head = |core: &Core| query::inbox::head(&core.memory, bob, "bob").unwrap();
    assert_eq!(head(&core).entries, limits::INBOX_ENTRIES_MAX);
    assert_eq!(head(&core).max_removed_seq, 0);

    fill(&mut core, 2); // the two read ones go first, the older before the younger
    assert!(!exists(&core, "m5") && !exists(&core, "m7") && exists(&core, "m0"));
    assert_eq!(head(&core).max_removed_seq, 8);

    fill(&mut core, 1); // then the oldest unread
    assert!(!exists(&core, "m0") && exists(&core, "m1"));
    assert_eq!(head(&core).entries, limits::INBOX_ENTRIES_MAX);
    assert_eq!(head(&core).unread, limits::INBOX_ENTRIES_MAX);
    assert_eq!(query::inbox::after(&core.memory, bob, "bob", 0, 1).unwrap()[0].seq, 2);
    assert_eq!(query::team::head(&core.memory, bob).unwrap().max_removed_seq, 8);
}
