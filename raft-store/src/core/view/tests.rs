use proptest::prelude::*;

use super::*;
use crate::core::kv::{Lookup, Memory, Row};

const KEYS: u8 = 30;

fn key(n: u8) -> Bytes {
    Bytes::from(vec![b'x', b'x', n])
}

fn value(n: u8) -> Bytes {
    Bytes::from(vec![n])
}

#[derive(Debug, Clone)]
enum Step {
    Write(u8, Option<u8>),
    Begin,
    Savepoint,
    /// Forgets the newest savepoint, as an accepted command does.
    Keep,
    /// Undoes what followed the newest savepoint.
    Rollback,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..KEYS, proptest::option::of(any::<u8>())).prop_map(|(key, value)| Step::Write(key, value)),
        1 => Just(Step::Begin),
        2 => Just(Step::Savepoint),
        1 => Just(Step::Keep),
        1 => Just(Step::Rollback),
    ]
}

/// Compares whole ranges and their beginnings, in both directions.
fn check(view: &View<'_>, model: &Memory, bounds: (u8, u8)) -> Result<(), TestCaseError> {
    let ranges = [key(bounds.0).to_vec()..key(bounds.1).to_vec(), Vec::new()..vec![0xff]];
    for range in ranges {
        for order in [Order::Ascending, Order::Descending] {
            let rows = |kv: &dyn Kv, limit| -> Vec<Row> {
                let rows = kv.range(range.clone(), order).map(Result::unwrap);
                rows.take(limit).collect()
            };
            for limit in [1, 3, usize::MAX] {
                prop_assert_eq!(rows(view, limit), rows(model, limit));
            }
        }
    }
    for n in 0..KEYS {
        prop_assert_eq!(view.get(&key(n)).unwrap(), model.get(&key(n)).unwrap());
    }
    Ok(())
}

proptest! {
    #[test]
    fn a_view_reads_like_the_map_that_it_will_become(
        rows in proptest::collection::btree_map(0..KEYS, any::<u8>(), 0..20),
        steps in proptest::collection::vec((step(), (0..KEYS, 0..KEYS)), 0..60),
    ) {
        let mut base = Memory::default();
        base.write(rows.into_iter().map(|(k, v)| (key(k), Some(value(v)))).collect());
        let mut model = base.clone();
        let mut cache = HotCache::default();
        let mut view = View::new(&base, &mut cache).unwrap();
        let mut savepoints = Vec::new();
        for (step, bounds) in steps {
            match step {
                Step::Write(k, v) => {
                    match v {
                        Some(v) => view.put(key(k), value(v)),
                        None => view.delete(key(k)),
                    }
                    model.write(vec![(key(k), v.map(value))]);
                }
                Step::Begin => {
                    let hash = view.applied.state_hash;
                    savepoints = vec![(view.begin_command(), model.clone(), hash)];
                }
                Step::Savepoint => {
                    let hash = view.applied.state_hash;
                    savepoints.push((view.savepoint(), model.clone(), hash));
                }
                Step::Keep => drop(savepoints.pop()),
                Step::Rollback => {
                    if let Some((savepoint, before, hash)) = savepoints.pop() {
                        view.rollback(savepoint);
                        prop_assert_eq!(view.applied.state_hash, hash);
                        model = before;
                    }
                }
            }
            check(&view, &model, bounds)?;
        }
        let mut after = base.clone();
        after.write(view.into_writes().into_iter().filter(|(key, _)| *key != keys::applied()).collect());
        prop_assert_eq!(after, model);
    }
}

/// Rows in the database before a scan, and as many that the batch wrote among them.
const ROWS: u32 = 10_000;

fn numbered(n: u32) -> Bytes {
    Bytes::from([b"xx".as_slice(), &n.to_be_bytes()].concat())
}

fn large_base() -> Memory {
    let mut base = Memory::default();
    base.write((0..ROWS).map(|n| (numbered(2 * n), Some(value(0)))).collect());
    base
}

#[test]
fn the_first_row_of_a_range_costs_the_same_beside_many_writes() {
    let base = large_base();
    let mut cache = HotCache::default();
    let mut view = View::new(&base, &mut cache).unwrap();
    for n in 0..ROWS {
        view.put(numbered(2 * n + 1), value(1));
    }
    for (order, expected) in [(Order::Ascending, 0), (Order::Descending, 2 * ROWS - 1)] {
        let before = view.touched();
        let first = view.range(Vec::new()..vec![0xff], order).next().unwrap().unwrap();
        assert_eq!(first.0, numbered(expected));
        let touched = view.touched() - before;
        assert!(touched <= 3, "{order:?}: touched {touched} rows");
    }
    let before = view.touched();
    let rows = view.range(Vec::new()..vec![0xff], Order::Ascending).take(100).count();
    let touched = view.touched() - before;
    assert!((100..=102).contains(&touched), "{touched} rows touched to take {rows}");
}

#[test]
fn a_rollback_undoes_its_own_command_only() {
    let base = large_base();
    let mut cache = HotCache::default();
    let mut view = View::new(&base, &mut cache).unwrap();
    for n in 0..ROWS {
        view.begin_command();
        view.put(numbered(n), value(1));
    }
    let refused = view.begin_command();
    for n in [0, 5, ROWS + 1, 3 * ROWS] {
        view.put(numbered(n), value(2));
    }
    let before = view.touched();
    view.rollback(refused);
    let touched = view.touched() - before;
    assert!((1..=4).contains(&touched), "undoing 4 writes touched {touched} rows");
    let read = [0, 5, ROWS + 1, 3 * ROWS].map(|n| view.get(&numbered(n)).unwrap());
    assert_eq!(read, [Some(value(1)), Some(value(1)), None, None]);
}
