//! Leader-only: ends the open deliveries of endpoints that were deleted or disabled.
//!
//! Each entry closes a bounded number of deliveries, and its reply says whether the endpoint is done. Endpoints take
//! turns, so that one with a million deliveries does not delay the others.

use std::collections::VecDeque;
use std::time::Duration;

use agentpost_proto::command::CloseEndpoint;
use agentpost_proto::id::TeamId;
use agentpost_raft_store::core::query::delivery;
use tokio::time::sleep;

use crate::base::metrics::dispatch::EntryKind;
use crate::leader::{self, LeaderHandles};
use crate::shard::leadership::Worker;
use crate::shard::wakeups::work::Places;

/// Pause after an entry without an answer.
const RETRY: Duration = Duration::from_millis(200);

/// Closes endpoints of one shard.
#[derive(Clone)]
pub(super) struct Closer(pub(super) LeaderHandles);

impl Closer {
    /// Closes while this node leads.
    pub(super) fn worker(self) -> Worker {
        leader::worker("closer", move || self.clone().run())
    }

    async fn run(self) {
        let (epoch, _) = self.0.cluster_time.now();
        let mut work = self.0.wakeups.closings();
        let mut closing = VecDeque::new();
        loop {
            let places = if closing.is_empty() {
                Some(work.next().await)
            } else {
                work.now()
            };
            match places {
                Some(Places::Everywhere) => match self.0.read(delivery::closings).await {
                    Ok(all) => closing = all.into(),
                    Err(error) => {
                        tracing::error!(%error, "reading the endpoints to close failed; trying again with the next hint")
                    }
                },
                Some(Places::These(places)) => closing.extend(places),
                None => {}
            }
            if let Some((team, generation)) = closing.pop_front()
                && !self.close(epoch, team, generation).await
            {
                closing.push_back((team, generation));
            }
        }
    }

    /// Proposes one entry. Returns whether the endpoint is done.
    async fn close(&self, epoch: u64, team: TeamId, generation: u64) -> bool {
        let op = CloseEndpoint {
            epoch,
            team_id: team.to_bytes(),
            generation,
        };
        self.0.metrics.dispatch.entry(EntryKind::CloseEndpoint);
        match self.0.proposer.propose_in(epoch, op).await {
            Ok(Ok(answer)) => {
                tracing::info!(%team, generation, closed = answer.closed, "deliveries of an endpoint closed");
                answer.finished
            }
            Ok(Err(error)) => {
                tracing::info!(%error, "closing an endpoint was refused; trying again");
                sleep(RETRY).await;
                false
            }
            Err(error) => {
                tracing::debug!(%error, "closing an endpoint was not proposed; trying again");
                sleep(RETRY).await;
                false
            }
        }
    }
}
