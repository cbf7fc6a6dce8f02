//! Wall time as the voters' clocks have it together, so that one clock that is far off moves nothing.
//!
//! Every node asks the other voters for their clocks, and takes the latest moment that the clocks of a majority
//! of the voters have reached. With all of them known and an odd number that is their median. What is missing,
//! or the choice between the two in the middle, counts against going forward: replicated wall time never goes
//! back, so a day that began too early is there to stay, while one that stands still waits for a voter only.
//!
//! - A reading is kept as what a clock showed when this process began, and goes on with monotonic time. When a
//!   clock jumps, this node's own too, nothing moves until it was compared with the others again.
//! - The last reading of a silent voter stays.
//! - Until a majority is known this node stamps nothing, and wall time stands where the log has it. Followers
//!   ask as well, so that whoever is elected knows already.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use agentpost_proto::limits::CLOCK_DIVERGENCE_MS_MAX;
use agentpost_proto::peer::StatusRequest;
use agentpost_raft_store::disk::types::Member;
use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::this_node::ThisNode;
use super::wall_time::WallTime;
use crate::base::metrics::Metrics;
use crate::net::dial::{Dialer, Purpose};
use crate::net::shard_id::SHARD;

/// Between two rounds of questions.
const PERIOD: Duration = Duration::from_secs(1);
/// The same while no majority is known.
const PERIOD_UNKNOWN: Duration = Duration::from_millis(100);
/// What a voter is given to answer. The error of a reading is half of it at most.
const ANSWER_DEADLINE: Duration = Duration::from_secs(1);

/// The latest moment that a majority of `voters` clocks have reached, of which these are known.
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
    /// Whose clock is too far off: a line in the log when that begins and when it ends.
    diverging: BTreeSet<u64>,
}

impl Timekeeper {
    /// Tells `wall_time`.
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

    /// Asks everybody once; each answer counts when it arrives.
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
            // Afresh each time: a jump of this clock must not move what the others say.
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
                    tracing::info!(node = id, off_ms, "the clock of this node is near the others' again");
                }
            } else if self.diverging.insert(*id) {
                tracing::warn!(node = id, off_ms, "the clock of this node is far from the others'");
            }
        }
    }
}

/// What a voter's clock shows, taken to be in the middle between question and answer.
async fn ask(wall_time: WallTime, dialer: Dialer, id: u64, address: String) -> Option<(u64, i64)> {
    let mut client = dialer.client(id, &address, Purpose::Control);
    let asked_ms = wall_time.elapsed_ms();
    let reply = timeout(ANSWER_DEADLINE, client.status(StatusRequest { shard: SHARD })).await;
    let wall_ms = reply.ok()?.ok()?.into_inner().wall_ms;
    let middle_ms = asked_ms + (wall_time.elapsed_ms() - asked_ms) / 2;
    // 0: a node of an older version, which does not tell.
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
            // The third was never heard: the earlier of two.
            (3, vec![DAYS, 7], Some(7)),
            (3, vec![-DAYS, 7], Some(-DAYS)),
            (3, vec![3, 9, 7], Some(7)),
            (3, vec![3, DAYS, 7], Some(7)),
            (3, vec![3, -DAYS, 7], Some(3)),
            (3, vec![DAYS, DAYS + 1, 7], Some(DAYS)),
            (4, vec![1, 2], None),
            (4, vec![4, 1, 3, 2], Some(2)),
            (4, vec![DAYS, 1, 2, 3], Some(2)),
            // Two of five are ahead and two were never heard.
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
