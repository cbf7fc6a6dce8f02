#![allow(clippy::unwrap_used)]

use agentpost_proto::command::{LeaseReads, MarkRead, Outcome, RevokeKey, Send, Tick};

use super::*;

const RULE: Rule = Rule {
    min_free_bytes: 256 * MIB,
    min_free_percent: 5,
    ballast_bytes: 64 * MIB,
};

/// The free space of a disk; all sizes are in MiB.
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
    // Giving the ballast up at 10 MiB free leaves 74 MiB free, which must not make the node accept writes again.
    let low = Rule {
        min_free_bytes: 16 * MIB,
        min_free_percent: 0,
        ..RULE
    };
    assert!(low.refuses(room(128, 74, 0), true));
    assert!(!low.refuses(room(128, 82, 0), true));
}

#[test]
fn writes_are_accepted_again_only_with_an_eighth_more_free() {
    assert!(RULE.refuses(room(1_000, 287, 64), true));
    assert!(!RULE.refuses(room(1_000, 288, 64), true));
    assert_eq!(RULE.enough(room(1_000, 0, 0)), 352 * MIB);
}

#[test]
fn zero_disables_a_limit() {
    let off = Rule {
        min_free_bytes: 0,
        min_free_percent: 0,
        ballast_bytes: 0,
    };
    assert!(!off.refuses(room(1_000, 0, 0), false) && !off.refuses(room(1_000, 0, 0), true));
    assert!(!off.makes_ballast(room(1_000, 1_000, 0), false) && !off.gives_up_ballast(room(1_000, 0, 0)));
}

#[test]
fn the_ballast_is_given_up_when_nothing_is_left_and_made_again_above_the_limit() {
    assert!(!RULE.gives_up_ballast(room(1_000, 64, 64)));
    assert!(RULE.gives_up_ballast(room(1_000, 63, 64)));
    assert!(!RULE.gives_up_ballast(room(1_000, 63, 0)));
    assert!(!RULE.makes_ballast(room(1_000, 340, 0), true));
    assert!(RULE.makes_ballast(room(1_000, 352, 0), false));
    assert!(!RULE.makes_ballast(room(1_000, 900, 64), false));
    // Without limits the ballast is made only if the next start would not give it up again.
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
fn operations_that_free_space_or_are_internal_are_never_refused() {
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
fn the_ballast_occupies_its_configured_size() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(BALLAST);
    let off = "min_free_bytes = 0\nmin_free_percent = 0\n";
    // A sparse file of the right length is not a ballast.
    File::create(&path).unwrap().set_len(3 * MIB).unwrap();
    let wanting = space(dir.path(), &format!("{off}ballast_bytes = {}", 3 * MIB));
    wanting.shared.look(Moment::Later);
    let found = fs::metadata(&path).unwrap();
    assert_eq!((found.len(), found.mode() & 0o777), (3 * MIB, 0o600));
    assert!(found.blocks() * 512 >= 3 * MIB);
    assert_eq!(wanting.shared.room().unwrap().ballast, 3 * MIB);

    // Another configured size replaces the ballast, and size 0 removes it.
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
fn zeros_are_written_where_the_file_system_cannot_reserve() {
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
        // No disk has so much free, so the free space is below it.
        rule: Rule {
            ballast_bytes: u64::MAX,
            ..space.shared.rule
        },
        node: 1,
        free: AtomicU64::new(0),
        spare: AtomicU64::new(0),
        refusing: AtomicBool::new(false),
        reason: Mutex::default(),
        whole: AtomicBool::new(false),
        failures: Repeats::default(),
    };
    shared.look(Moment::Later);
    assert!(path.exists());
    shared.look(Moment::Start);
    assert!(!path.exists());
}

#[test]
fn a_full_disk_is_reported_with_node_path_and_remedy() {
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

    // The disk has enough free space again.
    space.shared.judge(Room {
        total: u64::MAX / 100,
        free: u64::MAX / 100,
        ballast: 0,
    });
    assert_eq!(space.refusal(), None);
    space.measure(&metrics);
    assert_eq!(metrics.storage.refusing.get(), 0);
}
