//! The thread that makes the log durable.
//!
//! Every write to the WAL puts a [`Waiter`] into the queue of this thread. The thread takes all waiters, flushes the
//! WAL once for all of them, and completes them in their order. While a flush runs, the next group accumulates: the
//! slower the disk, the larger the groups.
//!
//! The queue has no bound of its own. A waiter is an append that openraft has in flight, and the number of operations
//! in flight is bounded where the node admits them.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use openraft::storage::IOFlushed;
use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::oneshot;

use super::metrics::LogMetrics;
use crate::disk::damage::Failure;
use crate::disk::floor::Mark;
use crate::disk::types::TypeConfig;

/// Waits until everything written so far is durable.
pub(super) enum Waiter {
    /// An append of openraft, which continues meanwhile, with a mark of its last entry.
    Append(IOFlushed<TypeConfig>, Option<Mark>),
    /// A caller in this crate that waits.
    Barrier(oneshot::Sender<io::Result<()>>),
}

impl Waiter {
    /// Completes the waiter, and returns the mark of the entry that is durable now.
    fn complete(self, result: io::Result<()>) -> Option<Mark> {
        let durable = result.is_ok();
        match self {
            Waiter::Append(flushed, mark) => {
                flushed.io_completed(result);
                mark.filter(|_| durable)
            }
            Waiter::Barrier(done) => {
                // An error means that the receiver was dropped, because the node is stopping.
                drop(done.send(result));
                None
            }
        }
    }
}

/// A handle of the thread. Dropping it waits until the queue is empty.
pub(super) struct SyncThread {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    failure: Failure,
}

#[derive(Default)]
struct Queue {
    waiters: Vec<Waiter>,
    closed: bool,
}

impl SyncThread {
    /// Starts the thread. `sync` makes everything durable that was written before the call. `flushed` is called with
    /// the mark of the last durable entry, after its waiter was completed.
    pub(super) fn spawn(
        sync: impl FnMut() -> Result<(), String> + Send + 'static,
        flushed: impl Fn(Mark) + Send + 'static,
        failure: Failure,
        metrics: Arc<LogMetrics>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            wake: Condvar::new(),
            failure,
        });
        let thread = std::thread::Builder::new().name("log-sync".to_owned()).spawn({
            let shared = shared.clone();
            move || {
                let _noticed = shared.failure.on_panic("log-sync");
                shared.run(sync, flushed, &metrics);
            }
        })?;
        Ok(SyncThread {
            shared,
            thread: Some(thread),
        })
    }

    /// Completes the waiter when everything written before this call is durable.
    pub(super) fn wait(&self, waiter: Waiter) {
        self.shared.lock().waiters.push(waiter);
        self.shared.wake.notify_one();
    }

    /// Returns when everything written before this call is durable.
    pub(super) async fn barrier(&self) -> io::Result<()> {
        let (done, waiting) = oneshot::channel();
        self.wait(Waiter::Barrier(done));
        waiting
            .await
            .unwrap_or_else(|_| Err(io::Error::other("the log's sync thread has ended")))
    }

    /// Returns the error if this log has failed.
    pub(super) fn check(&self) -> io::Result<()> {
        self.shared.failure.check()
    }

    /// Marks this log as failed: the write that failed may be only partly on disk.
    pub(super) fn fail(&self, error: &str) {
        self.shared.failure.set(error);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock()
    }

    /// The next group, or `None` when the handle was dropped and every waiter is completed.
    fn next(&self) -> Option<Vec<Waiter>> {
        let mut queue = self.lock();
        while queue.waiters.is_empty() {
            if queue.closed {
                return None;
            }
            self.wake.wait(&mut queue);
        }
        Some(std::mem::take(&mut queue.waiters))
    }

    fn run(&self, mut sync: impl FnMut() -> Result<(), String>, flushed: impl Fn(Mark), metrics: &LogMetrics) {
        while let Some(group) = self.next() {
            // Never flush again after a failure: the kernel may have dropped the dirty pages and then reports success.
            if self.failure.check().is_ok()
                && let Err(error) = metrics.measure(&mut sync)
            {
                self.failure.set(&error);
            }
            let mut durable = None;
            for waiter in group {
                durable = waiter.complete(self.failure.check()).or(durable);
            }
            if let Some(mark) = durable {
                flushed(mark);
            }
        }
    }
}

impl Drop for SyncThread {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
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
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc;

    use super::*;

    fn spawn(sync: impl FnMut() -> Result<(), String> + Send + 'static) -> SyncThread {
        SyncThread::spawn(sync, |_| (), Failure::default(), Arc::new(LogMetrics::new())).unwrap()
    }

    #[tokio::test]
    async fn one_flush_serves_all_that_waited_meanwhile() {
        let (release, gate) = mpsc::sync_channel::<()>(2);
        let flushes = Arc::new(AtomicU32::new(0));
        let counted = flushes.clone();
        let thread = spawn(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            gate.recv().map_err(|e| e.to_string())
        });
        let waiting: Vec<_> = (0..10)
            .map(|_| {
                let (done, waiting) = oneshot::channel();
                thread.wait(Waiter::Barrier(done));
                waiting
            })
            .collect();
        // The first flush completes the waiters that were there when it began, the second all others.
        release.send(()).unwrap();
        release.send(()).unwrap();
        drop(release);
        for waiting in waiting {
            waiting.await.unwrap().unwrap();
        }
        assert!(flushes.load(Ordering::Relaxed) <= 2);
    }

    #[tokio::test]
    async fn a_failed_flush_is_never_retried() {
        let flushes = Arc::new(AtomicU32::new(0));
        let counted = flushes.clone();
        let thread = spawn(move || match counted.fetch_add(1, Ordering::Relaxed) {
            0 => Ok(()),
            _ => Err("EIO".to_owned()),
        });
        thread.barrier().await.unwrap();
        assert!(thread.check().is_ok());
        for _ in 0..3 {
            assert!(thread.barrier().await.unwrap_err().to_string().contains("EIO"));
            assert!(thread.check().is_err());
        }
        assert_eq!(flushes.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn a_failed_write_ends_the_log_without_another_flush() {
        let thread = spawn(|| panic!("not after a failed write"));
        thread.fail("no space");
        assert!(thread.barrier().await.is_err());
    }

    #[tokio::test]
    async fn a_panic_of_the_thread_is_a_failure_of_the_log() {
        let failure = Failure::default();
        let metrics = Arc::new(LogMetrics::new());
        let thread = SyncThread::spawn(|| panic!("a bug"), |_| (), failure.clone(), metrics).unwrap();
        assert!(thread.barrier().await.is_err());
        // Joins the thread.
        drop(thread);
        assert!(failure.check().unwrap_err().to_string().contains("log-sync panicked"));
    }

    #[tokio::test]
    async fn closing_completes_all_waiters_first() {
        let thread = spawn(|| Ok(()));
        let (done, waiting) = oneshot::channel();
        thread.wait(Waiter::Barrier(done));
        drop(thread);
        waiting.await.unwrap().unwrap();
    }
}
