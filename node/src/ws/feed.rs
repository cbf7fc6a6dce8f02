//! What a session reads: the events after its place, in batches of bounded size.

use agentpost_proto::id::{AgentId, TeamId};
use agentpost_proto::{limits, record};
use agentpost_raft_store::kv::{Fatal, Kv};
use agentpost_raft_store::query;
use axum::extract::ws::Utf8Bytes;

use super::frame;
use super::scope::Scope;
use crate::shard::wakeups::{Listener, Wakeups};

/// A subscription and its place.
#[derive(Debug)]
pub struct Feed {
    team: TeamId,
    scopes: Vec<Scope>,
    source_prefix: String,
    after_seq: u64,
    /// Rows of the next batch: fewer when messages are large.
    rows: usize,
}

/// Encoded events, in order.
#[derive(Debug)]
pub struct Batch {
    /// Each with its seq.
    pub events: Vec<(u64, Utf8Bytes)>,
    /// There may be more at once.
    pub more: bool,
}

impl Feed {
    /// Everything that one of `scopes` (the narrowed ones) matches; the place is set later.
    pub fn new(team: TeamId, scopes: Vec<Scope>, source_prefix: String) -> Self {
        Feed {
            team,
            scopes,
            source_prefix,
            after_seq: 0,
            rows: limits::WS_BATCH_EVENTS,
        }
    }

    /// The one inbox that this is about, if so: it has an index of its own.
    pub fn inbox(&self) -> Option<&AgentId> {
        match self.scopes.as_slice() {
            [Scope::AgentTo(id)] => Some(id),
            _ => None,
        }
    }

    /// Wakes when there may be something new.
    pub fn listen(&self, wakeups: &Wakeups) -> Listener {
        match self.inbox() {
            Some(agent) => wakeups.inbox(self.team, agent.as_str()),
            None => wakeups.team(self.team),
        }
    }

    /// Goes to a place.
    pub fn seek(&mut self, after_seq: u64) {
        self.after_seq = after_seq;
    }

    /// The highest seq that retention took from here.
    pub fn max_removed_seq(&self, kv: &impl Kv) -> Result<u64, Fatal> {
        Ok(match self.inbox() {
            Some(agent) => query::inbox_head(kv, self.team, agent.as_str())?.max_removed_seq,
            None => query::team_head(kv, self.team)?.max_removed_seq,
        })
    }

    /// The first retained entry after the place.
    pub fn oldest_available_seq(&self, kv: &impl Kv) -> Result<Option<u64>, Fatal> {
        Ok(self.read(kv, 1)?.first().map(|(seq, _)| *seq))
    }

    /// Reads on from the place and moves it behind what it returns.
    pub fn batch(&mut self, kv: &impl Kv) -> Result<Batch, Fatal> {
        let rows = self.read(kv, self.rows)?;
        let mut batch = Batch {
            events: Vec::with_capacity(rows.len()),
            more: rows.len() == self.rows,
        };
        self.rows = next_rows(&rows);
        let mut bytes = 0;
        for (seq, message) in rows {
            if bytes >= limits::WS_BATCH_BYTES {
                batch.more = true;
                break;
            }
            self.after_seq = seq;
            if self
                .scopes
                .iter()
                .any(|scope| scope.matches(&message, &self.source_prefix))
            {
                let event = frame::event(&message, seq, &self.source_prefix);
                bytes += event.len();
                batch.events.push((seq, event));
            }
        }
        Ok(batch)
    }

    fn read(&self, kv: &impl Kv, rows: usize) -> Result<Vec<(u64, record::Message)>, Fatal> {
        Ok(match self.inbox() {
            Some(agent) => query::inbox_after(kv, self.team, agent.as_str(), self.after_seq, rows)?
                .into_iter()
                .map(|item| (item.seq, item.message))
                .collect(),
            None => query::team_after(kv, self.team, self.after_seq, rows)?
                .into_iter()
                .map(|message| (message.seq, message))
                .collect(),
        })
    }
}

/// As many rows as fit the byte bound if the next messages are like these.
fn next_rows(rows: &[(u64, record::Message)]) -> usize {
    let bytes: usize = rows.iter().map(|(_, message)| message.body.len()).sum();
    let fitting = limits::WS_BATCH_BYTES * rows.len() / bytes.max(1);
    if rows.is_empty() {
        limits::WS_BATCH_EVENTS
    } else {
        fitting.clamp(1, limits::WS_BATCH_EVENTS)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use agentpost_raft_store::keys::{self, ReadState};
    use agentpost_raft_store::kv::{Memory, Writes};
    use bytes::Bytes;
    use prost::Message as _;

    use super::super::scope::parse_requested;
    use super::*;

    const TEAM: TeamId = TeamId([1; 16]);

    /// Puts mail into inboxes: (seq, to, bytes of the body).
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

    fn feed(scopes: &[&str]) -> Feed {
        let texts: Vec<String> = scopes.iter().map(|s| (*s).to_owned()).collect();
        Feed::new(TEAM, parse_requested(&texts).unwrap(), "https://x/".to_owned())
    }

    fn seqs(batch: &Batch) -> Vec<u64> {
        batch.events.iter().map(|(seq, _)| *seq).collect()
    }

    #[test]
    fn batches_join_without_gap_or_overlap() {
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
                assert!(batch.events.len() <= limits::WS_BATCH_EVENTS);
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
            limits::WS_BATCH_EVENTS,
            "and grow again"
        );
    }

    #[test]
    fn what_retention_took_shows_at_the_head_that_counts() {
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
        assert_eq!(feed(&["agent_to:b", "agent_to:a"]).max_removed_seq(&memory).unwrap(), 7);
        assert_eq!(feed(&["agent_to:b"]).oldest_available_seq(&memory).unwrap(), Some(9));
        assert_eq!(feed(&["*"]).oldest_available_seq(&memory).unwrap(), Some(8));
    }
}
