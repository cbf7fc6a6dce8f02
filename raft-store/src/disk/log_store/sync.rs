//! The thread that writes the log and makes it durable.
//!
//! Every change of the log is a [`Job`] in the queue of this thread. The thread takes all jobs, writes them in their
//! order, flushes once for all of them, and then completes them in their order. While a flush runs, the next group
//! accumulates: the slower the disk, the larger the groups. Nobody else writes, so openraft never waits for the disk in
//! an append.
//!
//! The queue has no bound of its own. On a leader each proposal carries the charge of the node that admitted it until its
//! entry is durable, whether or not its client still waits. A follower's appends are bounded by openraft, which has few
//! requests to a follower under way.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use openraft::storage::IOFlushed;
use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::oneshot;

use super::metrics::LogMetrics;
use crate::disk::damage::Failure;
use crate::disk::floor::Mark;
use crate::disk::types::{Charge, Entry, LogId, TypeConfig, Vote};

/// Tells a caller in this crate that its change is durable.
pub(super) type Done = oneshot::Sender<io::Result<()>>;

/// A change of the log.
pub(super) enum Job {
    Append(Append),
    Vote(Vote, Done),
    /// The entries from an index on are removed; the log then ends with this entry.
    Truncate(u64, Option<LogId>, Done),
    /// Everything up to this entry is removed. Nobody waits for it.
    Purge(LogId),
    /// A hint, which becomes durable some time.
    Committed(Option<LogId>),
}

/// An append of openraft, which continues meanwhile.
pub(super) struct Append {
    pub(super) entries: Vec<Entry>,
    /// They end when the entries are durable.
    pub(super) charges: Vec<Charge>,
    pub(super) flushed: Option<IOFlushed<TypeConfig>>,
    /// A mark of the last entry.
    pub(super) mark: Option<Mark>,
}

impl Job {
    /// Completes the job, and returns the mark of the entry that is durable now.
    fn complete(self, result: io::Result<()>) -> Option<Mark> {
        let durable = result.is_ok();
        match self {
            Job::Append(append) => {
                drop(append.charges);
                if let Some(flushed) = append.flushed {
                    flushed.io_completed(result);
                }
                append.mark.filter(|_| durable)
            }
            Job::Vote(_, done) | Job::Truncate(_, _, done) => {
                // An error means that the receiver was dropped, because the node is stopping.
                drop(done.send(result));
                None
            }
            Job::Purge(_) | Job::Committed(_) => None,
        }
    }
}

/// What the thread writes to.
pub(super) trait Sink: Send + 'static {
    /// Hands the jobs to the operating system.
    fn write(&mut self, jobs: &[Job]) -> io::Result<()>;

    /// Makes durable what was written.
    fn sync(&mut self) -> io::Result<()>;

    /// Lets what the log does not need any more be removed. Called after the jobs were completed; must not block.
    fn tidy(&mut self);
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
    jobs: Vec<Job>,
    closed: bool,
    /// Whether the thread has ended.
    ended: bool,
}

impl SyncThread {
    /// Starts the thread. `flushed` is called with the mark of the last durable entry, after its job was completed.
    pub(super) fn spawn(
        sink: impl Sink,
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
                let _ended = Ended(&shared);
                let _noticed = shared.failure.on_panic("log-sync");
                shared.run(sink, flushed, &metrics);
            }
        })?;
        Ok(SyncThread {
            shared,
            thread: Some(thread),
        })
    }

    /// Adds a job. If the thread has panicked, the job fails at once.
    pub(super) fn push(&self, job: Job) {
        let mut queue = self.shared.lock();
        if queue.ended {
            drop(queue);
            job.complete(self.check());
            return;
        }
        queue.jobs.push(job);
        self.shared.wake.notify_one();
    }

    /// Adds a job. The result completes when the job and everything before it is durable.
    pub(super) fn durably(&self, job: impl FnOnce(Done) -> Job) -> impl Future<Output = io::Result<()>> {
        let (done, waiting) = oneshot::channel();
        self.push(job(done));
        async move {
            waiting
                .await
                .unwrap_or_else(|_| Err(io::Error::other("the log's sync thread has ended")))
        }
    }

    /// Returns the error if this log has failed.
    pub(super) fn check(&self) -> io::Result<()> {
        self.shared.failure.check()
    }
}

