//! What must be finished before this node gives leadership away.
//!
//! Leader's workers enter for each piece of work that a new leader could not know the outcome of, and leave
//! when the outcome is recorded. A hand-over holds the gate, so that nothing new begins, and waits until all
//! have left. Whatever loses leadership without asking loses this courtesy too; the state machine copes.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

/// The gate of one shard on one node. Cheap to clone.
#[derive(Clone, Default)]
pub struct Drain {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Hand-overs under way. Locked together with changes of `inside`, so that nobody slips in.
    holds: Mutex<usize>,
    inside: watch::Sender<usize>,
}

/// One piece of work; it ends when this is dropped.
pub struct WorkGuard(Drain);

/// Nothing enters while this lives.
pub struct DrainGuard(Drain);

impl Drain {
    /// Begins a piece of work; none while a hand-over is under way.
    pub fn enter(&self) -> Option<WorkGuard> {
        let holds = self.shared.holds.lock().unwrap_or_else(PoisonError::into_inner);
        (*holds == 0).then(|| {
            self.shared.inside.send_modify(|inside| *inside += 1);
            WorkGuard(self.clone())
        })
    }

    /// Whether a hand-over is under way.
    pub fn is_held(&self) -> bool {
        *self.shared.holds.lock().unwrap_or_else(PoisonError::into_inner) > 0
    }

    /// Lets nothing enter.
    pub fn hold(&self) -> DrainGuard {
        *self.shared.holds.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        DrainGuard(self.clone())
    }

    /// Pieces of work under way.
    pub fn inside(&self) -> usize {
        *self.shared.inside.borrow()
    }

    /// Waits until all have left.
    pub async fn emptied(&self) {
        let mut inside = self.shared.inside.subscribe();
        // The sender lives in `self`.
        let _ = inside.wait_for(|inside| *inside == 0).await;
    }
}

impl Drop for WorkGuard {
    fn drop(&mut self) {
        let _together = self.0.shared.holds.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.shared.inside.send_modify(|inside| *inside -= 1);
    }
}

impl Drop for DrainGuard {
    fn drop(&mut self) {
        *self.0.shared.holds.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
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
