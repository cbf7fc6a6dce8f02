//! Answers operations that would change nothing from the state, without a log entry.
//!
//! **The problem.** A refused operation costs the cluster as much as an accepted one once it is in the log: it is sent to
//! every node, flushed by every disk and kept for days. A team that has used up its month could fill the disks of all
//! nodes with messages that nobody gets.
//!
//! **The idea.** `apply` is a pure function of the state and the command. So this node runs it on its own state, throws
//! the writes away ([`preview`]), and if there are none, the reply is the answer. Such an operation is a read, and it is
//! made linearizable like every read: the preview on the local state may be stale, so the answer comes from a second
//! preview behind a read barrier, on a state that contains every write acknowledged before. If the operation would write
//! there, it is proposed. `apply` stays the truth: what passes here is decided again in the log.
//!
//! | answer | what a newer state may have | who decides |
//! |---|---|---|
//! | quota of the month or the day is used up | raised limits | the barrier; the period ends by this node's wall time, as it would by the leader's |
//! | the receiver is not registered | the registration, made on another node a moment ago | the barrier |
//! | a repeat under an idempotency key, or another message under it | a key that was revoked meanwhile; the row's end after 24 hours of cluster time | the barrier; cluster time lags by a second at most |
//! | forbidden, too many topics, subscriptions, keys, agents, logins; an unknown id; a conflict | other permissions, free places, the id | the barrier |
//! | nothing to do (already registered, already deleted) | the opposite change | the barrier |
//!
//! **What is previewed.** A preview costs about what applying costs, so it must be rare for operations that are frequent:
//!
//! | operation | is previewed |
//! |---|---|
//! | sends under an idempotency key | if the local state has the key: one more read |
//! | sends, batches and marks | for a minute after one of the same team was refused, or reached its limit, on this node |
//! | every other operation of a client | always |
//! | the cluster's own operations | never |
//!
//! So of an endless row of refused sends, one reaches the log.
//!
//! A preview saves work and decides nothing, so no operation waits for one: if the pool of reads has no free place, the
//! operation is proposed.

use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::Duration;

use agentpost_proto::command::{Command, Operation, Reply, Send, SendReply, operation, reply, send_outcome};
use agentpost_proto::id::TeamId;
use agentpost_raft_store::core::apply::preview::preview;
use agentpost_raft_store::core::keys;
use agentpost_raft_store::core::kv::{Fatal, Lookup as _};
use bytes::Bytes;
use parking_lot::RwLock;
use prost::Message as _;
use tokio::time::Instant;

use super::local_state::LocalState;
use super::read_pool::Share;
use super::reader::{NotReady, Reader};
use crate::base::metrics::Metrics;
use crate::base::repeats::Repeats;

/// How long a team is watched after a refusal.
const WATCHED_FOR: Duration = Duration::from_secs(60);
/// Upper bound on the teams that are watched at a time. Beyond it none is watched until one is refused again.
const WATCHED_MAX: usize = 10_000;

/// Answers from the state of one shard on this node.
pub(super) struct Edge {
    reader: Reader,
    metrics: Metrics,
    watched: Watched,
}

/// How often operations of a kind come, which decides whether they are previewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Frequency {
    /// It is frequent, and this team's.
    Frequent(TeamId),
    /// It is rare, so it is always previewed.
    Rare,
}

impl Frequency {
    pub(super) fn of(operation: &Operation) -> Self {
        use operation::Op;
        match (&operation.op, team_of(operation)) {
            (Some(Op::Send(_) | Op::SendBatch(_) | Op::MarkRead(_)), Some(team)) => Frequency::Frequent(team),
            _ => Frequency::Rare,
        }
    }
}

impl Edge {
    /// Nothing is watched yet.
    pub(super) fn new(reader: Reader, metrics: Metrics) -> Self {
        Edge {
            reader,
            metrics,
            watched: Watched::default(),
        }
    }

    /// The answer to an operation that would change nothing, or `None` if it must be proposed. `encoded` is the operation
    /// and `wall_ms` the time of its command.
    pub(super) async fn answer(
        &self,
        operation: &Operation,
        encoded: &Bytes,
        wall_ms: u64,
    ) -> Result<Option<Reply>, NotReady> {
        let local = self.reader.local();
        if !self
            .may_change_nothing(operation, &local)
            .unwrap_or_else(|fatal| log_failed_preview(&fatal))
        {
            return Ok(None);
        }
        let command = Command {
            wall_ms,
            operation: encoded.clone(),
            ..Command::default()
        };
        let command = Bytes::from(command.encode_to_vec());
        let share = team_of(operation).map_or(Share::Strangers, Share::Team);
        if self.previewed(&local, share, &command).await.is_none() {
            return Ok(None);
        }
        drop(local);
        let state = self.reader.linearizable().await?;
        let answer = self.previewed(&state, share, &command).await;
        if let Some(reply) = &answer {
            self.metrics.proposals_unlogged.inc();
            self.learn(Frequency::of(operation), reply);
        }
        Ok(answer)
    }

