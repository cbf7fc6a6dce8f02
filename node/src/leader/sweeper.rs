//! Leader-only: removes aged rows.
//!
//! Apply has no clock, so it removes nothing on its own. Every [`PERIOD`] this worker asks the state whether rows are
//! due, and proposes sweeps until none are. A sweep removes a bounded number of rows, whichever are due when it is
//! applied, so sweeps need no agreement among each other. While each finds as many rows as it may remove, several are in
//! the log at a time: the rate of removal is then bounded by apply, as the rate of sends is, and not by the time that
//! one entry takes.

use std::time::Duration;

use agentpost_proto::command::Sweep;
use agentpost_raft_store::core::query;
use futures::stream::{FuturesUnordered, StreamExt as _};

use super::LeaderHandles;
use crate::shard::leadership::Worker;
use crate::shard::proposer::ProposeError;
use crate::shard::wall_time::WallTime;

/// Interval of the rounds: a row may outlive its time by this much.
pub const PERIOD: Duration = Duration::from_secs(10);
/// Sweeps in the log at a time while each removes as many rows as it may.
const SWEEPS_IN_FLIGHT: usize = 4;

/// Removes aged rows of one shard.
#[derive(Clone)]
pub struct Sweeper {
    pub leader: LeaderHandles,
    /// The clock for calendar dates.
    pub wall_time: WallTime,
}

/// The answer to a sweep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Swept {
    /// It removed as many rows as it may: more are probably due.
    Full,
    /// It removed everything that was due.
    All,
    /// It was not applied, or nobody knows. The next round tries again; if leadership is lost, the new leader does.
    Not,
}

impl Sweeper {
    /// Sweeps while this node leads.
    pub fn worker(self) -> Worker {
        super::periodic("sweeper", PERIOD, move || {
            let sweeper = self.clone();
            async move { sweeper.round().await }
        })
    }

    async fn round(&self) {
        match self.is_due().await {
            Ok(false) => {}
            Ok(true) => sweep_all(|| self.sweep()).await,
            Err(error) => tracing::error!(%error, "looking for aged rows failed; the next round tries again"),
        }
    }

    /// Whether rows are due.
    async fn is_due(&self) -> anyhow::Result<bool> {
        let (epoch, cluster_ms) = self.leader.cluster_time.now();
        if epoch == 0 {
            return Ok(false);
        }
        let wall_ms = self.wall_time.stamp().unwrap_or(0);
        let read = move |state: &_| query::due::sweep(state, cluster_ms, wall_ms);
        let due = self.leader.read(read).await?;
        Ok(due.is_some())
    }

    async fn sweep(&self) -> Swept {
        let (epoch, _) = self.leader.cluster_time.now();
        let answer: Result<_, ProposeError> = self.leader.proposer.propose_in(epoch, Sweep {}).await;
        match answer {
            Ok(Ok(swept)) => {
                self.leader.metrics.swept_rows.inc_by(swept.rows.into());
                if swept.full { Swept::Full } else { Swept::All }
            }
            Ok(Err(error)) => {
                tracing::info!(%error, "a sweep was refused; the next round tries again");
                Swept::Not
            }
            Err(error) => {
                tracing::debug!(%error, "a sweep was not proposed; the next round tries again");
                Swept::Not
            }
        }
    }
}

/// Sweeps until one finds nothing more. After each that was full, another one is put into the log, at most
/// [`SWEEPS_IN_FLIGHT`] at a time.
async fn sweep_all<F: Future<Output = Swept>>(sweep: impl Fn() -> F) {
    let mut sweeps = FuturesUnordered::from_iter([sweep()]);
    let mut more = true;
    while let Some(swept) = sweeps.next().await {
        more &= swept == Swept::Full;
        // One more than ended: a backlog fills the log slowly, and a single full sweep does not.
        for _ in 0..2 {
            if more && sweeps.len() < SWEEPS_IN_FLIGHT {
                sweeps.push(sweep());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    /// Runs all sweeps of a backlog of `full` sweeps, each of which takes one round of the log. Returns how many were
    /// proposed, and how many were in flight at most.
    async fn swept(full: usize, end: Swept) -> (usize, usize) {
        let (proposed, in_flight) = (Cell::new(0), RefCell::new((0, 0)));
        sweep_all(|| {
            proposed.set(proposed.get() + 1);
            let number = proposed.get();
            let in_flight = &in_flight;
            async move {
                let now = {
                    let mut counts = in_flight.borrow_mut();
                    counts.0 += 1;
                    counts.1 = counts.1.max(counts.0);
                    counts.0
                };
                assert!(now <= SWEEPS_IN_FLIGHT);
                tokio::task::yield_now().await;
                in_flight.borrow_mut().0 -= 1;
                if number <= full { Swept::Full } else { end }
            }
        })
        .await;
        let (left, most) = *in_flight.borrow();
        assert_eq!(left, 0, "a round ends with its last sweep");
        (proposed.get(), most)
    }

    #[tokio::test]
    async fn a_backlog_has_several_sweeps_in_the_log_and_a_short_one_ends_the_round() {
        assert_eq!(swept(0, Swept::All).await, (1, 1));
        let (proposed, most) = swept(100, Swept::All).await;
        assert_eq!(most, SWEEPS_IN_FLIGHT);
        assert!((101..=101 + SWEEPS_IN_FLIGHT).contains(&proposed), "{proposed}");
        assert_eq!(swept(0, Swept::Not).await, (1, 1));
    }
}
