//! Leader-only: delivers large publishes to their subscribers' inboxes, one chunk of subscription rows per log entry.
//!
//! The receivers are fixed at the time of the publish, so the starts of all chunks can be read from the rows in advance
//! and several chunks can be in flight. Apply accepts only the chunk at which the job stands, and only of the oldest
//! publish of a topic. A chunk that arrives out of order, twice or from an earlier leader changes nothing there, and
//! this worker reads the state again. Topics do not wait for each other.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use agentpost_proto::command::FanoutChunk;
use agentpost_proto::id::TeamId;
use agentpost_proto::record::FanoutJob;
use agentpost_raft_store::core::query::delivery;
use agentpost_raft_store::disk::state::StateDb;
use futures::future::join_all;
use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::time::sleep;

use super::LeaderHandles;
use crate::base::metrics::dispatch::EntryKind;
use crate::shard::leadership::Worker;
use crate::shard::wakeups::work::Places;

/// Chunks of one publish that are in flight.
const CHUNKS_IN_FLIGHT: usize = 8;
/// Topics that are processed at a time; the others wait for their turn.
const TOPICS_AT_A_TIME: usize = 16;
/// Pause after a round without progress.
const RETRY: Duration = Duration::from_millis(100);

type Topic = (TeamId, String);

/// Topics in the order of their turns, each once.
#[derive(Default)]
struct Turns {
    order: VecDeque<Topic>,
    members: HashSet<Topic>,
}

impl Turns {
    fn push(&mut self, topic: Topic) {
        if self.members.insert(topic.clone()) {
            self.order.push_back(topic);
        }
    }

    /// The first topic that is not being processed.
    fn pop(&mut self, running: &HashSet<Topic>) -> Option<Topic> {
        let place = self.order.iter().position(|topic| !running.contains(topic))?;
        let topic = self.order.remove(place)?;
        self.members.remove(&topic);
        Some(topic)
    }
}

/// Delivers the large publishes of one shard.
#[derive(Clone)]
pub struct Fanout(pub LeaderHandles);

impl Fanout {
    /// Runs while this node leads.
    pub fn worker(self) -> Worker {
        super::worker("fan-out", move || self.clone().run())
    }

    async fn run(self) {
        let (epoch, _) = self.0.cluster_time.now();
        let mut work = self.0.wakeups.fanouts();
        let mut waiting = Turns::default();
        let mut running: HashSet<Topic> = HashSet::new();
        let mut rounds = FuturesUnordered::new();
        loop {
            tokio::select! {
                places = work.next() => self.topics(places).await.into_iter().for_each(|topic| waiting.push(topic)),
                Some((topic, unfinished)) = rounds.next() => {
                    running.remove(&topic);
                    if unfinished {
                        waiting.push(topic);
                    }
                }
            }
            while rounds.len() < TOPICS_AT_A_TIME
                && let Some(topic) = waiting.pop(&running)
            {
                running.insert(topic.clone());
                rounds.push(self.round(epoch, topic));
            }
        }
    }

    async fn topics(&self, places: Places<Topic>) -> Vec<Topic> {
        match places {
            Places::These(topics) => topics,
            Places::Everywhere => match self.0.read(delivery::fanout_jobs).await {
                Ok(jobs) => jobs.into_iter().map(|(team, topic, ..)| (team, topic)).collect(),
                Err(error) => {
                    tracing::error!(%error, "reading the unfinished publishes failed; trying again with the next hint");
                    Vec::new()
                }
            },
        }
    }

    /// Proposes some chunks of a topic's oldest publish. Returns whether the topic may need more.
    async fn round(&self, epoch: u64, topic: Topic) -> (Topic, bool) {
        let (seq, starts) = match self.next_chunks(topic.clone()).await {
            Ok(Some(chunks)) => chunks,
            Ok(None) => return (topic, false),
            Err(error) => {
                tracing::error!(%error, "reading the job of a publish failed; trying again");
                sleep(RETRY).await;
                return (topic, true);
            }
        };
        // The chunks are polled in this order, so they reach Raft in this order.
        let chunks = starts.into_iter().map(|from| self.chunk(epoch, &topic, seq, from));
        let applied = join_all(chunks).await;
        if !applied.contains(&true) {
            sleep(RETRY).await;
        }
        (topic, true)
    }

    async fn next_chunks(&self, (team, topic): Topic) -> anyhow::Result<Option<(u64, Vec<u64>)>> {
        let read = move |state: &StateDb| {
            let job: Option<(u64, FanoutJob)> = delivery::first_fanout_job(state, team, &topic)?;
            job.map(|(seq, job)| {
                let starts = delivery::chunk_starts(state, team, &topic, &job, CHUNKS_IN_FLIGHT)?;
                Ok((seq, starts))
            })
            .transpose()
        };
        self.0.read(read).await
    }

    /// Proposes one chunk. Returns whether it was the one at which the job stood.
    async fn chunk(&self, epoch: u64, (team, topic): &Topic, seq: u64, from_serial: u64) -> bool {
        let op = FanoutChunk {
            epoch,
            team_id: team.to_bytes(),
            topic: topic.clone(),
            seq,
            from_serial,
        };
        self.0.metrics.dispatch.entry(EntryKind::FanoutChunk);
        match self.0.proposer.propose_in(epoch, op).await {
            Ok(Ok(answer)) => !answer.stale,
            Ok(Err(error)) => {
                tracing::info!(%error, "a chunk of a publish was refused; the job is read again");
                false
            }
            Err(error) => {
                tracing::debug!(%error, "a chunk of a publish was not proposed; it is proposed again");
                false
            }
        }
    }
}
