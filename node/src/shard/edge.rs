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
//! | sends and batches | for a minute after this node refused one of the same team for a quota, or one reached its limit |
//! | sends and batches to an agent that nobody registered, marks of an unknown message | for a minute after this node refused one of the same target |
//! | every other operation of a client | always |
//! | the cluster's own operations | never |
//!
//! So of an endless row of refused sends, one reaches the log. A refusal that need not repeat costs the team's other sends
//! nothing. A preview ends at the first write.
//!
//! A preview saves work and decides nothing, so no operation waits for one: if the pool of reads has no free place, the
//! operation is proposed.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::LazyLock;
use std::time::Duration;

use agentpost_proto::command::{
    Command, ErrorCode, Operation, Rejection, Reply, Send, SendReply, operation, reply, send_outcome,
};
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

/// How long operations are previewed after a refusal that will repeat.
const WATCHED_FOR: Duration = Duration::from_secs(60);
/// Upper bound on the refusals that are remembered at a time. Beyond it all are forgotten.
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
    /// It is a send or a mark of this team. The target is a hash of the receiver or of the message; a batch has that of
    /// its first message, because a batch writes nothing only if its first message does not.
    Frequent { team: TeamId, target: u64 },
    /// It is rare, so it is always previewed.
    Rare,
}

impl Frequency {
    pub(super) fn of(operation: &Operation) -> Self {
        use operation::Op;
        match (&operation.op, team_of(operation)) {
            (Some(op @ (Op::Send(_) | Op::SendBatch(_) | Op::MarkRead(_))), Some(team)) => Frequency::Frequent {
                team,
                target: target_of(op),
            },
            _ => Frequency::Rare,
        }
    }
}

/// An equal hash of another target only costs a preview.
fn target_of(op: &operation::Op) -> u64 {
    let target = match op {
        operation::Op::Send(send) => send.to.as_bytes(),
        operation::Op::SendBatch(batch) => batch.sends.first().map_or(&[][..], |send| send.to.as_bytes()),
        operation::Op::MarkRead(mark) => &mark.message_id,
        _ => &[],
    };
    let mut hash = DefaultHasher::new();
    target.hash(&mut hash);
    hash.finish()
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
        let Frequency::Frequent { team, target } = Frequency::of(operation) else {
            return Ok(true);
        };
        let is_mark = matches!(operation.op, Some(operation::Op::MarkRead(_)));
        if self.watched.holds(Refusal::Target(team, target)) || !is_mark && self.watched.holds(Refusal::Quota(team)) {
            return Ok(true);
        }
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

    /// Learns from a reply which operations would be refused again.
    pub(super) fn learn(&self, frequency: Frequency, reply: &Reply) {
        if let Frequency::Frequent { team, target } = frequency
            && let Some(refusal) = Refusal::of(team, target, reply)
        {
            self.watched.note(refusal);
        }
    }
}

/// A refusal that repeats until something else changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Refusal {
    /// A quota of the team is used up.
    Quota(TeamId),
    /// The receiver, or the message to be marked, is unknown.
    Target(TeamId, u64),
}

impl Refusal {
    /// The refusal that an operation like the one of this reply would meet.
    fn of(team: TeamId, target: u64, reply: &Reply) -> Option<Self> {
        let rejected = |rejection: &Rejection| match rejection.code() {
            ErrorCode::QuotaExceeded => Some(Refusal::Quota(team)),
            ErrorCode::NotFound => Some(Refusal::Target(team, target)),
            _ => None,
        };
        let sent = |sent: &SendReply| is_at_limit(sent).then_some(Refusal::Quota(team));
        match reply.reply.as_ref()? {
            reply::Reply::Rejection(rejection) => rejected(rejection),
            reply::Reply::Send(reply) => sent(reply),
            reply::Reply::SendBatch(batch) => {
                // An unknown receiver counts only for the first message: a batch whose first message is stored is not
                // refused. A quota is used up for all that follow.
                let (first, last) = (batch.outcomes.first()?, batch.outcomes.last()?);
                [first, last]
                    .into_iter()
                    .find_map(|outcome| match outcome.outcome.as_ref()? {
                        send_outcome::Outcome::Sent(reply) => sent(reply),
                        send_outcome::Outcome::Rejection(rejection) => rejected(rejection)
                            .filter(|refusal| std::ptr::eq(outcome, first) || *refusal == Refusal::Quota(team)),
                    })
            }
            _ => None,
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

/// The refusals of the last minute, each with the time of the last one.
#[derive(Default)]
struct Watched {
    refusals: RwLock<HashMap<Refusal, Instant>>,
}

impl Watched {
    fn holds(&self, refusal: Refusal) -> bool {
        let refusals = self.refusals.read();
        !refusals.is_empty() && refusals.get(&refusal).is_some_and(is_recent)
    }

    fn note(&self, refusal: Refusal) {
        let mut refusals = self.refusals.write();
        if refusals.len() >= WATCHED_MAX && !refusals.contains_key(&refusal) {
            refusals.retain(|_, refused| is_recent(refused));
            if refusals.len() >= WATCHED_MAX {
                refusals.clear();
            }
        }
        refusals.insert(refusal, Instant::now());
    }
}

fn is_recent(refused: &Instant) -> bool {
    refused.elapsed() < WATCHED_FOR
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_remembered_for_a_while_and_their_number_is_bounded() {
        let watched = Watched::default();
        let team = |n: usize| {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&(n as u64).to_be_bytes());
            Refusal::Quota(TeamId(id))
        };
        assert!(!watched.holds(team(1)));
        watched.note(team(1));
        assert!(watched.holds(team(1)) && !watched.holds(team(2)));
        tokio::time::advance(WATCHED_FOR).await;
        assert!(!watched.holds(team(1)));
        for n in 0..3 * WATCHED_MAX {
            watched.note(team(n));
            assert!(watched.holds(team(n)));
            assert!(watched.refusals.read().len() <= WATCHED_MAX);
        }
    }

    #[test]
    fn only_refusals_that_will_repeat_are_remembered() {
        use agentpost_proto::command::{SendBatchReply, SendOutcome};
        let (team, target) = (TeamId([1; 16]), 7);
        let rejection = |code| Rejection::new(code, "");
        let learnt = |reply| Refusal::of(team, target, &Reply { reply: Some(reply) });
        let quota = Some(Refusal::Quota(team));
        let unknown = Some(Refusal::Target(team, target));
        for (code, refusal) in [
            (ErrorCode::QuotaExceeded, quota),
            (ErrorCode::NotFound, unknown),
            (ErrorCode::IdempotencyMismatch, None),
            (ErrorCode::Invalid, None),
            (ErrorCode::Forbidden, None),
        ] {
            assert_eq!(learnt(reply::Reply::Rejection(rejection(code))), refusal, "{code:?}");
        }
        let stored = || send_outcome::Outcome::Sent(SendReply::default());
        let refused = |code| send_outcome::Outcome::Rejection(rejection(code));
        for (outcomes, refusal) in [
            ([stored(), stored()], None),
            ([stored(), refused(ErrorCode::QuotaExceeded)], quota),
            ([stored(), refused(ErrorCode::NotFound)], None),
            ([refused(ErrorCode::NotFound), stored()], unknown),
        ] {
            let outcomes = outcomes.map(|outcome| SendOutcome { outcome: Some(outcome) });
            let outcomes = Vec::from(outcomes);
            assert_eq!(learnt(reply::Reply::SendBatch(SendBatchReply { outcomes })), refusal);
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
