//! Hints for the leader's workers. Unlike the hints for readers, they say where to look.
//!
//! Each kind is a set, so a place that is named twice before the worker looks is listed once. The set is bounded: when
//! it is full, or when a snapshot replaced the state, one hint says "everywhere".

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Upper bound on the hints that wait for a worker. Beyond it the worker reads the whole state.
const HINTS_WAITING_MAX: usize = 16_384;

/// The places to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Places<T> {
    /// Anything may have changed: read the whole state.
    Everywhere,
    /// These places.
    These(Vec<T>),
}

/// Hints of one kind, for one worker at a time.
pub(super) struct Board<T> {
    listeners: AtomicUsize,
    waiting: Mutex<Waiting<T>>,
    arrived: Notify,
}

struct Waiting<T> {
    everywhere: bool,
    places: HashSet<T>,
}

impl<T> Default for Board<T> {
    fn default() -> Self {
        Board {
            listeners: AtomicUsize::new(0),
            waiting: Mutex::new(Waiting {
                everywhere: false,
                places: HashSet::new(),
            }),
            arrived: Notify::new(),
        }
    }
}

impl<T: Eq + Hash> Board<T> {
    /// Starts to collect hints. The first one says "everywhere".
    pub(super) fn listen(self: &Arc<Self>) -> Work<T> {
        self.listeners.fetch_add(1, Ordering::SeqCst);
        self.everywhere();
        Work {
            board: Arc::clone(self),
        }
    }

    /// Adds a place. Costs one atomic load when no worker listens.
    pub(super) fn hint(&self, place: impl FnOnce() -> T) {
        if self.listeners.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut waiting = self.waiting.lock();
        if waiting.everywhere {
            return;
        }
        waiting.places.insert(place());
        if waiting.places.len() > HINTS_WAITING_MAX {
            waiting.everywhere = true;
            waiting.places = HashSet::new();
        }
        drop(waiting);
        self.arrived.notify_one();
    }

    /// Says that anything may have changed.
    pub(super) fn everywhere(&self) {
        let mut waiting = self.waiting.lock();
        waiting.everywhere = true;
        waiting.places = HashSet::new();
        drop(waiting);
        self.arrived.notify_one();
    }

    fn take(&self) -> Option<Places<T>> {
        let mut waiting = self.waiting.lock();
        if std::mem::take(&mut waiting.everywhere) {
            return Some(Places::Everywhere);
        }
        let places: Vec<T> = waiting.places.drain().collect();
        (!places.is_empty()).then_some(Places::These(places))
    }
}

/// A worker's hints. Register before reading.
pub struct Work<T> {
    board: Arc<Board<T>>,
}

impl<T: Eq + Hash> Work<T> {
    /// Waits for hints and returns all that were added since the last call. Cancel-safe.
    pub async fn next(&mut self) -> Places<T> {
        loop {
            if let Some(places) = self.board.take() {
                return places;
            }
            self.board.arrived.notified().await;
        }
    }

    /// The hints since the last call, without waiting; `None` if there are none.
    pub fn now(&mut self) -> Option<Places<T>> {
        self.board.take()
    }
}

impl<T> Drop for Work<T> {
    fn drop(&mut self) {
        self.board.listeners.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_place_is_named_once_and_the_first_look_is_everywhere() {
        let board = Arc::new(Board::default());
        board.hint(|| 1);
        let mut work = board.listen();
        assert_eq!(work.next().await, Places::Everywhere);
        assert_eq!(work.now(), None);
        for place in [7, 7, 7] {
            board.hint(|| place);
        }
        assert_eq!(work.next().await, Places::These(vec![7]));
        assert!(work.next().now_or_never().is_none());
    }

    #[tokio::test]
    async fn too_many_places_are_everywhere() {
        let board = Arc::new(Board::default());
        let mut work = board.listen();
        work.next().await;
        for place in 0..=HINTS_WAITING_MAX {
            board.hint(|| place);
        }
        assert_eq!(work.next().await, Places::Everywhere);
        board.hint(|| 3);
        board.everywhere();
        assert_eq!(work.next().await, Places::Everywhere);
        drop(work);
        assert_eq!(board.listeners.load(Ordering::SeqCst), 0);
    }
}
