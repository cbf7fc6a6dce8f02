//! Leader-only: closes attempts whose outcome no node will report.
//!
//! Every [`PERIOD`] this worker compares the claims in the state with the open attempts of this node. A claim that is
//! not among them belongs to a node that died or was cut off, or, within the current epoch, to a lost reply. Once it is
//! so old that no call of it can still be running ([`TAKEOVER_AFTER_MS`] of cluster time), it is closed with an unknown
//! outcome, and its delivery is due again.

use std::time::Duration;

use agentpost_proto::command::{AttemptRef, Takeover};
use agentpost_proto::limits::{CLAIMS_PER_ENTRY_MAX, TAKEOVER_AFTER_MS};
use agentpost_raft_store::core::query::delivery;
use agentpost_raft_store::disk::state::StateDb;

use super::open::{Attempt, OpenAttempts};
use crate::base::metrics::dispatch::EntryKind;
use crate::leader::{self, LeaderHandles};
use crate::shard::leadership::Worker;

/// Interval of the comparisons.
const PERIOD: Duration = Duration::from_secs(1);

/// Closes the orphaned claims of one shard.
#[derive(Clone)]
pub(super) struct Takeovers {
    pub(super) leader: LeaderHandles,
    pub(super) open: OpenAttempts,
}

impl Takeovers {
    /// Compares while this node leads.
    pub(super) fn worker(self) -> Worker {
        leader::periodic("takeover", PERIOD, move || {
            let takeovers = self.clone();
            async move { takeovers.round().await }
        })
    }

    async fn round(&self) {
        let (epoch, _) = self.leader.cluster_time.now();
        match self.orphans().await {
            Ok(orphans) => {
                for batch in orphans.chunks(CLAIMS_PER_ENTRY_MAX) {
                    self.take_over(epoch, batch).await;
                }
            }
            Err(error) => tracing::error!(%error, "looking for orphaned claims failed; the next round tries again"),
        }
    }

    async fn orphans(&self) -> anyhow::Result<Vec<AttemptRef>> {
        let (_, now_ms) = self.leader.cluster_time.now();
        let open = self.open.clone();
        let read = move |state: &StateDb| {
            let mut orphans = Vec::new();
            for (_, team, number) in delivery::claims(state)? {
                let Some(delivery) = delivery::by_number(state, team, number)? else {
                    continue;
                };
                // The claim may have been closed between the two reads.
                let Some(claim) = delivery.claim else { continue };
                let attempt = Attempt::newest(team, &delivery);
                if claim.ct_ms + TAKEOVER_AFTER_MS <= now_ms && !open.contains(&attempt) {
                    orphans.push(attempt.to_proto());
                }
            }
            Ok(orphans)
        };
        self.leader.read(read).await
    }

    async fn take_over(&self, epoch: u64, attempts: &[AttemptRef]) {
        let op = Takeover {
            epoch,
            attempts: attempts.to_vec(),
        };
        self.leader.metrics.dispatch.entry(EntryKind::Takeover);
        match self.leader.proposer.propose_in(epoch, op).await {
            Ok(Ok(answer)) => {
                let closed = answer.done.iter().filter(|done| **done).count();
                self.leader.metrics.dispatch.takeovers.inc_by(closed as u64);
                tracing::warn!(
                    closed,
                    "attempts of a lost node were closed with an unknown outcome; their deliveries are retried"
                );
            }
            Ok(Err(error)) => tracing::info!(%error, "a takeover was refused; the next round looks again"),
            // The next round tries again; if leadership is lost, the new leader does.
            Err(error) => tracing::debug!(%error, "a takeover was not proposed; the next round tries again"),
        }
    }
}
