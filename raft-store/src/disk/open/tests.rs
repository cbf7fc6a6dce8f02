#![allow(clippy::unwrap_used)]

use agentpost_proto::record;
use bytes::Bytes;
use openraft::storage::{RaftLogStorage, RaftStateMachine};
use proptest::prelude::*;
use prost::Message;
use tempfile::TempDir;

use super::*;
use crate::core::keys;
use crate::core::kv::{Kv, Lookup, Memory, Order, Row, Writes};
use crate::disk::memory_budget::MemoryBudget;
use crate::disk::state::StateDb;
use crate::disk::testing::{append, apply, blank, crash_copy, log_id, membership, open, options};

fn key(n: u8) -> Bytes {
    Bytes::from(vec![b'x', n])
}

fn put(n: u8, value: u8) -> Writes {
    vec![(key(n), Some(Bytes::from(vec![value])))]
}

fn refused(dir: &Path) -> OpenError {
    super::shard(dir, options()).err().unwrap()
}

/// The only shard of a data directory.
fn shard(dir: &TempDir) -> Layout {
    Layout::new(dir.path(), 0)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn the_database_answers_like_a_map(
        steps in proptest::collection::vec((0..40u8, proptest::option::of(any::<u8>())), 0..60),
        flush_at in 0..60usize,
        ranges in proptest::collection::vec((0..45u8, 0..45u8), 8),
    ) {
        let dir = TempDir::new().unwrap();
        let db = StateDb::open(dir.path(), &options()).unwrap();
        let mut memory = Memory::default();
        for (i, (n, value)) in steps.iter().enumerate() {
            let writes: Writes = vec![(key(*n), value.map(|value| Bytes::from(vec![value])))];
            db.write(writes.clone()).unwrap();
            memory.write(writes);
            if i == flush_at { db.flush().unwrap(); }
        }
        let frozen = db.frozen();
        db.write(put(200, 1)).unwrap();
        for n in 0..45 {
            prop_assert_eq!(db.get(&key(n)).unwrap(), memory.get(&key(n)).unwrap());
            prop_assert_eq!(frozen.get(&key(n)).unwrap(), memory.get(&key(n)).unwrap());
        }
        prop_assert_eq!(frozen.get(&key(200)).unwrap(), None);
        for (start, end) in ranges {
            let range = key(start).to_vec()..key(end).to_vec();
            for order in [Order::Ascending, Order::Descending] {
                let expected: Vec<Row> = memory.range(range.clone(), order).map(Result::unwrap).collect();
                let seen: Vec<Row> = db.range(range.clone(), order).map(Result::unwrap).collect();
                let seen_frozen: Vec<Row> = frozen.range(range.clone(), order).map(Result::unwrap).collect();
                prop_assert_eq!(&seen, &expected);
                prop_assert_eq!(&seen_frozen, &expected);
            }
        }
    }
}

/// Without a WAL a crash undoes the newest writes, but always whole batches.
#[test]
fn rows_and_the_applied_row_become_durable_together() {
    let dir = TempDir::new().unwrap();
    let (live, copy) = (dir.path().join("live"), dir.path().join("copy"));
    let options = Options {
        state_memory: MemoryBudget::new(256 << 10),
        ..options()
    };
    let db = StateDb::open(&live, &options).unwrap();
    for index in 1..=2_000u64 {
        let applied = record::Applied {
            last: Some(record::LogId {
                index,
                ..Default::default()
            }),
            ..Default::default()
        };
        let mut writes = Writes::new();
        for part in 0..3u8 {
            let row = [b"xx".as_slice(), &[part], &index.to_be_bytes()].concat();
            writes.push((Bytes::from(row), Some(Bytes::from(vec![part; 100]))));
        }
        writes.push((keys::applied(), Some(Bytes::from(applied.encode_to_vec()))));
        db.write(writes).unwrap();
    }
    db.flush().unwrap();
    db.write(put(1, 1)).unwrap();
    crash_copy(&live, &copy);
    let after = StateDb::open(&copy, &options).unwrap();
    let durable = after.applied().unwrap().last.unwrap().index;
    assert_eq!(durable, 2_000, "everything before the flush is there");
    assert_eq!(after.get(&key(1)).unwrap(), None, "nothing after it is");
    let rows = after.range(b"xx".to_vec()..b"xy".to_vec(), Order::Ascending).count() as u64;
    assert_eq!(rows, durable * 3);
}

#[tokio::test]
async fn a_restart_begins_where_the_state_is_durable() {
    let dir = TempDir::new().unwrap();
    let (live, copy) = (dir.path().join("live"), dir.path().join("copy"));
    let mut stores = open(&live);
    let entries = vec![membership(1, 0, &[1]), blank(1, 1)];
    append(&mut stores.log, entries.clone()).await.unwrap();
    apply(&mut stores.machine, entries).await.unwrap();
    stores.state.flush().unwrap();
    append(&mut stores.log, vec![blank(1, 2)]).await.unwrap();
    apply(&mut stores.machine, vec![blank(1, 2)]).await.unwrap();
    assert_eq!(stores.machine.applied_state().await.unwrap().0, Some(log_id(1, 2)));
    crash_copy(&live, &copy);

    let mut stores = open(&copy);
    let (applied, members) = stores.machine.applied_state().await.unwrap();
    assert_eq!(applied, Some(log_id(1, 1)));
    assert_eq!(*members.log_id(), Some(log_id(1, 0)));
    assert_eq!(
        stores.log.get_log_state().await.unwrap().last_log_id,
        Some(log_id(1, 2))
    );
}

#[test]
fn another_format_is_refused_by_name_and_a_damaged_format_file_is_rewritten() {
    let dir = TempDir::new().unwrap();
    drop(open(dir.path()));
    let layout = shard(&dir);
    for damage in ["agentpost shard 99\n", "", "\u{0}"] {
        fs::write(layout.format(), damage).unwrap();
        drop(open(dir.path()));
        assert_eq!(fs::read_to_string(layout.format()).unwrap(), format!("{FORMAT}\n"));
    }
    fs::remove_file(layout.format()).unwrap();
    drop(open(dir.path()));

    fs::remove_file(layout.floor()).unwrap();
    assert!(matches!(refused(dir.path()), OpenError::Quarantine { .. }));
    // A file of a version without a floor.
    fs::write(layout.format(), "agentpost shard 1\n").unwrap();
    let error = refused(dir.path());
    assert!(matches!(error, OpenError::ForeignFormat { .. }));
    assert!(error.to_string().contains("agentpost shard 1"), "{error}");
}

#[test]
fn two_processes_do_not_share_a_directory() {
    let dir = TempDir::new().unwrap();
    let _first = open(dir.path());
    let error = refused(dir.path());
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
}

#[test]
fn a_first_start_that_was_cut_off_is_begun_again() {
    let dir = TempDir::new().unwrap();
    let layout = shard(&dir);
    open_floor(&layout, &options()).unwrap();
    mark_format(&layout).unwrap();
    drop(
        StateDb::open(&layout.state().join("db-1"), &options()).unwrap_or_else(|_| {
            fs::create_dir_all(layout.state()).unwrap();
            StateDb::open(&layout.state().join("db-1"), &options()).unwrap()
        }),
    );
    fs::create_dir(layout.state().join("staged")).unwrap();
    drop(open(dir.path()));
    assert_eq!(files::names(&layout.state()).unwrap(), ["CURRENT", "db-1"]);
}
