//! Installing a snapshot: what a crash leaves, and what apply does not wait for.

use super::*;
use crate::disk::files::removals;
use crate::disk::state::point_to;

/// The steps of an installation as in `install.rs`. A crash comes after one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Linked,
    Prepared,
    Placed,
    Unmarked,
    Pointed,
    Replaced,
}

fn install_until(stores: &Stores, snapshots: &Snapshots, data: SnapshotData, last: Step) {
    let prepared = data.prepared.take().unwrap();
    prepared.spare(); // a crash removes nothing
    let name = prepared.name();
    if last < Step::Placed {
        if last == Step::Linked {
            let state = stores.state.layout().state();
            fs::rename(state.join(name), state.join("staged")).unwrap();
        }
        return std::mem::forget(data);
    }
    snapshots.place(data).unwrap();
    if last < Step::Unmarked {
        return;
    }
    install::make_live(prepared.dir()).unwrap();
    if last < Step::Pointed {
        return;
    }
    point_to(stores.state.layout(), &name).unwrap();
    if last == Step::Replaced {
        stores.state.replace(prepared);
    }
}

/// The snapshots of a node, whose own handle would remove what a crash leaves.
async fn other_handle(dir: &Path, stores: &mut Stores) -> Snapshots {
    let newest = stores.machine.get_current_snapshot().await.unwrap();
    Snapshots {
        dir: dir.join("shards/0/snapshots"),
        incoming: dir.join("shards/0/incoming"),
        kept: stores.snapshots.kept.clone(),
        receptions: AtomicU64::new(0),
        purge_point: stores.log.purge_point(),
        states: stores.snapshots.states.clone(),
        newest: Mutex::new(newest.map(|snapshot| snapshot.snapshot)),
    }
}

#[tokio::test]
async fn a_crash_during_an_installation_leaves_the_old_state_or_the_new_one() {
    let dir = TempDir::new().unwrap();
    let mut leader = node(&dir.path().join("leader"), "new", 40).await;
    let built = build(&mut leader).await;
    let new = rows(&leader.state.current());
    for last in [
        Step::Linked,
        Step::Prepared,
        Step::Placed,
        Step::Unmarked,
        Step::Pointed,
        Step::Replaced,
    ] {
        let (live, copy) = (
            dir.path().join(format!("{last:?}")),
            dir.path().join(format!("{last:?} copy")),
        );
        let mut follower = node(&live, "old", 3).await;
        build(&mut follower).await; // an older snapshot, which is replaced
        let old = rows(&follower.state.current());
        let received = send(&built, &follower).await;
        let snapshots = other_handle(&live, &mut follower).await;
        install_until(&follower, &snapshots, received, last);
        crash_copy(&live, &copy);

        let mut after = open(&copy);
        let expected = if last < Step::Pointed { &old } else { &new };
        assert_eq!(&rows(&after.state.current()), expected, "{last:?}");
        start(&mut after).await;
        let (expected, at) = if last < Step::Placed { (&old, 3) } else { (&new, 40) };
        assert_eq!(
            &rows(&after.state.current()),
            expected,
            "{last:?}: openraft finished it"
        );
        let state = after.log.get_log_state().await.unwrap();
        assert_eq!(state.last_log_id, Some(log_id(1, at)), "{last:?}");
        let offered = after.machine.get_current_snapshot().await.unwrap().unwrap();
        assert_eq!(offered.meta.last_log_id, Some(log_id(1, at)), "{last:?}");
        drop((after, offered));
        drop(open(&copy));
        assert_eq!(names(&copy, "snapshots").len(), 1, "{last:?}");
        assert_eq!(names(&copy, "state").len(), 2, "{last:?}: CURRENT and one database");
        assert!(names(&copy, "incoming").is_empty());
    }
}

/// The log may still have entries that the snapshot contradicts: openraft removes them before the installation.
#[tokio::test]
async fn a_start_does_not_use_a_state_that_was_prepared_and_not_installed() {
    let dir = TempDir::new().unwrap();
    let (live, copy) = (dir.path().join("live"), dir.path().join("copy"));
    let mut leader = node(&dir.path().join("leader"), "new", 40).await;
    let built = build(&mut leader).await;
    let mut follower = node(&live, "old", 3).await;
    let received = send(&built, &follower).await;
    let snapshots = other_handle(&live, &mut follower).await;
    install_until(&follower, &snapshots, received, Step::Prepared);
    crash_copy(&live, &copy);
    fs::remove_file(copy.join("shards/0/state/db-1/CURRENT")).unwrap();
    let after = open(&copy);
    let applied = after.state.current().applied().unwrap();
    assert_eq!(applied.last, None, "empty, because the log was never purged");
}

/// openraft applies nothing during an installation, and RaftCore cannot purge the log before it ends.
#[tokio::test]
async fn an_installation_neither_reads_nor_links_nor_removes_the_files_of_a_state() {
    let dir = TempDir::new().unwrap();
    let live = dir.path().join("live");
    let mut leader = node(&dir.path().join("leader"), "new", 40).await;
    let built = build(&mut leader).await;
    let mut follower = node(&live, "old", 3).await;
    let replaced = build(&mut follower).await.dir().to_owned();
    let (old, received) = (follower.state.current().dir().to_owned(), send(&built, &follower).await);
    let prepared = names(&live, "state");
    assert_eq!(prepared, ["CURRENT", "db-1", "db-2"]);
    for file in &received.meta().files {
        fs::remove_file(received.dir().join(&file.name)).unwrap();
    }
    let (dead, refused) = (send(&built, &follower).await, live.join("shards/0/state/db-3"));
    install_on(&mut follower, received).await;
    assert_eq!(rows(&follower.state.current()), rows(&leader.state.current()));
    drop(dead);
    for removed in [old, replaced, refused] {
        while removals::was_beside(&removed).is_none() {
            tokio::task::yield_now().await;
        }
        assert_eq!(removals::was_beside(&removed), Some(true), "{}", removed.display());
    }
}
