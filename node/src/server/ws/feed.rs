//! The events of a session, read in batches of bounded size after its position. [`recent`] reads backwards from any
//! position.
//!
//! A team has two kinds of order: the team order, in which each message has one seq, and one order per inbox. Wide
//! scopes read the team order, `agent_to` reads an inbox. The two differ for topic mail: when a publish is applied in
//! several chunks, an inbox has the message at the seq of the chunk that reached it. A session with several scopes
//! reads all of its orders merged by seq and gets one event per seq, because a vendor's client keeps one event per seq.
//! So a message that a wide scope shows is not shown again at its inbox seqs. A message that reached several of the
//! session's inboxes at the same seq is shown as it was sent, addressed to the topic.

pub mod recent;

use std::collections::BTreeMap;

use agentpost_proto::id::{AgentId, TeamId};
use agentpost_proto::record;
use agentpost_raft_store::core::kv::{Fatal, Kv};
use agentpost_raft_store::core::mutant::{self, Mutant};
use agentpost_raft_store::core::query;
use axum::extract::ws::Utf8Bytes;

use super::frame;
use super::scope::Scope;
use crate::shard::wakeups::{Listener, Wakeups};

/// Events that a session reads and writes before it polls the socket again.
const BATCH_EVENTS: usize = 64;
/// Bytes of encoded events that a session buffers while its reader is slow. A single larger event is allowed.
const BATCH_BYTES: usize = 256 * 1024;

/// A subscription and its position.
#[derive(Debug, Clone)]
pub struct Feed {
    team: TeamId,
    /// The scopes that read the team order.
    wide: Vec<Scope>,
    /// The inboxes that are read in addition.
    agents: Vec<AgentId>,
    source_prefix: String,
    after_seq: u64,
    /// The client was told that events up to this seq may have been removed.
    told_seq: u64,
    /// The number of rows of the next batch: smaller when messages are large.
    rows: usize,
}

/// Encoded events, in order. A `cursor_expired` frame precedes them if events after the position were removed unread.
#[derive(Debug)]
pub struct Batch {
    /// The frames, each with its seq. A `cursor_expired` has the seq before the oldest event that is left.
    pub events: Vec<(u64, Utf8Bytes)>,
    /// Whether more events may be available at once.
    pub more: bool,
}

/// The start and the direction of a read.
#[derive(Debug, Clone, Copy)]
enum Look {
    /// After this seq, oldest first.
    After(u64),
    /// Before this seq, newest first.
    Before(u64),
}

/// A message at its seq in one of the session's orders.
struct Row<'a> {
    seq: u64,
    message: record::Message,
    shown: Shown<'a>,
}

/// How a row becomes an event.
#[derive(Debug, Clone, Copy)]
enum Shown<'a> {
    /// No event: the session does not match it, or gets it at another seq.
    Not,
    /// One event, addressed as the message was sent.
    AsSent,
    /// One event, addressed to this agent.
    Received(&'a AgentId),
}

/// The rows that the orders have at one seq.
#[derive(Default)]
struct Found<'a> {
    /// The message in the team order.
    message: Option<record::Message>,
    /// The inboxes with an entry at this seq, and the seq of their message in the team order.
    receivers: Vec<&'a AgentId>,
    message_seq: u64,
}

impl Feed {
    /// Creates a feed of all events that match one of `scopes` (after narrowing); the position is set later.
    pub fn new(team: TeamId, scopes: Vec<Scope>, source_prefix: String) -> Self {
        let all = scopes.iter().any(Scope::is_total);
        let (mut wide, mut agents) = (Vec::new(), Vec::new());
        for scope in scopes {
            match scope {
                Scope::AgentTo(_) if all => {}
                Scope::AgentTo(agent) => agents.push(agent),
                scope => wide.push(scope),
            }
        }
        Feed {
            team,
            wide,
            agents,
            source_prefix,
            after_seq: 0,
            told_seq: 0,
            rows: BATCH_EVENTS,
        }
    }

    /// The inbox, if the subscription reads exactly one.
    pub fn inbox(&self) -> Option<&AgentId> {
        match (self.wide.as_slice(), self.agents.as_slice()) {
            ([], [agent]) => Some(agent),
            _ => None,
        }
    }

    /// A receiver that is notified when new events may be available.
    pub fn listen(&self, wakeups: &Wakeups) -> Listener {
        match self.inbox() {
            Some(agent) => wakeups.inbox(self.team, agent.as_str()),
            None => wakeups.team(self.team),
        }
    }

    /// Sets the position.
    pub fn seek(&mut self, after_seq: u64) {
        self.after_seq = after_seq;
    }

    /// The highest seq that was removed from the orders of this feed.
    fn max_removed_seq(&self, kv: &impl Kv) -> Result<u64, Fatal> {
        let mut removed = 0;
        if !self.wide.is_empty() {
            removed = query::team::head(kv, self.team)?.max_removed_seq;
        }
        for agent in &self.agents {
            let head = query::inbox::head(kv, self.team, agent.as_str())?;
            removed = removed.max(head.max_removed_seq);
        }
        Ok(removed)
    }

