//! Notices the death of a task that the node needs; the node then ends, as it does after a disk failure.
//!
//! tokio keeps a panic within its task. A node whose dispatcher or timekeeper has died would therefore look healthy and
//! deliver nothing, or stamp no time. A restart is the safe answer, because it finds everything on disk, and a cluster
//! elects another leader meanwhile. An end is not a death when the task was told to stop, and neither is a task that is
//! dropped with its runtime.
//!
//! Every task that lives as long as the node or as a leadership runs under this watch, and so does every webhook call,
//! because a hand-over of leadership waits for its outcome. Tasks that serve one connection or one request do not: their
//! caller notices.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Watches the tasks of a node. Clones are cheap and share what they have seen.
#[derive(Clone, Default)]
pub struct TaskWatch {
    /// The first death.
    death: Arc<watch::Sender<Option<String>>>,
}

impl TaskWatch {
    /// Runs `work`, which must not end before `stop` is cancelled.
    pub fn until<F>(
        &self,
        stop: &CancellationToken,
        name: &'static str,
        work: F,
    ) -> impl Future<Output = ()> + Send + 'static
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (watch, stop) = (self.clone(), stop.clone());
        async move {
            match AssertUnwindSafe(work).catch_unwind().await {
                Ok(()) if stop.is_cancelled() => {}
                Ok(()) => watch.died(format!("the task `{name}` ended although the node runs")),
                Err(panic) => watch.panicked(name, &*panic),
            }
        }
    }

    /// Runs `work`, which may end when it is done, or when Raft has ended.
    pub fn may_end<F>(&self, name: &'static str, work: F) -> impl Future<Output = ()> + Send + 'static
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let watch = self.clone();
        async move {
            if let Err(panic) = AssertUnwindSafe(work).catch_unwind().await {
                watch.panicked(name, &*panic);
            }
        }
    }

    /// Waits until a task has died; returns the reason. The process must then end.
    pub async fn failed(&self) -> String {
        let mut death = self.death.subscribe();
        // Cannot fail: `self` keeps the sender alive.
        let died = death.wait_for(Option::is_some).await;
        died.ok().and_then(|reason| reason.clone()).unwrap_or_default()
    }

    fn panicked(&self, name: &str, panic: &(dyn Any + Send)) {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        let text = text.unwrap_or("without a message");
        self.died(format!("the task `{name}` panicked: {text}"));
    }

    fn died(&self, reason: String) {
        tracing::error!(
            reason,
            "a task of this node died, so the node ends; start it again and report this"
        );
        self.death.send_if_modified(|death| {
            let first = death.is_none();
            death.get_or_insert(reason);
            first
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_a_death_also_of_a_task_that_may_end_or_was_told_to_stop() {
        let stop = CancellationToken::new();
        stop.cancel();
        let told = TaskWatch::default();
        told.until(&stop, "keeper", async { panic!("at {}", 3) }).await;
        assert_eq!(told.failed().await, "the task `keeper` panicked: at 3");
        let done = TaskWatch::default();
        done.may_end("bootstrap", async { panic!("now") }).await;
        done.may_end("another", async { panic!("later") }).await;
        assert_eq!(done.failed().await, "the task `bootstrap` panicked: now");
    }

    #[tokio::test]
    async fn an_end_is_a_death_unless_the_task_was_told_to_stop() {
        let (watch, stop) = (TaskWatch::default(), CancellationToken::new());
        watch.may_end("bootstrap", async {}).await;
        drop(watch.until(&stop, "aborted", std::future::pending()));
        assert!(watch.failed().now_or_never().is_none());
        watch.until(&stop, "ticker", async {}).await;
        assert_eq!(watch.failed().await, "the task `ticker` ended although the node runs");
        let stopped = TaskWatch::default();
        stop.cancel();
        stopped.until(&stop, "ticker", async {}).await;
        assert!(stopped.failed().now_or_never().is_none());
    }
}
