//! Determinism: one log gives one state, no matter how it is applied.
//!
//! A random log is applied in four ways: entry by entry in memory; in random batches in memory, where only the rows
//! survive a point in the middle, as if a snapshot had been installed there; and the same two on RocksDB, reopened in
//! the middle. Replies, effects, every stored byte and the state hash must be equal. An `apply` that reads a clock,
//! iterates over a hash map or keeps state outside the rows fails this test.

use agentpost_proto::command::Reply;
use agentpost_proto::record::LogId;
use agentpost_raft_store::core::apply::{apply_blank, apply_command};
use agentpost_raft_store::core::effect::Effect;
use agentpost_raft_store::core::kv::{Kv, Memory, Order, Row, Writes};
use agentpost_raft_store::core::query;
use agentpost_raft_store::core::view::{HotCache, View};
use agentpost_raft_store::disk::options::Options;
use agentpost_raft_store::disk::state::StateDb;
use agentpost_testkit::commands;
use bytes::Bytes;
use proptest::prelude::*;

use crate::common::random::{log, step};

/// The map under a replay.
enum Store {
    Memory(Memory),
    Rocks {
        dir: tempfile::TempDir,
        db: Option<StateDb>,
    },
}

impl Store {
    fn rocks() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let db = StateDb::open(dir.path(), &Options::default()).unwrap();
        Store::Rocks { dir, db: Some(db) }
    }

    fn kv(&self) -> &(dyn Kv + Sync) {
        match self {
            Store::Memory(memory) => memory,
            Store::Rocks { db, .. } => db.as_ref().unwrap(),
        }
    }

    fn write(&mut self, writes: Writes) {
        match self {
            Store::Memory(memory) => memory.write(writes),
            Store::Rocks { db, .. } => db.as_ref().unwrap().write(writes).unwrap(),
        }
    }

    fn rows(&self) -> Vec<Row> {
        self.kv()
            .range(Vec::new()..vec![0xff; 4], Order::Ascending)
            .map(Result::unwrap)
            .collect()
    }

    /// Forgets everything that is not in a snapshot or in a flushed database.
    fn reopen(&mut self) {
        match self {
            Store::Memory(memory) => {
                let mut copy = Memory::default();
                copy.write(memory.rows().map(|(k, v)| (k.clone(), Some(v.clone()))).collect());
                *memory = copy;
            }
            Store::Rocks { dir, db } => {
                let open = db.take().unwrap();
                open.flush().unwrap();
                drop(open);
                *db = Some(StateDb::open(dir.path(), &Options::default()).unwrap());
            }
        }
    }
}

#[derive(Debug, Default, PartialEq)]
struct Outcome {
    replies: Vec<Reply>,
    effects: Vec<Effect>,
}

/// Applies the log in batches that end at `cuts`. After entry `reopen_at` it forgets everything but the rows.
fn replay(store: &mut Store, log: &[Bytes], cuts: &[usize], reopen_at: Option<usize>) -> Outcome {
    let mut outcome = Outcome::default();
    let mut cache = HotCache::default();
    let mut start = 0;
    let mut ends: Vec<usize> = cuts
        .iter()
        .copied()
        .filter(|cut| *cut < log.len())
        .chain(reopen_at)
        .chain([log.len()])
        .collect();
    ends.sort_unstable();
    for end in ends {
        let mut view = View::new(store.kv(), &mut cache).unwrap();
        for (i, command) in log.iter().enumerate().take(end).skip(start) {
            let id = LogId {
                term: 1,
                node: 1,
                index: i as u64 + 1,
            };
            if command.is_empty() {
                apply_blank(&mut view, &id);
            } else {
                outcome
                    .replies
                    .push(apply_command(&mut view, &id, command, &mut outcome.effects).unwrap());
            }
        }
        let writes = view.into_writes();
        store.write(writes);
        if reopen_at == Some(end) {
            store.reopen();
            cache = HotCache::default();
        }
        start = end;
    }
    outcome
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10, ..ProptestConfig::default() })]

    #[test]
    fn one_log_gives_one_state(
        steps in prop::collection::vec(step(), 0..120),
        cuts in prop::collection::vec(0..600usize, 0..12),
        reopen_at in 0..600usize,
    ) {
        let log = log(&steps);
        let each: Vec<usize> = (1..log.len()).collect();
        let reopen_at = Some(reopen_at.min(log.len()));
        let mut reference = Store::Memory(Memory::default());
        let expected = replay(&mut reference, &log, &each, None);
        let rows = reference.rows();
        for (mut store, cuts, reopen_at) in [
            (Store::Memory(Memory::default()), &cuts, reopen_at),
            (Store::rocks(), &cuts, reopen_at),
            (Store::rocks(), &each, None),
        ] {
            let outcome = replay(&mut store, &log, cuts, reopen_at);
            prop_assert_eq!(&outcome, &expected);
            prop_assert_eq!(&store.rows(), &rows);
            prop_assert_eq!(query::applied(&store.kv()).unwrap(), query::applied(&reference.kv()).unwrap());
        }
    }
}

/// A single different write changes the state hash.
#[test]
fn a_different_log_gives_a_different_hash() {
    let hash = |log: &[Bytes]| {
        let mut store = Store::Memory(Memory::default());
        replay(&mut store, log, &[], None);
        query::applied(&store.kv()).unwrap().state_hash
    };
    let mut steps = log(&[]);
    let same = hash(&steps);
    assert_eq!(same, hash(&steps));
    let op = agentpost_proto::command::operation::Op::Send(commands::send("m1", "alice", "bob"));
    steps.push(commands::encode(
        2_000,
        1,
        2_000,
        Some(commands::principal("acme", "w")),
        op,
    ));
    assert_ne!(same, hash(&steps));
}
