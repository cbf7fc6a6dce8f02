#![allow(clippy::unwrap_used)]

use agentpost_proto::command::{LeaseReads, MarkRead, Outcome, RevokeKey, Send, Tick};

use super::*;

const RULE: Rule = Rule {
    min_free_bytes: 256 * MIB,
    min_free_percent: 5,
    ballast_bytes: 64 * MIB,
};

/// Of a disk of so many MiB.
fn room(total: u64, free: u64, ballast: u64) -> Room {
    Room {
        total: total * MIB,
        free: free * MIB,
        ballast: ballast * MIB,
    }
}

#[test]
fn the_larger_limit_counts() {
    assert!(!RULE.refuses(room(1_000, 256, 64), false));
    assert!(RULE.refuses(room(1_000, 255, 64), false));
    assert!(!RULE.refuses(room(100_000, 5_000, 64), false));
    assert!(RULE.refuses(room(100_000, 4_999, 64), false));
}

#[test]
fn a_missing_ballast_is_not_free_space() {
    assert!(RULE.refuses(room(1_000, 319, 0), false));
    assert!(!RULE.refuses(room(1_000, 320, 0), false));
    // Given up at 10 MiB, which are 74 then: that is no reason to take writes.
    let low = Rule {
        min_free_bytes: 16 * MIB,
        min_free_percent: 0,
        ..RULE
    };
    assert!(low.refuses(room(128, 74, 0), true));
    assert!(!low.refuses(room(128, 82, 0), true));
}

#[test]
fn it_ends_only_with_an_eighth_more() {
    assert!(RULE.refuses(room(1_000, 287, 64), true));
    assert!(!RULE.refuses(room(1_000, 288, 64), true));
    assert_eq!(RULE.enough(room(1_000, 0, 0)), 352 * MIB);
}

#[test]
fn nought_is_off() {
    let off = Rule {
        min_free_bytes: 0,
        min_free_percent: 0,
        ballast_bytes: 0,
    };
    assert!(!off.refuses(room(1_000, 0, 0), false) && !off.refuses(room(1_000, 0, 0), true));
    assert!(!off.makes_ballast(room(1_000, 1_000, 0), false) && !off.gives_up_ballast(room(1_000, 0, 0)));
}

#[test]
fn the_ballast_goes_when_nothing_is_left_and_comes_back_above_the_limit() {
    assert!(!RULE.gives_up_ballast(room(1_000, 64, 64)));
    assert!(RULE.gives_up_ballast(room(1_000, 63, 64)));
    assert!(!RULE.gives_up_ballast(room(1_000, 63, 0)));
    assert!(!RULE.makes_ballast(room(1_000, 340, 0), true));
    assert!(RULE.makes_ballast(room(1_000, 352, 0), false));
    assert!(!RULE.makes_ballast(room(1_000, 900, 64), false));
    // Without limits: never so that the next start gives it up again.
    let ballast_only = Rule {
        min_free_bytes: 0,
        min_free_percent: 0,
        ..RULE
    };
    for free in 0..300 {
        let before = room(1_000, free, 0);
        if ballast_only.makes_ballast(before, false) {
            assert!(!ballast_only.gives_up_ballast(room(1_000, free - 64, 64)), "{free}");
        }
    }
}

#[test]
fn what_makes_room_or_is_the_clusters_own_goes_on() {
    use operation::Op;
    let judged = |op| {
        takes_room(&Operation {
            principal: None,
            op: Some(op),
        })
    };
    assert!(judged(Op::Send(Send::default())));
    for op in [
        Op::MarkRead(MarkRead::default()),
        Op::RevokeKey(RevokeKey::default()),
        Op::LeaseReads(LeaseReads::default()),
        Op::Outcome(Outcome::default()),
        Op::Tick(Tick {}),
    ] {
        assert!(!judged(op));
    }
}

fn space(dir: &std::path::Path, storage: &str) -> Space {
    let text = format!("[node]\ndata_dir = \"{}\"\n[storage]\n{storage}", dir.display());
    Space::open(&Config::from_parts("test", &text, []).unwrap())
}

#[test]
fn the_ballast_occupies_what_it_says() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(BALLAST);
    let off = "min_free_bytes = 0\nmin_free_percent = 0\n";
    // A hole of the right length is none.
    File::create(&path).unwrap().set_len(3 * MIB).unwrap();
    let wanting = space(dir.path(), &format!("{off}ballast_bytes = {}", 3 * MIB));
    wanting.shared.look(Moment::Later);
    let found = fs::metadata(&path).unwrap();
    assert_eq!((found.len(), found.mode() & 0o777), (3 * MIB, 0o600));
    assert!(found.blocks() * 512 >= 3 * MIB);
    assert_eq!(wanting.shared.room().unwrap().ballast, 3 * MIB);

    // Another size is another ballast, and none is none.
    space(dir.path(), &format!("{off}ballast_bytes = {}", 5 * MIB))
        .shared
        .look(Moment::Later);
    assert_eq!(fs::metadata(&path).unwrap().len(), 5 * MIB);
    space(dir.path(), &format!("{off}ballast_bytes = {MIB}"))
        .shared
        .look(Moment::Later);
    assert_eq!(fs::metadata(&path).unwrap().len(), MIB);
    let without = space(dir.path(), &format!("{off}ballast_bytes = 0"));
    assert!(!path.exists());
    assert_eq!(without.refusal(), None);
}

#[test]
fn zeros_serve_where_the_file_system_reserves_nothing() {
    let file = tempfile::tempfile().unwrap();
    write_zeros(&file, 2 * MIB + 5).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 2 * MIB + 5);
}

#[test]
fn a_start_with_less_than_the_ballast_free_gives_it_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(BALLAST);
    let space = space(dir.path(), &format!("ballast_bytes = {MIB}"));
    space.shared.make_ballast().unwrap();
    let shared = Shared {
        dir: dir.path().to_owned(),
        // More than any disk has free, so there is less.
        rule: Rule {
            ballast_bytes: u64::MAX,
            ..space.shared.rule
        },
        node: 1,
        free: AtomicU64::new(0),
        refusing: AtomicBool::new(false),
        reason: Mutex::default(),
        whole: AtomicBool::new(false),
    };
    shared.look(Moment::Later);
    assert!(path.exists());
    shared.look(Moment::Start);
    assert!(!path.exists());
}

#[test]
fn a_full_disk_is_told_with_node_path_and_cure() {
    let dir = tempfile::tempdir().unwrap();
    let space = space(dir.path(), "min_free_bytes = 9_000_000_000_000_000");
    let reason = space.refusal().unwrap();
    for told in [
        "node 1",
        dir.path().to_str().unwrap(),
        "storage.min_free_bytes",
        "nothing was changed",
    ] {
        assert!(reason.contains(told), "{told} not in {reason}");
    }
    let metrics = Metrics::new();
    space.measure(&metrics);
    assert_eq!(metrics.storage.refusing.get(), 1);
    assert!(metrics.storage.free_bytes.get() > 0);
    space.shared.look(Moment::Later);
    assert!(!dir.path().join(BALLAST).exists(), "no ballast below the limit");

    // Space returns.
    space.shared.judge(Room {
        total: u64::MAX / 100,
        free: u64::MAX / 100,
        ballast: 0,
    });
    assert_eq!(space.refusal(), None);
    space.measure(&metrics);
    assert_eq!(metrics.storage.refusing.get(), 0);
}