    /// Reads the next batch and moves the position after it. A message that has expired at `wall_ms` counts as removed.
    pub fn batch(&mut self, kv: &impl Kv, wall_ms: u64) -> Result<Batch, Fatal> {
        // All reads use one snapshot. Without it, an event that was added or removed between two reads would be
        // skipped.
        let frozen = kv.frozen();
        let kv = &frozen.as_ref();
        let rows = self.read(kv, Look::After(self.after_seq), self.rows)?;
        let is_gone = |row: &&Row<'_>| {
            !matches!(row.shown, Shown::Not) && query::inbox::has_expired(row.message.expires_at_ms, wall_ms)
        };
        let expired_seq = rows.iter().filter(is_gone).map(|row| row.seq).max();
        let removed = self.max_removed_seq(kv)?.max(expired_seq.unwrap_or(0));
        let mut batch = Batch {
            events: Vec::with_capacity(rows.len()),
            more: rows.len() == self.rows,
        };
        if removed > self.after_seq.max(self.told_seq) {
            let oldest = rows.iter().find(|row| !is_gone(row)).map_or(removed + 1, |row| row.seq);
            let expired = frame::expired(self.after_seq, removed, oldest);
            batch.events.push((oldest - 1, expired));
        }
        let told_seq = self.told_seq.max(removed);
        let next_rows = next_rows(&rows);
        let (mut bytes, mut after_seq) = (0, self.after_seq);
        for Row { seq, message, shown } in rows {
            if bytes >= BATCH_BYTES {
                batch.more = true;
                break;
            }
            after_seq = seq;
            let receiver = match shown {
                Shown::Not => continue,
                _ if query::inbox::has_expired(message.expires_at_ms, wall_ms) => continue,
                _ if mutant::on(Mutant::FrameDropped) && seq % 100 == 0 => continue,
                Shown::AsSent => None,
                Shown::Received(agent) => Some(agent.as_str()),
            };
            let event = frame::event(&message, receiver, seq, &self.source_prefix);
            bytes += event.len();
            batch.events.push((seq, event));
        }
        (self.rows, self.after_seq, self.told_seq) = (next_rows, after_seq, told_seq);
        Ok(batch)
    }

    /// The next `rows` seqs and their rows; `kv` must be a snapshot.
    fn read(&self, kv: &impl Kv, look: Look, rows: usize) -> Result<Vec<Row<'_>>, Fatal> {
        let Some(agent) = self.inbox() else {
            return self.join(kv, look, rows);
        };
        let items = match look {
            Look::After(seq) => query::inbox::after(kv, self.team, agent.as_str(), seq, rows)?,
            Look::Before(seq) => query::inbox::before(kv, self.team, agent.as_str(), seq, rows)?,
        };
        let row = |item: query::inbox::InboxItem| Row {
            seq: item.seq,
            message: item.message,
            shown: Shown::Received(agent),
        };
        Ok(items.into_iter().map(row).collect())
    }

    /// Reads the next `rows` seqs of several orders, merged.
    fn join(&self, kv: &impl Kv, look: Look, rows: usize) -> Result<Vec<Row<'_>>, Fatal> {
        let mut places: BTreeMap<u64, Found<'_>> = BTreeMap::new();
        if !self.wide.is_empty() {
            let messages = match look {
                Look::After(seq) => query::inbox::team_after(kv, self.team, seq, rows)?,
                Look::Before(seq) => query::inbox::team_before(kv, self.team, seq, rows)?,
            };
            for message in messages {
                let seq = message.seq;
                places.entry(seq).or_default().message = Some(message);
            }
        }
        for agent in &self.agents {
            let seqs = match look {
                Look::After(seq) => query::inbox::seqs_after(kv, self.team, agent.as_str(), seq, rows)?,
                Look::Before(seq) => query::inbox::seqs_before(kv, self.team, agent.as_str(), seq, rows)?,
            };
            for (seq, message_seq) in seqs {
                let found = places.entry(seq).or_default();
                found.receivers.push(agent);
                found.message_seq = message_seq;
            }
        }
        // Each order returned its first `rows` rows, so the first `rows` of the merge are among them.
        let row = |(seq, found)| self.row(kv, seq, found);
        match look {
            Look::After(_) => places.into_iter().take(rows).map(row).collect(),
            Look::Before(_) => places.into_iter().rev().take(rows).map(row).collect(),
        }
    }

    fn row<'a>(&self, kv: &impl Kv, seq: u64, found: Found<'a>) -> Result<Row<'a>, Fatal> {
        let Found {
            message,
            receivers,
            message_seq,
        } = found;
        let message = match message {
            Some(message) => message,
            None => query::inbox::message_at(kv, self.team, message_seq)?.ok_or_else(|| {
                Fatal::Invariant(format!(
                    "an inbox entry of {} without its message {message_seq}",
                    self.team
                ))
            })?,
        };
        let is_wide = self
            .wide
            .iter()
            .any(|scope| scope.matches(&message, &self.source_prefix));
        let shown = match receivers.as_slice() {
            // A wide scope shows the message at its seq in the team order only.
            _ if is_wide && seq == message.seq => Shown::AsSent,
            _ if is_wide => Shown::Not,
            [] => Shown::Not,
            [agent] => Shown::Received(agent),
            _ => Shown::AsSent,
        };
        Ok(Row { seq, message, shown })
    }
}

/// The number of rows that fit the byte limit if the next messages are as large as these.
fn next_rows(rows: &[Row<'_>]) -> usize {
    let bytes: usize = rows.iter().map(|row| row.message.body.len()).sum();
    let fitting = BATCH_BYTES * rows.len() / bytes.max(1);
    if rows.is_empty() {
        BATCH_EVENTS
    } else {
        fitting.clamp(1, BATCH_EVENTS)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
