//! Reads the voters' clocks and computes majority time, so that one wrong clock changes nothing.
//!
//! Every node asks the other voters for their clocks and takes the latest moment that a majority of all voters has
//! reached. If all clocks are known and their number is odd, that is the median. Unknown clocks and an even number of
//! voters are resolved to the earlier time: replicated wall time never goes back, so a day that began too early would
//! stay, while wall time that stands still only waits for a voter.
//! - A reading is stored as the value of that clock when this process started, and advances with monotonic time. A
//!   clock that jumps, this node's own included, changes nothing until it has been compared with the others again.
//! - The last reading of a silent voter stays in force.
//! - Until a majority is known, this node stamps no wall time. Followers ask as well, so that a newly elected leader
//!   knows the time at once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use agentpost_proto::peer::StatusRequest;
use agentpost_raft_store::disk::types::Member;
use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::this_node::ThisNode;
use super::wall_time::{CLOCK_DIVERGENCE_MS_MAX, WallTime};
use crate::base::metrics::Metrics;
use crate::net::dial::{Dialer, Purpose};
use crate::net::shard_id::SHARD;

/// Interval between two rounds of questions.
const PERIOD: Duration = Duration::from_secs(1);
/// The interval while no majority is known.
const PERIOD_UNKNOWN: Duration = Duration::from_millis(100);
/// Time limit for an answer. The error of a reading is at most half of it.
const ANSWER_DEADLINE: Duration = Duration::from_secs(1);

/// The latest moment that a majority of `voters` clocks has reached, given the `readings` that are known.
fn reached_by_majority(mut readings: Vec<i64>, voters: usize) -> Option<i64> {
    readings.sort_unstable_by(|a, b| b.cmp(a));
    readings.get(voters / 2).copied()
}

/// Reads the voters' clocks, on every node.
pub struct Timekeeper {
    wall_time: WallTime,
    this_node: ThisNode,
    dialer: Dialer,
    metrics: Metrics,
    readings: BTreeMap<u64, i64>,
    /// Voters whose clock diverges too far; a log line marks the beginning and the end.
    diverging: BTreeSet<u64>,
}

impl Timekeeper {
    /// A timekeeper that updates `wall_time`.
    pub fn new(wall_time: WallTime, this_node: ThisNode, dialer: Dialer, metrics: Metrics) -> Self {
        Timekeeper {
            wall_time,
            this_node,
            dialer,
            metrics,
            readings: BTreeMap::new(),
            diverging: BTreeSet::new(),
        }
    }

    /// Runs until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let working = async {
            loop {
                self.round().await;
                let known = self.wall_time.stamp().is_some();
                sleep(if known { PERIOD } else { PERIOD_UNKNOWN }).await;
            }
        };
        shutdown.run_until_cancelled(working).await;
    }

    /// Asks every voter once. Each answer counts as soon as it arrives.
    async fn round(&mut self) {
        let voters = self.this_node.voters();
        self.readings.retain(|id, _| voters.contains_key(id));
        self.conclude(&voters);
        let others = voters.iter().filter(|(id, _)| **id != self.this_node.id());
        let mut asked: FuturesUnordered<_> = others
            .map(|(id, member)| {
                ask(
                    self.wall_time.clone(),
                    self.dialer.clone(),
                    *id,
                    member.peer_addr.clone(),
                )
            })
            .collect();
        while let Some(answer) = asked.next().await {
            if let Some((id, reading)) = answer {
                self.readings.insert(id, reading);
                self.conclude(&voters);
            }
        }
    }

    fn conclude(&mut self, voters: &BTreeMap<u64, Member>) {
        let here = self.this_node.id();
        if voters.contains_key(&here) {
            // Computed anew each time, so that a jump of this node's clock does not move the others' readings.
            self.readings.insert(here, self.wall_time.own_reading());
        }
        let agreed = reached_by_majority(self.readings.values().copied().collect(), voters.len());
        self.wall_time.set(agreed);
        let Some(agreed) = agreed else { return };
        for (id, reading) in &self.readings {
            let off_ms = reading.saturating_sub(agreed);
            self.metrics.clocks.set_divergence(*id, off_ms as f64 / 1000.0);
            if off_ms.unsigned_abs() <= CLOCK_DIVERGENCE_MS_MAX {
                if self.diverging.remove(id) {
                    tracing::info!(node = id, off_ms, "the clock of a node agrees with the others again");
                }
            } else if self.diverging.insert(*id) {
                tracing::warn!(
                    node = id,
                    off_ms,
                    "the clock of a node diverges from the others; check its time synchronisation"
                );
            }
        }
    }
}

/// The reading of a voter's clock, assumed to be taken midway between question and answer.
async fn ask(wall_time: WallTime, dialer: Dialer, id: u64, address: String) -> Option<(u64, i64)> {
    let mut client = dialer.client(id, &address, Purpose::Control);
    let asked_ms = wall_time.elapsed_ms();
    let reply = timeout(ANSWER_DEADLINE, client.status(StatusRequest { shard: SHARD })).await;
    let wall_ms = reply.ok()?.ok()?.into_inner().wall_ms;
    let middle_ms = asked_ms + (wall_time.elapsed_ms() - asked_ms) / 2;
    // 0 comes from a node of an older version, which does not report its clock.
    (wall_ms != 0).then(|| (id, WallTime::reading(wall_ms, middle_ms)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAYS: i64 = 2 * 86_400_000;

    #[test]
    fn a_majority_of_the_clocks_says_what_time_it_is() {
        for (voters, readings, agreed) in [
            (0, vec![], None),
            (1, vec![7], Some(7)),
            (2, vec![7], None),
            (2, vec![7, DAYS], Some(7)),
            (3, vec![7], None),
            // The third clock is unknown: the earlier of the two counts.
            (3, vec![DAYS, 7], Some(7)),
            (3, vec![-DAYS, 7], Some(-DAYS)),
            (3, vec![3, 9, 7], Some(7)),
            (3, vec![3, DAYS, 7], Some(7)),
            (3, vec![3, -DAYS, 7], Some(3)),
            (3, vec![DAYS, DAYS + 1, 7], Some(DAYS)),
            (4, vec![1, 2], None),
            (4, vec![4, 1, 3, 2], Some(2)),
            (4, vec![DAYS, 1, 2, 3], Some(2)),
            // Two of five are ahead and two are unknown.
            (5, vec![DAYS, DAYS, 7], Some(7)),
            (5, vec![DAYS, DAYS, 7, 8, -DAYS], Some(8)),
            (5, vec![-DAYS, -DAYS, 7, 8, 9], Some(7)),
        ] {
            assert_eq!(
                reached_by_majority(readings.clone(), voters),
                agreed,
                "{readings:?} of {voters}"
            );
        }
    }
}
