//! The thread that removes purged segments. Unlinking a large file takes a file system some milliseconds, and nobody
//! waits for it, so it does not hold up the thread that makes writes durable.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use crate::disk::damage::Failure;

/// A handle of the thread. Dropping it waits until the segments are removed.
pub(super) struct Removal {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    wanted: Mutex<Wanted>,
    wake: Condvar,
}

struct Wanted {
    /// All segments before this one are to be removed.
    before: u64,
    closed: bool,
}

impl Removal {
    /// Starts the thread. `remove` removes these segments, of which `oldest` is the first.
    pub(super) fn spawn(
        oldest: u64,
        failure: Failure,
        remove: impl FnMut(Range<u64>) -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            wanted: Mutex::new(Wanted {
                before: oldest,
                closed: false,
            }),
            wake: Condvar::new(),
        });
        let thread = std::thread::Builder::new().name("log-removal".to_owned()).spawn({
            let shared = shared.clone();
            move || {
                let _noticed = failure.on_panic("log-removal");
                shared.run(oldest, remove);
            }
        })?;
        Ok(Removal {
            shared,
            thread: Some(thread),
        })
    }

    /// Removes all segments before this one. The purge of their entries must be durable: they cannot come back.
    pub(super) fn of_all_before(&self, segment: u64) {
        self.shared.wanted.lock().before = segment;
        self.shared.wake.notify_one();
    }
}

impl Shared {
    fn run(&self, mut oldest: u64, mut remove: impl FnMut(Range<u64>) -> io::Result<()>) {
        let mut tried = oldest;
        while let Some(before) = self.next(tried) {
            tried = before;
            match remove(oldest..before) {
                Ok(()) => oldest = before,
                Err(error) => {
                    tracing::warn!(%error, "removing purged files of the log failed; the next purge tries again");
                }
            }
        }
    }

    /// The end of what is to be removed, when it lies behind `tried`, or `None` when the handle was dropped.
    fn next(&self, tried: u64) -> Option<u64> {
        let mut wanted = self.wanted.lock();
        while wanted.before <= tried {
            if wanted.closed {
                return None;
            }
            self.wake.wait(&mut wanted);
        }
        Some(wanted.before)
    }
}

impl Drop for Removal {
    fn drop(&mut self) {
        self.shared.wanted.lock().closed = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            // An error means a panic, which the thread has already reported.
            drop(thread.join());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_removed_is_removed_with_the_next_purge() {
        let calls = Arc::new(Mutex::new(Vec::new()));
        let called = calls.clone();
        let removal = Removal::spawn(2, Failure::default(), move |range| {
            called.lock().push(range.clone());
            match range.end {
                5 => Err(io::Error::other("busy")),
                _ => Ok(()),
            }
        })
        .unwrap();
        for before in [2, 4, 4, 5, 7] {
            removal.of_all_before(before);
            while before > 2 && calls.lock().last().is_none_or(|last| last.end != before) {
                std::thread::yield_now();
            }
        }
        drop(removal);
        assert_eq!(*calls.lock(), [2..4, 4..5, 4..7]);
    }
}
