//! Notices that committed entries are not applied.
//!
//! Raft ends when apply fails. But an apply that hangs, in a disk or in a bug, fails nothing: such a leader would send
//! heartbeats for ever and answer nobody. Any finished batch counts as progress, so a long backlog is no alarm.
//!
//! - After [`Limits::stuck`] without progress this node says that it is not ready. If it leads, it offers its leadership
//!   to another node, without waiting for the work under way, because that cannot be recorded here.
//! - After [`Limits::end`] the process ends, because a restart finds out what is on its disk.
//!
//! The end comes much later than for the flush of the log, since an apply may wait for a disk that is only slow (a
//! snapshot of large memtables, a write stall of RocksDB). A restart would apply up to a minute of entries again on
//! the same disk, and the nodes of a cluster often share the kind of disk: all of them would end at once. An operator
//! sees the alarm at the same moment in both cases, and the cluster works with another leader meanwhile.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use agentpost_raft_store::disk::state::StateHandle;
use futures::FutureExt as _;
use futures::future::{Fuse, FusedFuture as _};
use openraft::LogIdOptionExt as _;
use openraft::async_runtime::watch::WatchReceiver as _;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::Raft;
use super::this_node::ThisNode;

/// Interval between two checks.
const CHECK_EVERY: Duration = Duration::from_millis(250);

/// The times without progress that have consequences.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// This node is not ready and does not lead.
    stuck: Duration,
    /// Then the process ends.
    end: Duration,
}

const LIMITS: Limits = Limits {
    stuck: Duration::from_secs(10),
    end: Duration::from_secs(60),
};

/// How far apply is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Progress {
    /// Whether this node has committed entries that are not applied.
    is_behind: bool,
    /// The batches and snapshots that were written to the state so far.
    steps: u64,
}

/// Watches apply. Clones are cheap and share what they have seen.
#[derive(Clone)]
pub struct ApplyWatch {
    shared: Arc<Shared>,
}

struct Shared {
    progress: Box<dyn Fn() -> Progress + Send + Sync>,
    /// The progress that was seen last, and since when entries wait without any.
    seen: Mutex<(Progress, Option<Instant>)>,
}

impl ApplyWatch {
    /// Watches how `raft` applies entries to `state`.
    pub fn new(raft: &Raft, state: StateHandle) -> Self {
        let metrics = raft.data_metrics();
        Self::of(move || {
            let metrics = metrics.borrow_watched();
            Progress {
                is_behind: metrics.local_committed.index() > metrics.last_applied.index(),
                steps: state.steps(),
            }
        })
    }

    fn of(progress: impl Fn() -> Progress + Send + Sync + 'static) -> Self {
        let seen = Mutex::new((progress(), None));
        let progress = Box::new(progress);
        ApplyWatch {
            shared: Arc::new(Shared { progress, seen }),
        }
    }

