use std::fs;

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tempfile::TempDir;

use super::*;

/// A data directory with one file of every kind, 10 kB each.
fn data_dir() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in [
        "OWNER",
        "shards/0/FORMAT",
        "shards/0/FLOOR",
        "shards/0/log/0000000000000001.log",
        "shards/0/state/db-1/OPTIONS-000004",
        "shards/0/log/LOCK",
        "shards/0/state/db-1/LOG",
        "shards/0/state/CURRENT",
        "shards/0/state/db-1/000005.sst",
        "shards/0/state/db-1/MANIFEST-000006",
        "shards/0/snapshots/1/000005.sst",
        "shards/0/incoming/2/000005.sst",
        "shards/0/damaged/000007.sst",
    ] {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content()).unwrap();
    }
    dir
}

fn content() -> Vec<u8> {
    (0..10_000u32).map(|n| (n % 251) as u8).collect()
}

fn target(dir: &TempDir, kind: FileKind) -> DamageTarget {
    let mut targets = targets(dir.path()).unwrap();
    targets.retain(|target| target.kind == kind);
    targets.remove(0)
}

#[test]
fn every_kind_of_file_is_known_and_what_says_nothing_is_left_out() {
    let dir = data_dir();
    fs::write(dir.path().join("shards/0/log/0000000000000009.log"), b"").unwrap();
    let found: Vec<(String, FileKind)> = targets(dir.path())
        .unwrap()
        .into_iter()
        .map(|t| (t.name, t.kind))
        .collect();
    let expected = [
        ("OWNER", FileKind::Owner),
        ("shards/0/FLOOR", FileKind::Floor),
        ("shards/0/FORMAT", FileKind::Format),
        ("shards/0/log/0000000000000001.log", FileKind::LogSegment),
        ("shards/0/snapshots/1/000005.sst", FileKind::Snapshot),
        ("shards/0/state/CURRENT", FileKind::StateCurrent),
        ("shards/0/state/db-1/000005.sst", FileKind::StateSst),
        ("shards/0/state/db-1/MANIFEST-000006", FileKind::StateManifest),
        ("shards/0/state/db-1/OPTIONS-000004", FileKind::Unread),
    ];
    assert_eq!(found, expected.map(|(name, part)| (name.to_owned(), part)));
}

#[test]
fn one_or_two_bits_flip_and_nothing_else() {
    let dir = data_dir();
    let target = target(&dir, FileKind::LogSegment);
    for seed in 0..50 {
        fs::write(&target.path, content()).unwrap();
        flip(&target, &mut StdRng::seed_from_u64(seed)).unwrap();
        let now = fs::read(&target.path).unwrap();
        assert_eq!(now.len(), 10_000);
        let flipped: u32 = now
            .iter()
            .zip(content())
            .map(|(now, then)| (now ^ then).count_ones())
            .sum();
        assert!((1..=2).contains(&flipped), "{flipped}");
    }
}

#[test]
fn a_cut_takes_the_end_or_half() {
    let dir = data_dir();
    let target = target(&dir, FileKind::LogSegment);
    let mut halves = 0;
    for seed in 0..50 {
        fs::write(&target.path, content()).unwrap();
        cut(&target, &mut StdRng::seed_from_u64(seed)).unwrap();
        let now = fs::read(&target.path).unwrap();
        assert!(
            now.len() == 5_000 || (9_800..10_000).contains(&now.len()),
            "{}",
            now.len()
        );
        assert_eq!(now, content()[..now.len()]);
        halves += u32::from(now.len() == 5_000);
    }
    assert!((5..45).contains(&halves), "{halves}");
}

#[test]
fn old_blocks_come_back_and_what_was_not_there_then_is_zeros() {
    let dir = data_dir();
    let target = target(&dir, FileKind::LogSegment);
    let random = &mut StdRng::seed_from_u64(1);
    assert!(roll_back(&target, &content(), random).unwrap().is_none());
    let earlier = &content()[..5_000];
    let damaged = roll_back(&target, earlier, random).unwrap().unwrap();
    let now = fs::read(&target.path).unwrap();
    // The first block did not change; some of the others are in the earlier state.
    assert_eq!(now[..4096], content()[..4096]);
    assert_ne!(now, content());
    for block in [4096..8192, 8192..10_000] {
        let then: Vec<u8> = block
            .clone()
            .map(|at| earlier.get(at).copied().unwrap_or_default())
            .collect();
        assert!(now[block.clone()] == content()[block.clone()] || now[block.clone()] == then);
    }
    assert_eq!(damaged.left(dir.path()).unwrap(), Some(FileKind::LogSegment));
}

#[test]
fn a_damage_is_left_until_the_file_is_gone_or_new() {
    let dir = data_dir();
    let random = &mut StdRng::seed_from_u64(1);
    for damage in [flip, cut] {
        let target = target(&dir, FileKind::StateSst);
        fs::write(&target.path, content()).unwrap();
        let damaged = damage(&target, random).unwrap();
        assert_eq!(damaged.left(dir.path()).unwrap(), Some(FileKind::StateSst));
        // Under another name, as in a checkpoint.
        let other = dir.path().join("shards/0/snapshots/1/000008.sst");
        fs::hard_link(&target.path, &other).unwrap();
        fs::remove_file(&target.path).unwrap();
        assert_eq!(damaged.left(dir.path()).unwrap(), Some(FileKind::Snapshot));
        fs::remove_file(&other).unwrap();
        fs::write(&target.path, content()).unwrap();
        assert_eq!(damaged.left(dir.path()).unwrap(), None);
    }
}

#[test]
fn a_file_that_was_put_aside_is_not_in_use() {
    let dir = data_dir();
    let target = target(&dir, FileKind::StateSst);
    let damaged = flip(&target, &mut StdRng::seed_from_u64(1)).unwrap();
    fs::rename(&target.path, dir.path().join("shards/0/damaged/000005.sst")).unwrap();
    assert_eq!(damaged.left(dir.path()).unwrap(), None);
}

#[test]
fn damage_left_in_an_unread_file_counts_least() {
    let dir = data_dir();
    let target = target(&dir, FileKind::Unread);
    let checkpoint = dir.path().join("shards/0/snapshots/1/OPTIONS-000004");
    fs::hard_link(&target.path, &checkpoint).unwrap();
    let damaged = flip(&target, &mut StdRng::seed_from_u64(1)).unwrap();
    assert_eq!(damaged.left(dir.path()).unwrap(), Some(FileKind::Snapshot));
    fs::remove_file(&checkpoint).unwrap();
    assert_eq!(damaged.left(dir.path()).unwrap(), Some(FileKind::Unread));
}