/// Ends the queue with the thread: no job waits for a thread that has panicked.
struct Ended<'a>(&'a Shared);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        let mut queue = self.0.lock();
        queue.ended = true;
        let left = std::mem::take(&mut queue.jobs);
        drop(queue);
        for job in left {
            job.complete(self.0.failure.check());
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock()
    }

    /// The next group, or `None` when the handle was dropped and every job is completed.
    fn next(&self) -> Option<Vec<Job>> {
        let mut queue = self.lock();
        while queue.jobs.is_empty() {
            if queue.closed {
                return None;
            }
            self.wake.wait(&mut queue);
        }
        Some(std::mem::take(&mut queue.jobs))
    }

    fn run(&self, mut sink: impl Sink, flushed: impl Fn(Mark), metrics: &LogMetrics) {
        while let Some(group) = self.next() {
            // Never again after a failure: the kernel may have dropped the dirty pages, and the next flush then reports
            // success.
            if self.failure.check().is_ok()
                && let Err(error) = metrics.measure(|| sink.write(&group).and_then(|()| sink.sync()))
            {
                self.failure.set(&error.to_string());
            }
            let mut durable = None;
            for job in group {
                durable = job.complete(self.failure.check()).or(durable);
            }
            if let Some(mark) = durable {
                flushed(mark);
            }
            if self.failure.check().is_ok() {
                sink.tidy();
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
    use crate::disk::types::LeaderId;

    /// A sink that only flushes.
    struct Flush<F>(F);

    impl<F: FnMut() -> io::Result<()> + Send + 'static> Sink for Flush<F> {
        fn write(&mut self, _jobs: &[Job]) -> io::Result<()> {
            Ok(())
        }

        fn sync(&mut self) -> io::Result<()> {
            (self.0)()
        }

        fn tidy(&mut self) {}
    }

    /// A sink that cannot write.
    struct Full;

    impl Sink for Full {
        fn write(&mut self, _jobs: &[Job]) -> io::Result<()> {
            Err(io::Error::other("no space"))
        }

        fn sync(&mut self) -> io::Result<()> {
            panic!("not after a failed write")
        }

        fn tidy(&mut self) {
            panic!("not after a failed write")
        }
    }

    fn spawn(sink: impl Sink) -> SyncThread {
        SyncThread::spawn(sink, |_| (), Failure::default(), Arc::new(LogMetrics::new())).unwrap()
    }

    fn vote(done: Done) -> Job {
        let leader_id = LeaderId { term: 1, node_id: 1 };
        let vote = Vote {
            leader_id,
            committed: false,
        };
        Job::Vote(vote, done)
    }

    #[tokio::test]
    async fn one_flush_serves_all_that_waited_meanwhile() {
        let (release, gate) = mpsc::sync_channel::<()>(2);
        let flushes = Arc::new(AtomicU32::new(0));
        let counted = flushes.clone();
        let thread = spawn(Flush(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            gate.recv().map_err(io::Error::other)
        }));
        let waiting: Vec<_> = (0..10)
            .map(|_| {
                let (done, waiting) = oneshot::channel();
                thread.push(vote(done));
                waiting
            })
            .collect();
        // The first flush completes the jobs that were there when it began, the second all others.
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
        let thread = spawn(Flush(move || match counted.fetch_add(1, Ordering::Relaxed) {
            0 => Ok(()),
            _ => Err(io::Error::other("EIO")),
        }));
        thread.durably(vote).await.unwrap();
        assert!(thread.check().is_ok());
        for _ in 0..3 {
            assert!(thread.durably(vote).await.unwrap_err().to_string().contains("EIO"));
            assert!(thread.check().is_err());
        }
        assert_eq!(flushes.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn a_failed_write_ends_the_log_without_a_flush() {
        let thread = spawn(Full);
        for _ in 0..2 {
            assert!(thread.durably(vote).await.unwrap_err().to_string().contains("no space"));
        }
    }

    /// A sink that panics when it removes files.
    struct Panics;

    impl Sink for Panics {
        fn write(&mut self, _jobs: &[Job]) -> io::Result<()> {
            Ok(())
        }

        fn sync(&mut self) -> io::Result<()> {
            Ok(())
        }

        fn tidy(&mut self) {
            panic!("a bug")
        }
    }

    #[tokio::test]
    async fn a_panic_of_the_thread_ends_the_log() {
        let thread = spawn(Panics);
        thread.durably(vote).await.unwrap();
        // Whether it comes before the panic or after it, it fails, and nobody waits for ever.
        let error = thread.durably(vote).await.unwrap_err();
        assert!(error.to_string().contains("log-sync panicked"), "{error}");
        assert!(thread.check().is_err());
    }

    #[tokio::test]
    async fn closing_completes_all_jobs_first() {
        let thread = spawn(Flush(|| Ok(())));
        let (done, waiting) = oneshot::channel();
        thread.push(vote(done));
        drop(thread);
        waiting.await.unwrap().unwrap();
    }
}
