//! The nodes that a client may ask, and the one that it asks now.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Base URLs, of which one is current. All clones of a client share it, so one failure moves all of them on.
#[derive(Debug)]
pub(crate) struct Endpoints {
    bases: Vec<String>,
    current: AtomicUsize,
}

impl Endpoints {
    /// `bases` is not empty; the first is asked first.
    pub(crate) fn new(bases: Vec<String>) -> Self {
        debug_assert!(!bases.is_empty());
        Endpoints {
            bases,
            current: AtomicUsize::new(0),
        }
    }

    /// The node to ask, with its index for [`Endpoints::move_on`].
    pub(crate) fn current(&self) -> (usize, &str) {
        let index = self.current.load(Ordering::Relaxed);
        (index, &self.bases[index])
    }

    /// Makes the next node the current one, unless another caller has already moved on from `failed`.
    pub(crate) fn move_on(&self, failed: usize) {
        let next = (failed + 1) % self.bases.len();
        let _ = self
            .current
            .compare_exchange(failed, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    pub(crate) fn len(&self) -> usize {
        self.bases.len()
    }

    pub(crate) fn all(&self) -> &[String] {
        &self.bases
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn concurrent_failures_of_one_node_move_on_once() {
        let endpoints = Endpoints::new(vec!["a".to_owned(), "b".to_owned()]);
        let (failed, _) = endpoints.current();
        endpoints.move_on(failed);
        endpoints.move_on(failed);
        assert_eq!(endpoints.current(), (1, "b"));
        endpoints.move_on(1);
        assert_eq!(endpoints.current(), (0, "a"));
    }
}
