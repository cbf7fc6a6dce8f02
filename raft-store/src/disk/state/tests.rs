use std::collections::BTreeSet;

use tempfile::TempDir;

use super::*;
use crate::disk::memory_budget::MemoryBudget;
use crate::disk::testing::options;

const BODY_BYTES: usize = 64 << 10;

fn key(tag: u8, number: u64) -> Bytes {
    Bytes::from([[tag].as_slice(), &number.to_be_bytes()].concat())
}

/// Bytes that do not compress.
fn noise(seed: u64, len: usize) -> Bytes {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

/// The files with this extension and their sizes.
fn files_of(dir: &TempDir, extension: &str) -> BTreeSet<(String, u64)> {
    let entries = std::fs::read_dir(dir.path()).unwrap().map(Result::unwrap);
    entries
        .filter(|entry| entry.path().extension().is_some_and(|found| found == extension))
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            (name, entry.metadata().unwrap().len())
        })
        .collect()
}

fn bytes_of(dir: &TempDir, extension: &str) -> u64 {
    files_of(dir, extension).iter().map(|(_, size)| size).sum()
}

fn write_bodies(db: &StateDb, numbers: Range<u64>) {
    for number in numbers {
        let body = noise(number + 1, BODY_BYTES);
        db.write(vec![(key(b'm', number), Some(body))]).unwrap();
    }
    db.flush().unwrap();
}

fn compact(db: &StateDb) {
    db.db().compact_range(None::<&[u8]>, None::<&[u8]>);
}

#[test]
fn compactions_leave_bodies_where_they_are() {
    let dir = TempDir::new().unwrap();
    let db = StateDb::open(dir.path(), &options()).unwrap();
    for round in 0..4 {
        write_bodies(&db, round * 20..(round + 1) * 20);
    }
    let before = files_of(&dir, "blob");
    assert!(bytes_of(&dir, "blob") >= 80 * BODY_BYTES as u64);
    assert!(
        bytes_of(&dir, "sst") < BODY_BYTES as u64,
        "the tables hold the keys alone"
    );
    compact(&db);
    assert_eq!(files_of(&dir, "blob"), before);
    assert_eq!(db.get(&key(b'm', 7)).unwrap().unwrap(), noise(8, BODY_BYTES));
}

#[test]
fn the_space_of_removed_bodies_comes_back() {
    let dir = TempDir::new().unwrap();
    let db = StateDb::open(dir.path(), &options()).unwrap();
    for round in 0..8 {
        write_bodies(&db, round * 20..(round + 1) * 20);
    }
    let before = bytes_of(&dir, "blob");
    // All but the newest eighth, as retention does.
    db.write((0..140).map(|number| (key(b'm', number), None)).collect())
        .unwrap();
    db.flush().unwrap();
    compact(&db);
    let after = bytes_of(&dir, "blob");
    assert!(after <= before / 4, "{after} of {before} bytes remain");
    assert_eq!(db.get(&key(b'm', 150)).unwrap().unwrap(), noise(151, BODY_BYTES));
}

#[test]
fn databases_share_one_budget() {
    const BUDGET_BYTES: usize = 16 << 20;
    let dirs = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    let options = Options {
        state_memory: MemoryBudget::new(BUDGET_BYTES),
        ..options()
    };
    let open = |dir: &TempDir| StateDb::open(dir.path(), &options).unwrap();
    let dbs = [open(&dirs[0]), open(&dirs[1])];
    let mut most = 0;
    for number in 0..4 * BUDGET_BYTES as u64 / BODY_BYTES as u64 {
        for db in &dbs {
            let body = noise(number + 1, BODY_BYTES);
            db.write(vec![(key(b'm', number), Some(body))]).unwrap();
            most = most.max(options.state_memory.buffered_bytes());
        }
    }
    assert!(most > BUDGET_BYTES / 8, "the budget counts the buffers of both: {most}");
    assert!(most <= BUDGET_BYTES, "{most} bytes of write buffers");
}
