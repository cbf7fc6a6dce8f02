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

    /// Reads the next batch and moves the position after it.
    pub fn batch(&mut self, kv: &impl Kv) -> Result<Batch, Fatal> {
        // All reads use one snapshot. Without it, an event that was added or removed between two reads would be
        // skipped.
        let frozen = kv.frozen();
        let kv = &frozen.as_ref();
        let removed = self.max_removed_seq(kv)?;
        let rows = self.read(kv, Look::After(self.after_seq), self.rows)?;
        let mut batch = Batch {
            events: Vec::with_capacity(rows.len()),
            more: rows.len() == self.rows,
        };
        if removed > self.after_seq.max(self.told_seq) {
            let oldest = rows.first().map_or(removed + 1, |row| row.seq);
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
mod tests {
    #![allow(clippy::unwrap_used)]

    use agentpost_raft_store::core::keys::{self, ReadState};
    use agentpost_raft_store::core::kv::{Memory, Writes};
    use bytes::Bytes;
    use prost::Message as _;

    use super::super::scope::parse_requested;
    use super::*;

    pub(super) const TEAM: TeamId = TeamId([1; 16]);

    /// Writes mail into inboxes, as (seq, receiver, bytes of the body).
    fn mail(memory: &mut Memory, items: impl IntoIterator<Item = (u64, &'static str, usize)>) {
        let mut writes = Writes::new();
        for (seq, to, length) in items {
            let message = record::Message {
                id: vec![seq as u8; 16].into(),
                seq,
                from: "sender".to_owned(),
                to: to.to_owned(),
                body: "x".repeat(length).into(),
                ..Default::default()
            };
            let entry = record::InboxEntry {
                position: seq,
                message_seq: seq,
                read_at_ms: 0,
                ..record::InboxEntry::default()
            };
            let state = if seq % 3 == 0 {
                ReadState::Read
            } else {
                ReadState::Unread
            };
            let mut put = |key: Bytes, value: Vec<u8>| writes.push((key, Some(value.into())));
            put(keys::message(TEAM, seq), message.encode_to_vec());
            put(keys::inbox_entry(state, TEAM, to, seq), entry.encode_to_vec());
        }
        memory.write(writes);
    }

    pub(super) fn feed(scopes: &[&str]) -> Feed {
        let texts: Vec<String> = scopes.iter().map(|s| (*s).to_owned()).collect();
        Feed::new(TEAM, parse_requested(&texts).unwrap(), "https://x/".to_owned())
    }

    fn seqs(batch: &Batch) -> Vec<u64> {
        batch.events.iter().map(|(seq, _)| *seq).collect()
    }

    #[test]
    fn batches_have_no_gap_or_overlap() {
        for (scopes, expected) in [
            (&["agent_to:a"][..], (1..=75).map(|n| n * 2).collect::<Vec<u64>>()),
            (&["agent_to:a", "agent_to:c"][..], (1..=75).map(|n| n * 2).collect()),
            (&["*"][..], (1..=150).collect()),
            (&["source:nobody"][..], vec![]),
        ] {
            let mut memory = Memory::default();
            mail(
                &mut memory,
                (1..=150).map(|seq| (seq, if seq % 2 == 0 { "a" } else { "b" }, 10)),
            );
            let mut feed = feed(scopes);
            let mut seen = Vec::new();
            loop {
                let batch = feed.batch(&memory).unwrap();
                assert!(batch.events.len() <= BATCH_EVENTS);
                seen.extend(seqs(&batch));
                if !batch.more {
                    break;
                }
            }
            assert_eq!(seen, expected, "{scopes:?}");
            mail(&mut memory, [(151, "a", 10)]);
            assert_eq!(
                seqs(&feed.batch(&memory).unwrap()).len(),
                usize::from(!expected.is_empty()),
                "{scopes:?}"
            );
            assert!(seqs(&feed.batch(&memory).unwrap()).is_empty());
        }
    }

    /// Writes a topic message at `seq` with its entries, as (inbox, seq of the entry).
    fn publish(memory: &mut Memory, seq: u64, from: &str, entries: &[(&str, u64)]) {
        let message = record::Message {
            id: vec![seq as u8; 16].into(),
            seq,
            from: from.to_owned(),
            topic: "news".to_owned(),
            body: "x".into(),
            ..Default::default()
        };
        let mut writes: Writes = vec![(keys::message(TEAM, seq), Some(message.encode_to_vec().into()))];
        for (agent, entry_seq) in entries {
            let entry = record::InboxEntry {
                position: *entry_seq,
                message_seq: seq,
                read_at_ms: 0,
                ..record::InboxEntry::default()
            };
            let key = keys::inbox_entry(ReadState::Unread, TEAM, agent, *entry_seq);
            writes.push((key, Some(entry.encode_to_vec().into())));
        }
        memory.write(writes);
    }

    /// The events that a session with these scopes gets, as seqs with `data.to`, read in batches of every size.
    fn seen(memory: &Memory, scopes: &[&str]) -> Vec<(u64, String)> {
        let mut all = Vec::new();
        for rows in [1, 2, 3, BATCH_EVENTS] {
            let mut feed = feed(scopes);
            feed.rows = rows;
            let mut events = Vec::new();
            loop {
                let batch = feed.batch(memory).unwrap();
                feed.rows = rows;
                events.extend(batch.events);
                if !batch.more {
                    break;
                }
            }
            all.push(events);
        }
        assert!(
            all.windows(2).all(|w| w[0] == w[1]),
            "batches of every size give the same events: {scopes:?}"
        );
        let shown = |(seq, event): (u64, Utf8Bytes)| {
            let frame: serde_json::Value = serde_json::from_str(&event).unwrap();
            let data = &frame["event"]["data"];
            assert_eq!((&frame["seq"], &frame["event"]["kiteseq"]), (&seq.into(), &seq.into()));
            let to = data["to"].as_str().unwrap().to_owned();
            let of_topic = ![1, 3, 4].contains(&seq);
            assert_eq!(
                data["topic"],
                if of_topic {
                    "news".into()
                } else {
                    serde_json::Value::Null
                }
            );
            (seq, to)
        };
        all.pop().unwrap().into_iter().map(shown).collect()
    }

    #[test]
    fn topic_mail_is_shown_once_in_the_form_of_its_scope() {
        let mut memory = Memory::default();
        mail(&mut memory, [(1, "a", 1), (3, "b", 1), (4, "c", 1)]);
        // One publish reached a and b at the same seq and c later; the other reached only a and b, one after the other.
        publish(&mut memory, 2, "p", &[("a", 2), ("b", 2), ("c", 5)]);
        publish(&mut memory, 6, "q", &[("a", 7), ("b", 8)]);
        /// Scopes, and the events of their session.
        type Case = (&'static [&'static str], &'static [(u64, &'static str)]);
        let table: &[Case] = &[
            (&["agent_to:a"], &[(1, "a"), (2, "a"), (7, "a")]),
            (&["agent_to:c"], &[(4, "c"), (5, "c")]),
            (&["agent_to:d"], &[]),
            (
                &["*"],
                &[(1, "a"), (2, "topic:news"), (3, "b"), (4, "c"), (6, "topic:news")],
            ),
            // The wide form appears once, in any order of the scopes and for every kind of wide scope.
            (
                &["agent_to:c", "*"],
                &[(1, "a"), (2, "topic:news"), (3, "b"), (4, "c"), (6, "topic:news")],
            ),
            (
                &["type:kite", "agent_to:a"],
                &[(1, "a"), (2, "topic:news"), (3, "b"), (4, "c"), (6, "topic:news")],
            ),
            // A scope that matches only one of the publishes leaves the other to the inbox.
            (&["source:x/p"], &[(2, "topic:news")]),
            (&["source:x/p", "agent_to:a"], &[(1, "a"), (2, "topic:news"), (7, "a")]),
            (&["source:x/q", "agent_to:c"], &[(4, "c"), (5, "c"), (6, "topic:news")]),
            // Several inboxes, merged by seq; a message that reached two at the same seq is addressed to the topic.
            (
                &["agent_to:a", "agent_to:c"],
                &[(1, "a"), (2, "a"), (4, "c"), (5, "c"), (7, "a")],
            ),
            (
                &["agent_to:b", "agent_to:a"],
                &[(1, "a"), (2, "topic:news"), (3, "b"), (7, "a"), (8, "b")],
            ),
        ];
        for (scopes, expected) in table {
            let expected: Vec<(u64, String)> = expected.iter().map(|(seq, to)| (*seq, (*to).to_owned())).collect();
            assert_eq!(seen(&memory, scopes), expected, "{scopes:?}");
        }
    }

    #[test]
    fn large_messages_make_small_batches() {
        let mut memory = Memory::default();
        mail(&mut memory, (1..=20).map(|seq| (seq, "a", 200_000)));
        let mut feed = feed(&["agent_to:a"]);
        let first = feed.batch(&memory).unwrap();
        assert_eq!(seqs(&first), [1, 2]);
        assert!(first.more);
        assert_eq!(feed.rows, 1);
        let mut seen = seqs(&first);
        while seen.len() < 20 {
            let batch = feed.batch(&memory).unwrap();
            assert_eq!(batch.events.len(), 1);
            seen.extend(seqs(&batch));
        }
        assert_eq!(seen, (1..=20).collect::<Vec<_>>());
        mail(&mut memory, (21..=90).map(|seq| (seq, "a", 10)));
        assert_eq!(seqs(&feed.batch(&memory).unwrap()), [21]);
        assert_eq!(
            feed.batch(&memory).unwrap().events.len(),
            BATCH_EVENTS,
            "and grow again"
        );
    }

    #[test]
    fn retention_is_reported_for_the_order_that_the_scopes_read() {
        let mut memory = Memory::default();
        mail(&mut memory, [(8, "a", 1), (9, "b", 1)]);
        let head = record::InboxHead {
            max_removed_seq: 5,
            ..Default::default()
        };
        let team = record::TeamHead {
            max_removed_seq: 7,
            last_seq: 9,
            ..Default::default()
        };
        let writes = vec![
            (keys::inbox_head(TEAM, "b"), Some(head.encode_to_vec().into())),
            (keys::team_head(TEAM), Some(team.encode_to_vec().into())),
        ];
        memory.write(writes);
        assert_eq!(feed(&["agent_to:b"]).max_removed_seq(&memory).unwrap(), 5);
        assert_eq!(feed(&["agent_to:b", "agent_to:a"]).max_removed_seq(&memory).unwrap(), 5);
        assert_eq!(feed(&["agent_to:b", "source:s"]).max_removed_seq(&memory).unwrap(), 7);
        assert_eq!(feed(&["*"]).max_removed_seq(&memory).unwrap(), 7);
    }

    /// The frames of a batch: the seqs of events; a `cursor_expired` as two negative numbers (oldest available,
    /// position).
    fn told(batch: &Batch) -> Vec<i64> {
        let number = |(seq, event): &(u64, Utf8Bytes)| {
            let frame: serde_json::Value = serde_json::from_str(event).unwrap();
            match frame["type"].as_str().unwrap() {
                "event" => *seq as i64,
                other => {
                    assert_eq!(other, "cursor_expired");
                    assert_eq!(frame["oldest_available_seq"], *seq + 1);
                    -(*seq as i64 + 1)
                }
            }
        };
        batch.events.iter().map(number).collect()
    }

    fn removed(memory: &mut Memory, agent: &str, seqs: impl IntoIterator<Item = u64>) {
        for seq in seqs {
            let mut inbox = query::inbox::head(memory, TEAM, agent).unwrap();
            let mut team = query::team::head(memory, TEAM).unwrap();
            inbox.max_removed_seq = inbox.max_removed_seq.max(seq);
            team.max_removed_seq = team.max_removed_seq.max(seq);
            memory.write(vec![
                (keys::inbox_head(TEAM, agent), Some(inbox.encode_to_vec().into())),
                (keys::team_head(TEAM), Some(team.encode_to_vec().into())),
                (keys::inbox_entry(ReadState::Unread, TEAM, agent, seq), None),
                (keys::inbox_entry(ReadState::Read, TEAM, agent, seq), None),
                (keys::message(TEAM, seq), None),
            ]);
        }
    }

    #[test]
    fn removed_events_are_reported_once_and_before_later_events() {
        for scopes in [&["agent_to:a"][..], &["*"]] {
            let mut memory = Memory::default();
            mail(&mut memory, (1..=9).map(|seq| (seq, "a", 10)));
            let mut feed = feed(scopes);
            feed.seek(2);
            removed(&mut memory, "a", [1, 2]);
            feed.rows = 2;
            assert_eq!(
                told(&feed.batch(&memory).unwrap()),
                [3, 4],
                "no event after the position is missing"
            );
            // Events were removed while the session did not read, and there is a gap before its position.
            removed(&mut memory, "a", [3, 4, 5, 7]);
            feed.rows = 2;
            assert_eq!(told(&feed.batch(&memory).unwrap()), [-6, 6, 8], "{scopes:?}");
            assert_eq!(told(&feed.batch(&memory).unwrap()), [9]);
            mail(&mut memory, [(10, "a", 10)]);
            removed(&mut memory, "a", [10]);
            assert_eq!(told(&feed.batch(&memory).unwrap()), [-11], "nothing is left");
            assert!(told(&feed.batch(&memory).unwrap()).is_empty());
            mail(&mut memory, [(11, "a", 10)]);
            assert_eq!(told(&feed.batch(&memory).unwrap()), [11]);
        }
    }
}