    /// How long committed entries have waited without progress; zero while none wait.
    pub fn waiting(&self) -> Duration {
        let (_, since) = *self.shared.seen.lock();
        since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Whether they have waited for so long that this node cannot serve.
    pub fn is_stuck(&self) -> bool {
        self.waiting() >= LIMITS.stuck
    }

    /// Waits until apply has hung for so long that the process must end; returns the reason.
    pub async fn failed(&self) -> String {
        while self.waiting() < LIMITS.end {
            sleep(CHECK_EVERY).await;
        }
        format!(
            "committed entries have not been applied for {:.0?}: the state's disk hangs, or this is a bug; check the disk, then start the node again",
            LIMITS.end
        )
    }

    /// Checks the progress until `shutdown`.
    pub async fn run(self, this_node: ThisNode, shutdown: CancellationToken) {
        let watching = self.watch(|| this_node.give_up_leadership());
        shutdown.run_until_cancelled(watching).await;
    }

    /// Checks the progress, also while `give_up_leadership` waits for the other nodes.
    async fn watch<F: Future<Output = ()>>(&self, give_up_leadership: impl Fn() -> F) {
        let mut stuck = false;
        let mut giving_up = pin!(Fuse::terminated());
        loop {
            self.check();
            if std::mem::replace(&mut stuck, self.is_stuck()) != stuck {
                self.tell(stuck);
                if stuck {
                    giving_up.set(give_up_leadership().fuse());
                }
            }
            tokio::select! {
                () = sleep(CHECK_EVERY) => {}
                () = &mut giving_up, if !giving_up.is_terminated() => {}
            }
        }
    }

    fn check(&self) {
        let progress = (self.shared.progress)();
        let mut seen = self.shared.seen.lock();
        let (before, since) = *seen;
        let moved = progress.steps != before.steps;
        let since = match progress.is_behind {
            true if moved || since.is_none() => Some(Instant::now()),
            true => since,
            false => None,
        };
        *seen = (progress, since);
    }

    fn tell(&self, stuck: bool) {
        if stuck {
            tracing::error!(
                waiting = ?LIMITS.stuck,
                ends_after = ?LIMITS.end,
                "committed entries are not applied, so this node is not ready and does not lead; check the disk of the state"
            );
        } else {
            tracing::info!("committed entries are applied again");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use tokio::time::timeout;

    use super::*;

    /// A watch over an apply that the test moves on: odd numbers are behind, and each half is a step.
    fn watch() -> (ApplyWatch, Arc<AtomicU64>) {
        let state = Arc::new(AtomicU64::new(0));
        let read = Arc::clone(&state);
        let watch = ApplyWatch::of(move || {
            let state = read.load(Ordering::Relaxed);
            Progress {
                is_behind: state % 2 == 1,
                steps: state / 2,
            }
        });
        (watch, state)
    }

    /// Checks as often as the task does.
    async fn checked_for(watch: &ApplyWatch, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            watch.check();
            sleep(CHECK_EVERY).await;
        }
        watch.check();
    }

    #[tokio::test(start_paused = true)]
    async fn only_entries_that_wait_without_any_progress_are_stuck() {
        let (watch, state) = watch();
        checked_for(&watch, 2 * LIMITS.end).await;
        assert_eq!(watch.waiting(), Duration::ZERO, "nothing to apply");
        for backlog in 0..100 {
            state.store(2 * backlog + 1, Ordering::Relaxed);
            checked_for(&watch, LIMITS.stuck / 2).await;
            assert!(!watch.is_stuck(), "a batch was applied");
        }
        checked_for(&watch, LIMITS.stuck).await;
        assert!(watch.is_stuck());
        assert!(timeout(CHECK_EVERY, watch.failed()).await.is_err());
        state.fetch_add(2, Ordering::Relaxed);
        checked_for(&watch, CHECK_EVERY).await;
        assert!(!watch.is_stuck(), "it has moved on");
    }

    #[tokio::test(start_paused = true)]
    async fn apply_is_watched_while_leadership_is_given_up() {
        let (watch, state) = watch();
        state.store(1, Ordering::Relaxed);
        let given_up = AtomicU64::new(0);
        let watching = watch.watch(|| {
            given_up.fetch_add(1, Ordering::Relaxed);
            std::future::pending()
        });
        let moving_on = async {
            sleep(LIMITS.stuck + 2 * CHECK_EVERY).await;
            assert!(watch.is_stuck());
            state.store(2, Ordering::Relaxed);
            sleep(2 * CHECK_EVERY).await;
            assert_eq!(watch.waiting(), Duration::ZERO);
        };
        tokio::select! {
            () = watching => {}
            () = moving_on => {}
        }
        assert_eq!(given_up.load(Ordering::Relaxed), 1, "no other node has answered yet");
    }

    #[tokio::test(start_paused = true)]
    async fn an_apply_that_hangs_ends_the_process_in_the_end() {
        let (watch, state) = watch();
        state.store(1, Ordering::Relaxed);
        checked_for(&watch, LIMITS.end - 2 * CHECK_EVERY).await;
        assert!(timeout(CHECK_EVERY / 2, watch.failed()).await.is_err());
        assert!(watch.failed().await.contains("not been applied for 60s"));
    }
}
