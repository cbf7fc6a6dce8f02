//! What a list reads: never a message that it does not show, and never more entries than one read may examine.

use std::cell::Cell;
use std::ops::Range;

use agentpost_proto::command::operation::Op;
use agentpost_proto::command::{Permission, Send, SendBatch};
use agentpost_proto::limits;
use agentpost_proto::record::Delivery;
use agentpost_raft_store::core::keys;
use agentpost_raft_store::core::kv::{Fatal, Kv, Lookup, Memory, Order, Rows};
use agentpost_raft_store::core::query::delivery::{self, DeliveryQuery};
use agentpost_raft_store::core::query::inbox::{Page, PageQuery, page};
use agentpost_testkit::commands::{
    bootstrap, create_key, create_team, principal, publish, send, subscribe, team_id, unlimited,
};
use bytes::Bytes;
use prost::Message as _;

use crate::common::core::Core;

const BODY_BYTES: usize = 16 * 1024;

/// A map that counts the bytes of all values that were read.
struct Weighed<'a> {
    memory: &'a Memory,
    bytes: Cell<usize>,
}

impl Lookup for Weighed<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Fatal> {
        let value = self.memory.get(key)?;
        let bytes = value.as_ref().map_or(0, Bytes::len);
        self.bytes.set(self.bytes.get() + bytes);
        Ok(value)
    }
}

impl Kv for Weighed<'_> {
    fn range(&self, range: Range<Vec<u8>>, order: Order) -> Rows<'_> {
        let rows = self.memory.range(range, order);
        Box::new(rows.inspect(|row| {
            let bytes = row.as_ref().map_or(0, |(_, value)| value.len());
            self.bytes.set(self.bytes.get() + bytes);
        }))
    }

    fn frozen(&self) -> Box<dyn Kv + '_> {
        Box::new(self)
    }
}

/// A team in which bob reads the topic `news`.
fn core() -> Core {
    let mut core = Core::default();
    let root = || Some(principal("system", "root"));
    core.apply(None, bootstrap("root"));
    core.apply(root(), create_team("acme", Some(unlimited())));
    core.apply(root(), Op::CreateKey(create_key("acme", "w", Permission::Write, "")));
    apply(&mut core, Op::Subscribe(subscribe("bob", "news")));
    core
}

fn apply(core: &mut Core, op: Op) {
    core.apply(Some(principal("acme", "w")), op);
}

/// Fills the inbox of bob from alice, with large bodies.
fn fill(core: &mut Core, count: usize) {
    let body = Bytes::from(format!("{{\"x\":\"{}\"}}", "y".repeat(BODY_BYTES)));
    let sends: Vec<Send> = (0..count)
        .map(|n| Send {
            body: body.clone(),
            ..send(&format!("m{n}"), "alice", "bob")
        })
        .collect();
    for sends in sends.chunks(limits::BATCH_ITEMS_MAX) {
        apply(core, Op::SendBatch(SendBatch { sends: sends.to_vec() }));
    }
}

const ALL: PageQuery<'_> = PageQuery {
    after_seq: None,
    order: Order::Ascending,
    skip: 0,
    limit: 50,
    state: None,
    from: None,
    topic: None,
    wall_ms: 0,
};

/// The page, and the bytes that were read for it.
fn read(core: &Core, query: &PageQuery<'_>) -> (Page, usize) {
    let kv = Weighed {
        memory: &core.memory,
        bytes: Cell::new(0),
    };
    let page = page(&kv, team_id("acme"), "bob", query).unwrap();
    (page, kv.bytes.get())
}

#[test]
fn a_filtered_list_reads_no_message_that_it_does_not_show() {
    let mut core = core();
    fill(&mut core, 500);
    apply(&mut core, Op::Send(send("last", "carol", "bob")));
    apply(&mut core, Op::Send(publish("news", "dora", "news")));
    let nobody = PageQuery {
        from: Some("nobody"),
        ..ALL
    };
    let (page, bytes) = read(&core, &nobody);
    assert!(page.items.is_empty() && page.at_end);
    assert!(bytes < 500 * 100, "{bytes} bytes for 500 entries");
    for query in [
        PageQuery {
            from: Some("carol"),
            ..ALL
        },
        PageQuery {
            topic: Some("news"),
            ..ALL
        },
    ] {
        let (page, bytes) = read(&core, &query);
        assert_eq!(page.items.len(), 1, "{query:?}");
        assert!(bytes < 500 * 100, "{bytes} bytes for one message");
    }
}

#[test]
fn what_an_offset_leaves_out_is_counted_and_not_read() {
    let mut core = core();
    fill(&mut core, 400);
    let query = PageQuery { skip: 350, ..ALL };
    let (page, bytes) = read(&core, &query);
    assert_eq!((page.items.len(), page.skipped, page.at_end), (50, 350, true));
    assert!(bytes < 60 * BODY_BYTES, "{bytes} bytes for 50 messages");
    // Their bodies together are larger than a page may be.
    const { assert!(350 * BODY_BYTES > 4 << 20) };
}

#[test]
fn a_read_examines_a_bounded_number_of_entries_and_says_that_there_is_more() {
    let mut core = core();
    let names: Vec<Send> = (0..2 * limits::PAGE_EXAMINED_MAX)
        .map(|n| send(&format!("s{n}"), "alice", "bob"))
        .collect();
    for sends in names.chunks(limits::BATCH_ITEMS_MAX) {
        apply(&mut core, Op::SendBatch(SendBatch { sends: sends.to_vec() }));
    }
    apply(&mut core, Op::Send(send("last", "carol", "bob")));
    let mut query = PageQuery {
        from: Some("carol"),
        ..ALL
    };
    let mut found = Vec::new();
    let mut reads = 0;
    loop {
        let (page, _) = read(&core, &query);
        reads += 1;
        found.extend(page.items);
        if page.at_end {
            break;
        }
        query.after_seq = page.last_seq;
    }
    assert_eq!((reads, found.len()), (3, 1));
    let (page, _) = read(&core, &PageQuery { skip: 3_000, ..ALL });
    assert_eq!((page.items.len(), page.skipped, page.at_end), (0, 2_000, false));
}

#[test]
fn a_list_of_deliveries_examines_a_bounded_number_of_bytes() {
    const URL_BYTES: usize = 4_096;
    let team = team_id("acme");
    let delivery = |number| Delivery {
        number,
        url: "u".repeat(URL_BYTES),
        ..Delivery::default()
    };
    let row = |number| {
        let value = Bytes::from(delivery(number).encode_to_vec());
        (keys::delivery(team, number), Some(value))
    };
    let mut memory = Memory::default();
    memory.write((1..=limits::PAGE_EXAMINED_MAX as u64).map(row).collect());
    let mut query = DeliveryQuery {
        after: None,
        order: Order::Ascending,
        limit: 50,
        state: None,
        agent: Some("nobody"),
    };
    let mut pages = 0;
    while query.after != Some(limits::PAGE_EXAMINED_MAX as u64) {
        let kv = Weighed {
            memory: &memory,
            bytes: Cell::new(0),
        };
        let page = delivery::page(&kv, team, &query).unwrap();
        assert!(page.deliveries.is_empty());
        // The row is read twice: by its number, and while numbers are looked for.
        assert!(kv.bytes.get() < 2 * limits::PAGE_EXAMINED_BYTES_MAX + 4 * URL_BYTES);
        query.after = page.last;
        pages += 1;
    }
    assert_eq!(pages, 2);
}
