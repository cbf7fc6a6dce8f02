//! The threads of Raft.
//!
//! A leader that sends no heartbeat for its lease is replaced, and a follower that does not answer is no help to a
//! quorum. Both happen to a sound node when requests of clients, whose reads and parsing it cannot bound, run on the
//! same threads. So Raft, its connections and the peer port have a runtime of their own, and nothing else uses it. Apply
//! has one more thread, in `raft-store/src/disk/state_machine/applier.rs`.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::runtime::{Builder, EnterGuard, Handle, Runtime};

/// Threads of the runtime. Nothing on it blocks or computes for long, and with a second one each step of an entry (peer
/// port, RaftCore, stream to a follower) would wake another thread: on two cores, three nodes with two such threads each
/// acknowledged a third fewer sends.
const THREADS: usize = 1;
/// Time limit for the tasks that still run when the runtime ends.
const END_DEADLINE: Duration = Duration::from_secs(5);

/// The runtime of Raft. Dropping it ends it without waiting.
pub struct RaftThreads {
    /// `None` only while this is dropped.
    runtime: Option<Runtime>,
    handle: Handle,
}

impl RaftThreads {
    /// Starts the threads.
    pub fn start() -> io::Result<Self> {
        let numbers = AtomicUsize::new(0);
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name_fn(move || format!("raft-{}", numbers.fetch_add(1, Ordering::Relaxed)))
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        Ok(RaftThreads {
            runtime: Some(runtime),
            handle,
        })
    }

    /// The runtime, for code that starts tasks on it later.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Tasks that are spawned, and sockets that are opened, while the guard exists belong to these threads.
    pub fn enter(&self) -> EnterGuard<'_> {
        self.handle.enter()
    }

    /// Ends all tasks; returns when their threads have ended. A thread that hangs is left behind at the deadline.
    pub async fn end(mut self) {
        let Some(runtime) = self.runtime.take() else { return };
        let ended = tokio::task::spawn_blocking(move || runtime.shutdown_timeout(END_DEADLINE));
        if let Err(error) = ended.await {
            tracing::warn!(%error, "ending the threads of Raft failed; exiting anyway");
        }
    }
}

impl Drop for RaftThreads {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn its_tasks_run_on_its_threads_and_end_with_it() {
        let threads = RaftThreads::start().unwrap();
        let spawned = {
            let _raft = threads.enter();
            tokio::spawn(async { std::thread::current().name().map(str::to_owned) })
        };
        assert!(spawned.await.unwrap().unwrap().starts_with("raft-"));
        let held = Arc::new(());
        let kept = Arc::clone(&held);
        threads.handle().spawn(async move {
            std::future::pending::<()>().await;
            drop(kept);
        });
        threads.end().await;
        assert_eq!(Arc::strong_count(&held), 1, "the task was dropped");
    }

    /// The threads of clients are all busy; a task of Raft still runs.
    #[tokio::test(flavor = "current_thread")]
    async fn busy_clients_do_not_delay_them() {
        let threads = RaftThreads::start().unwrap();
        let (done, ran) = std::sync::mpsc::sync_channel(1);
        threads.handle().spawn(async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            done.send(()).unwrap();
        });
        // This blocks the only thread of the other runtime.
        ran.recv_timeout(Duration::from_secs(60)).unwrap();
        threads.end().await;
    }
}