    /// Whether the operation may change nothing, as far as can be known cheaply.
    fn may_change_nothing(&self, operation: &Operation, state: &LocalState) -> Result<bool, Fatal> {
        let Frequency::Frequent(team) = Frequency::of(operation) else {
            return Ok(true);
        };
        if self.watched.holds(team) {
            return Ok(true);
        }
        // A batch writes nothing only if its first message does not, so one row suffices.
        let first = match &operation.op {
            Some(operation::Op::Send(send)) => Some(send),
            Some(operation::Op::SendBatch(batch)) => batch.sends.first(),
            _ => None,
        };
        match first {
            Some(send) if !send.idempotency_key.is_empty() => is_known(state, team, send),
            _ => Ok(false),
        }
    }

    /// The answer to a command that would change nothing in this state, if a place to preview it is free.
    async fn previewed(&self, state: &LocalState, share: Share, command: &Bytes) -> Option<Reply> {
        let command = command.clone();
        let preview = state.read_now(share, move |db| preview(&db.frozen_state(), &command));
        match preview.await {
            Some(Ok(answer)) => answer,
            Some(Err(fatal)) => {
                log_failed_preview(&fatal);
                None
            }
            None => {
                self.metrics.previews_skipped.inc();
                None
            }
        }
    }

    /// Learns from a reply which teams to watch.
    pub(super) fn learn(&self, frequency: Frequency, reply: &Reply) {
        let Frequency::Frequent(team) = frequency else {
            return;
        };
        let refused = match &reply.reply {
            Some(reply::Reply::Rejection(_)) => true,
            Some(reply::Reply::Send(sent)) => is_at_limit(sent),
            Some(reply::Reply::SendBatch(batch)) => batch.outcomes.iter().any(|outcome| match &outcome.outcome {
                Some(send_outcome::Outcome::Sent(sent)) => is_at_limit(sent),
                Some(send_outcome::Outcome::Rejection(_)) => true,
                None => false,
            }),
            _ => false,
        };
        if refused {
            self.watched.note(team);
        }
    }
}

/// The operation is proposed. If the state cannot be read, `apply` decides whether that ends the node.
fn log_failed_preview(fatal: &Fatal) -> bool {
    static FAILURES: LazyLock<Repeats<()>> = LazyLock::new(Repeats::default);
    if let Some(left_out) = FAILURES.due(()) {
        tracing::warn!(
            %fatal,
            left_out,
            "previewing an operation failed, so it is proposed; check the disk of the state"
        );
    }
    false
}

/// The team of an operation's principal.
fn team_of(operation: &Operation) -> Option<TeamId> {
    let principal = operation.principal.as_ref();
    principal.and_then(|principal| TeamId::from_slice(&principal.team_id).ok())
}

/// Whether the state has the idempotency key of a send.
fn is_known(state: &LocalState, team: TeamId, send: &Send) -> Result<bool, Fatal> {
    let row = keys::idempotency(team, &send.from, &send.idempotency_key);
    Ok(state.get(&row)?.is_some())
}

/// Whether the next send may be refused. A team that pays for further events is not.
fn is_at_limit(sent: &SendReply) -> bool {
    let month = sent.events_limit != 0 && sent.events_used >= sent.events_limit && sent.amount_charged_atomic == 0;
    let day = sent.sends_limit != 0 && sent.sends_used >= sent.sends_limit;
    month || day
}

/// The teams with a recent refusal, each with the time of the last one.
#[derive(Default)]
struct Watched {
    teams: RwLock<HashMap<TeamId, Instant>>,
}

impl Watched {
    fn holds(&self, team: TeamId) -> bool {
        let teams = self.teams.read();
        !teams.is_empty() && teams.get(&team).is_some_and(is_recent)
    }

    fn note(&self, team: TeamId) {
        let mut teams = self.teams.write();
        if teams.len() >= WATCHED_MAX && !teams.contains_key(&team) {
            teams.retain(|_, refused| is_recent(refused));
            if teams.len() >= WATCHED_MAX {
                teams.clear();
            }
        }
        teams.insert(team, Instant::now());
    }
}

fn is_recent(refused: &Instant) -> bool {
    refused.elapsed() < WATCHED_FOR
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_team_is_watched_for_a_while_and_their_number_is_bounded() {
        let watched = Watched::default();
        let team = |n: usize| {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&(n as u64).to_be_bytes());
            TeamId(id)
        };
        assert!(!watched.holds(team(1)));
        watched.note(team(1));
        assert!(watched.holds(team(1)) && !watched.holds(team(2)));
        tokio::time::advance(WATCHED_FOR).await;
        assert!(!watched.holds(team(1)));
        for n in 0..3 * WATCHED_MAX {
            watched.note(team(n));
            assert!(watched.holds(team(n)));
            assert!(watched.teams.read().len() <= WATCHED_MAX);
        }
    }

    #[test]
    fn a_send_that_reaches_a_limit_is_the_last_one() {
        for (events, sends, charged, last) in [
            ((9, 10), (1, 2), 0, false),
            ((10, 10), (1, 2), 0, true),
            ((9, 10), (2, 2), 0, true),
            ((11, 10), (1, 2), 5, false),
            ((10, 0), (2, 0), 0, false),
        ] {
            let sent = SendReply {
                events_used: events.0,
                events_limit: events.1,
                sends_used: sends.0,
                sends_limit: sends.1,
                amount_charged_atomic: charged,
                ..SendReply::default()
            };
            assert_eq!(is_at_limit(&sent), last, "{sent:?}");
        }
    }
}
