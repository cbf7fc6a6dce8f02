//! The gate for work that a hand-over of leadership waits for.
//!
//! A leader's worker enters for each piece of work whose outcome a new leader could not know, and leaves when the
//! outcome is recorded. A hand-over closes the gate, so that nothing new begins, and waits until all have left. A node
//! that loses leadership without a hand-over does not wait; the state machine handles that case.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

/// The gate of one shard on one node. Clones are cheap and share it.
#[derive(Clone, Default)]
pub struct Drain {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Hand-overs in progress. Locked together with changes of `inside`, so that no work enters while one begins.
    holds: Mutex<usize>,
    inside: watch::Sender<usize>,
}

/// One piece of work. Dropping it ends the work.
pub struct WorkGuard(Drain);

/// Keeps the gate closed until it is dropped.
pub struct DrainGuard(Drain);

impl Drain {
    /// Begins a piece of work; `None` while a hand-over is in progress.
    pub fn enter(&self) -> Option<WorkGuard> {
        let holds = self.shared.holds.lock();
        (*holds == 0).then(|| {
            self.shared.inside.send_modify(|inside| *inside += 1);
            WorkGuard(self.clone())
        })
    }

    /// Whether a hand-over is in progress.
    pub fn is_held(&self) -> bool {
        *self.shared.holds.lock() > 0
    }

    /// Closes the gate.
    pub fn hold(&self) -> DrainGuard {
        *self.shared.holds.lock() += 1;
        DrainGuard(self.clone())
    }

    /// Pieces of work that have not ended.
    pub fn inside(&self) -> usize {
        *self.shared.inside.borrow()
    }

    /// Waits until all work has ended.
    pub async fn emptied(&self) {
        let mut inside = self.shared.inside.subscribe();
        // Cannot fail: `self` keeps the sender alive.
        let _ = inside.wait_for(|inside| *inside == 0).await;
    }
}

impl Drop for WorkGuard {
    fn drop(&mut self) {
        let _together = self.0.shared.holds.lock();
        self.0.shared.inside.send_modify(|inside| *inside -= 1);
    }
}

impl Drop for DrainGuard {
    fn drop(&mut self) {
        *self.0.shared.holds.lock() -= 1;
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_hand_over_waits_for_what_is_inside_and_lets_nothing_in() {
        let drain = Drain::default();
        let work = drain.enter();
        assert!(work.is_some());
        let hold = drain.hold();
        assert!(drain.is_held() && drain.enter().is_none());
        assert!(drain.emptied().now_or_never().is_none());
        drop(work);
        drain.emptied().await;
        drop(hold);
        assert!(drain.enter().is_some());
    }
}
