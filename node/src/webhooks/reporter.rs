//! Records the outcomes of calls: proposes them, repeatedly, until the cluster has answered.
//!
//! The reporter runs as long as the process, independent of leadership: every node reports the calls that it made,
//! whoever leads by then, and forwards their outcomes to the leader. Outcomes are gathered for at most [`GATHER`], and
//! not at all after a pause, so a quiet cluster records at once and a busy one writes few entries. Several entries may
//! be in flight. A repeated outcome that was recorded already is answered as stale, which is as good as any answer.

use std::time::Duration;

use agentpost_proto::command::{AttemptOutcome, Outcome};
use agentpost_proto::limits::CLAIMS_PER_ENTRY_MAX;
use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::failpoint::{self, Place};
use super::fair_queue::NODE_CALLS_MAX;
use super::open::{Ended, OpenAttempts};
use crate::base::clock::IdSource;
use crate::base::metrics::Metrics;
use crate::base::metrics::dispatch::EntryKind;
use crate::shard::proposer::Proposer;

/// The time for which claims and outcomes are gathered before they are proposed. The first one after a pause does not
/// wait.
pub const GATHER: Duration = Duration::from_millis(5);
/// Pause between two attempts to record the same outcomes, in milliseconds.
const RETRY_MS: (u64, u64) = (50, 150);
/// Upper bound on the entries in flight. A call keeps its slot until its outcome is recorded, so there are few.
const ENTRIES_IN_FLIGHT_MAX: usize = 8;

/// The channel for ended calls.
pub type Reports = mpsc::Sender<Ended>;

/// Records outcomes until the process ends.
pub struct Reporter {
    recorder: Recorder,
    ended: mpsc::Receiver<Ended>,
}

/// The handles that record an outcome.
pub struct Recorder {
    /// The table in which recorded attempts are closed.
    pub open: OpenAttempts,
    pub proposer: Proposer,
    pub metrics: Metrics,
    /// The source of jitter.
    pub ids: IdSource,
}

impl Reporter {
    /// A reporter and the channel for its input.
    pub fn new(recorder: Recorder) -> (Self, Reports) {
        let (reports, ended) = mpsc::channel(NODE_CALLS_MAX);
        (Reporter { recorder, ended }, reports)
    }

    /// Runs until `shutdown`. Outcomes that are not recorded by then are lost with the process.
    pub async fn run(mut self, shutdown: CancellationToken) {
        shutdown.run_until_cancelled(self.report()).await;
    }

    async fn report(&mut self) {
        let mut waiting: Vec<Ended> = Vec::new();
        let mut under_way = FuturesUnordered::new();
        let mut open_at = Instant::now();
        loop {
            let may_propose = !waiting.is_empty() && under_way.len() < ENTRIES_IN_FLIGHT_MAX;
            if may_propose && (waiting.len() >= CLAIMS_PER_ENTRY_MAX || Instant::now() >= open_at) {
                let batch = waiting.drain(..waiting.len().min(CLAIMS_PER_ENTRY_MAX)).collect();
                open_at = Instant::now() + GATHER;
                under_way.push(self.recorder.record(batch));
                continue;
            }
            let room = 2 * CLAIMS_PER_ENTRY_MAX - waiting.len();
            tokio::select! {
                Some(()) = under_way.next() => {}
                taken = self.ended.recv_many(&mut waiting, room), if room > 0 => if taken == 0 {
                    // All senders are gone; the entries in flight are still recorded.
                    sleep(GATHER).await;
                },
                () = sleep_until(open_at), if may_propose => {}
            }
        }
    }
}

impl Recorder {
    /// Proposes a batch until the cluster has answered, however long it takes.
    async fn record(&self, batch: Vec<Ended>) {
        loop {
            failpoint::pass(Place::BeforeOutcome);
            self.metrics.dispatch.entry(EntryKind::Outcome);
            match self.proposer.propose_internal(outcome_of(&batch)).await {
                Ok(Ok(answer)) => {
                    failpoint::pass(Place::OutcomeCommitted);
                    for (n, ended) in batch.into_iter().enumerate() {
                        let recorded = answer.done.get(n) == Some(&true);
                        ended.settle(recorded, &self.open, &self.metrics);
                    }
                    return;
                }
                Ok(Err(error)) => {
                    // This refusal is final; takeover closes these claims.
                    tracing::error!(%error, outcomes = batch.len(), "outcomes were refused; takeover closes their attempts as unknown; please report this");
                    return batch
                        .into_iter()
                        .for_each(|ended| ended.settle(false, &self.open, &self.metrics));
                }
                Err(error) => {
                    tracing::debug!(%error, outcomes = batch.len(), "outcomes could not be recorded yet; trying again")
                }
            }
            sleep(Duration::from_millis(self.ids.jitter_ms(RETRY_MS.0, RETRY_MS.1))).await;
        }
    }
}

fn outcome_of(batch: &[Ended]) -> Outcome {
    let outcome = |ended: &Ended| AttemptOutcome {
        attempt: Some(ended.attempt.to_proto()),
        epoch: ended.epoch,
        result: Some(ended.result.clone()),
    };
    Outcome {
        outcomes: batch.iter().map(outcome).collect(),
    }
}
