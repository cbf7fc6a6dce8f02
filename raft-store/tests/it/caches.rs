//! The caches between apply and the database: what they forget costs a few look-ups, never many at once.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use agentpost_proto::command::operation::Op;
use agentpost_proto::command::reply::Reply as R;
use agentpost_proto::command::{Permission, Principal};
use agentpost_proto::record::LogId;
use agentpost_raft_store::core::apply::apply_command;
use agentpost_raft_store::core::keys;
use agentpost_raft_store::core::kv::{Fatal, Kv, Lookup, Memory, Order, Rows};
use agentpost_raft_store::core::view::{HotCache, View};
use agentpost_testkit::commands::{bootstrap, create_key, create_team, encode, principal, send, team_id, unlimited};
use bytes::Bytes;

use crate::common::core::Core;

/// A map that counts the reads of hot rows and the searches for the greatest message id of a team.
struct Counted<'a> {
    memory: &'a Memory,
    gets: AtomicUsize,
    id_searches: AtomicUsize,
}

impl<'a> Counted<'a> {
    fn of(memory: &'a Memory) -> Self {
        Counted {
            memory,
            gets: AtomicUsize::new(0),
            id_searches: AtomicUsize::new(0),
        }
    }

    /// The reads of hot rows and the searches so far.
    fn counts(&self) -> (usize, usize) {
        (
            self.gets.load(Ordering::Relaxed),
            self.id_searches.load(Ordering::Relaxed),
        )
    }
}

impl Lookup for Counted<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Fatal> {
        self.gets.fetch_add(usize::from(keys::is_hot(key)), Ordering::Relaxed);
        self.memory.get(key)
    }
}

impl Kv for Counted<'_> {
    fn range(&self, range: Range<Vec<u8>>, order: Order) -> Rows<'_> {
        let ids = range.start.starts_with(&keys::message_ids(team_id("any")).start[..2]);
        self.id_searches.fetch_add(usize::from(ids), Ordering::Relaxed);
        self.memory.range(range, order)
    }

    fn frozen(&self) -> Box<dyn Kv + '_> {
        Box::new(self)
    }
}

/// Many more teams than one command needs, in turn: after the first send of each, no send reads what it read before.
#[test]
fn two_thousand_teams_that_send_in_turn_need_no_look_ups() {
    const TEAMS: usize = 2_000;
    let name = |n: usize| format!("team-{n:04}");
    let mut core = Core {
        wall_ms: 1_000,
        cluster_ms: 1_000,
        ..Core::default()
    };
    let root = || Some(principal("system", "root"));
    core.apply(None, bootstrap("root"));
    for n in 0..TEAMS {
        core.apply(root(), create_team(&name(n), Some(unlimited())));
        let key = create_key(&name(n), &name(n), Permission::Write, "");
        core.apply(root(), Op::CreateKey(key));
    }
    core.cache = HotCache::default();
    for round in 0..3 {
        let mut looked = (0, 0);
        for n in 0..TEAMS {
            let id = format!("{round}-{n:04}");
            let op = Op::Send(send(&id, "alice", "bob"));
            let principal = Some(principal(&name(n), &name(n)));
            let (reply, (gets, searches)) = counted(&mut core, principal, op);
            assert!(matches!(reply, R::Send(_)), "{reply:?}");
            looked = (looked.0 + gets, looked.1 + searches);
        }
        match round {
            0 => assert_eq!(looked.1, TEAMS),
            _ => assert_eq!(looked, (0, 0), "round {round}"),
        }
    }
}

/// Applies an operation; returns its reply, and what it read from the map.
fn counted(core: &mut Core, principal: Option<Principal>, op: Op) -> (R, (usize, usize)) {
    let command = encode(core.wall_ms, core.epoch, core.cluster_ms, principal, op);
    core.index += 1;
    let log_id = LogId {
        term: 1,
        node: 1,
        index: core.index,
    };
    let base = Counted::of(&core.memory);
    let mut view = View::new(&base, &mut core.cache).unwrap();
    let reply = apply_command(&mut view, &log_id, &command, &mut Vec::new()).unwrap();
    let writes = view.into_writes();
    let counts = base.counts();
    core.memory.write(writes);
    (reply.reply.unwrap(), counts)
}

/// However many rows were read, those that were read last are still known.
#[test]
fn a_full_cache_still_knows_the_rows_that_were_read_last() {
    const ROWS: usize = 220_000;
    const LAST: usize = 10_000;
    let memory = Memory::default();
    let base = Counted::of(&memory);
    let mut cache = HotCache::default();
    let view = View::new(&base, &mut cache).unwrap();
    let row = |n: usize| keys::inbox_head(team_id("acme"), &format!("agent-{n}"));
    for n in 0..ROWS {
        assert_eq!(view.get(&row(n)).unwrap(), None);
        let (read, _) = base.counts();
        assert_eq!(read, n + 1);
        if n >= LAST && n % 5_000 == 0 {
            for n in n - LAST..n {
                view.get(&row(n)).unwrap();
            }
            assert_eq!(base.counts().0, read, "after {n} rows");
        }
    }
}
