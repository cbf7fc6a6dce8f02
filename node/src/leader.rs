//! Background work of the leader beside webhooks: [`sweeper`] removes aged rows, [`ticker`] advances cluster time while
//! nobody writes, and [`fanout`] hands large publishes to their subscribers.

pub mod fanout;
pub mod sweeper;
pub mod ticker;

use std::future::Future;
use std::time::Duration;

use agentpost_raft_store::core::kv::Fatal;
use agentpost_raft_store::disk::state::{StateDb, StateHandle};
use tokio::time::{MissedTickBehavior, interval};

use crate::base::metrics::Metrics;
use crate::shard::cluster_time::ClusterTime;
use crate::shard::leadership::Worker;
use crate::shard::proposer::Proposer;
use crate::shard::read_pool::Share;
use crate::shard::reader::Reader;
use crate::shard::wakeups::Wakeups;

/// The handles that every worker of the leader uses. Clones are cheap.
#[derive(Clone)]
pub struct LeaderHandles {
    /// The state, for the webhook dispatcher, which reads it without the pool of reads: single rows, and at the begin of a
    /// leadership all scheduled endpoints and all claims.
    pub state: StateHandle,
    /// Reads the state, which says what is due.
    pub reader: Reader,
    /// Proposes the work.
    pub proposer: Proposer,
    /// The epoch, and the clock for ages.
    pub cluster_time: ClusterTime,
    /// Hints about new work.
    pub wakeups: Wakeups,
    pub metrics: Metrics,
}

impl LeaderHandles {
    /// Reads the state on the pool of reads.
    pub async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&StateDb) -> Result<T, Fatal> + Send + 'static,
    ) -> anyhow::Result<T> {
        let state = self.reader.local();
        state.read(Share::Node, move |state| Ok(read(state)?)).await
    }
}

/// A worker that `run` starts with each leadership, and that is dropped when the leadership ends.
pub fn worker<F>(name: &'static str, run: impl Fn() -> F + Send + Sync + 'static) -> Worker
where
    F: Future<Output = ()> + Send + 'static,
{
    Worker::new(name, move |shutdown| {
        let running = run();
        async move { shutdown.run_until_cancelled(running).await.unwrap_or(()) }
    })
}

/// A worker that runs `round` at once and then every `period`. After a round that took longer, the next one begins a
/// period later.
pub fn periodic<F>(
    name: &'static str,
    period: Duration,
    round: impl Fn() -> F + Clone + Send + Sync + 'static,
) -> Worker
where
    F: Future<Output = ()> + Send + 'static,
{
    worker(name, move || {
        let round = round.clone();
        async move {
            let mut ticks = interval(period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                round().await;
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::time::sleep;
    use tokio_util::sync::CancellationToken;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn rounds_come_every_period_until_leadership_ends() {
        let rounds = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&rounds);
        let worker = periodic("counter", Duration::from_secs(10), move || {
            let counted = Arc::clone(&counted);
            async move {
                counted.fetch_add(1, Ordering::Relaxed);
                sleep(Duration::from_secs(3)).await;
            }
        });
        for leadership in 1..=2 {
            let shutdown = CancellationToken::new();
            let running = tokio::spawn(worker.start(shutdown.clone()));
            sleep(Duration::from_secs(21)).await;
            // The third round runs for two more seconds: it is dropped.
            shutdown.cancel();
            running.await.unwrap();
            assert_eq!(rounds.load(Ordering::Relaxed), 3 * leadership);
        }
    }
}
