//! The newest events that a session's scopes allow, for `events.recent`. They are read in bounded steps, so that a long
//! history does not block other sessions on this thread.

use agentpost_proto::api::kite::rpc::{RECENT_EVENTS_MAX, Recent, RecentEvent};
use agentpost_proto::cloudevent::CloudEvent;
use agentpost_proto::limits;
use agentpost_proto::time::rfc3339;
use agentpost_raft_store::core::kv::{Fatal, Kv};
use agentpost_raft_store::core::query;

use super::{Feed, Look, Row, Shown, next_rows};

/// Upper bound on the bytes of encoded events in one `events.recent`, which then has fewer events and a position from
/// which to continue. A single larger event is allowed. The frame must fit into
/// [`limits::WS_WRITE_BUFFER_BYTES_MAX`], as the largest event does.
const RECENT_BYTES_MAX: usize = 1024 * 1024;

/// Rows of the first step, when the size of messages is not known.
const FIRST_ROWS: usize = 16;

/// A page of history under way.
#[derive(Debug)]
pub struct History {
    /// Only events of this thread.
    thread_id: Option<String>,
    limit: usize,
    /// Everything from here on was examined.
    before_seq: u64,
    examined: usize,
    /// Bytes of the bodies that were examined.
    examined_bytes: usize,
    bytes: usize,
    /// Rows of the next step: few when few events are asked for, or messages are large.
    rows: usize,
    events: Vec<RecentEvent>,
    progress: Progress,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Another step follows.
    Reading,
    /// The page is full, or enough was examined for it.
    Full,
    /// There is nothing older.
    AtTheBeginning,
}

impl History {
    /// A page of at most `limit` events (1 to [`RECENT_EVENTS_MAX`]) before `before_seq`.
    pub fn before(before_seq: u64, limit: u64, thread_id: Option<String>) -> Self {
        let limit = limit.clamp(1, RECENT_EVENTS_MAX) as usize;
        History {
            thread_id,
            limit,
            before_seq,
            examined: 0,
            examined_bytes: 0,
            bytes: 0,
            rows: limit.min(FIRST_ROWS),
            events: Vec::new(),
            progress: Progress::Reading,
        }
    }

    /// The page, once it [is complete](Feed::recall).
    pub fn page(self) -> Recent {
        let more = self.progress != Progress::AtTheBeginning;
        Recent {
            next_before_seq: more.then_some(self.before_seq),
            events: self.events,
        }
    }

    /// Whether the thread, if one was asked for, is this one.
    fn concerns(&self, row: &Row<'_>) -> bool {
        let asked = self.thread_id.as_deref();
        asked.is_none_or(|thread| thread == row.message.thread_id)
    }

    /// Takes an event in; false when it does not fit.
    fn push(&mut self, seq: u64, created_at_ms: u64, event: CloudEvent) -> bool {
        // Strings and integers always encode.
        let bytes = serde_json::to_string(&event).map_or(0, |text| text.len());
        let fits = self.events.is_empty() || self.bytes + bytes <= RECENT_BYTES_MAX;
        if fits {
            self.bytes += bytes;
            self.events.push(RecentEvent {
                seq,
                created_at: rfc3339(created_at_ms),
                event,
            });
        }
        fits
    }
}

impl Feed {
    /// Reads a step further back; false when the page is complete. Messages that have expired at `wall_ms` are left out.
    pub fn recall(&self, kv: &impl Kv, history: &mut History, wall_ms: u64) -> Result<bool, Fatal> {
        // Standing still: the entries of several orders are joined, and each has its message.
        let frozen = kv.frozen();
        let kv = &frozen.as_ref();
        let wanted = history.rows.min(limits::PAGE_EXAMINED_MAX - history.examined);
        let rows = self.read(kv, Look::Before(history.before_seq), wanted)?;
        let last = rows.len() < wanted;
        history.examined += rows.len();
        history.examined_bytes += rows.iter().map(|row| row.message.body.len()).sum::<usize>();
        history.rows = next_rows(&rows);
        history.progress = match self.collect(rows, history, wall_ms) {
            false => Progress::Full,
            true if last => Progress::AtTheBeginning,
            true if history.events.len() == history.limit => Progress::Full,
            true if history.examined == limits::PAGE_EXAMINED_MAX => Progress::Full,
            true if history.examined_bytes >= limits::PAGE_EXAMINED_BYTES_MAX => Progress::Full,
            true => Progress::Reading,
        };
        Ok(history.progress == Progress::Reading)
    }

    /// Takes in what these rows show; false when something was left out for want of room.
    fn collect(&self, rows: Vec<Row<'_>>, history: &mut History, wall_ms: u64) -> bool {
        for row in rows {
            let event = match row.shown {
                _ if !history.concerns(&row) => None,
                Shown::Not => None,
                _ if query::inbox::has_expired(row.message.expires_at_ms, wall_ms) => None,
                Shown::AsSent => Some(CloudEvent::of(&row.message, row.seq, &self.source_prefix)),
                Shown::Received(agent) => {
                    let to = agent.as_str();
                    Some(CloudEvent::received(&row.message, to, row.seq, &self.source_prefix))
                }
            };
            if let Some(event) = event
                && (history.events.len() == history.limit || !history.push(row.seq, row.message.created_at_ms, event))
            {
                return false;
            }
            history.before_seq = row.seq;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use agentpost_proto::record;
    use agentpost_raft_store::core::keys::{self, ReadState};
    use agentpost_raft_store::core::kv::{Memory, Writes};
    use proptest::prelude::*;
    use prost::Message as _;
    use serde_json::Value;

    use super::super::tests::{TEAM, feed};
    use super::*;

    const AGENTS: [&str; 3] = ["a", "b", "c"];
    const THREADS: [&str; 3] = ["", "t-1", "t-2"];
    const SCOPES: &[&[&str]] = &[
        &["*"],
        &["agent_to:a"],
        &["agent_to:d"],
        &["agent_to:a", "agent_to:c"],
        &["agent_to:c", "*"],
        &["source:x/a"],
        &["source:x/a", "agent_to:b"],
        &["source:x/b", "agent_to:a", "agent_to:c"],
        &["source:nobody"],
    ];

    /// One message of a team.
    #[derive(Debug, Clone)]
    struct Sent {
        from: usize,
        thread: usize,
        bytes: usize,
        /// Of a topic: the agents that it reaches. Else the first of them gets a direct message.
        reaches: Vec<usize>,
        topic: bool,
        /// A publish whose receivers follow one by one, each at a seq of its own.
        chunks: bool,
    }

    fn sent() -> impl Strategy<Value = Sent> {
        let bytes = prop_oneof![9 => 0..200usize, 1 => 100_000..=limits::BODY_BYTES_MAX];
        let reaches = prop::sample::subsequence(vec![0, 1, 2], 1..=3);
        (0..3usize, 0..3usize, bytes, reaches, any::<bool>(), any::<bool>()).prop_map(
            |(from, thread, bytes, reaches, topic, chunks)| Sent {
                from,
                thread,
                bytes,
                reaches,
                topic,
                chunks,
            },
        )
    }

    fn state(history: &[Sent]) -> Memory {
        let (mut memory, mut last_seq) = (Memory::default(), 0);
        for sent in history {
            let seq = last_seq + 1;
            last_seq = seq;
            let message = record::Message {
                id: vec![seq as u8; 16].into(),
                seq,
                from: AGENTS[sent.from].to_owned(),
                to: if sent.topic { "" } else { AGENTS[sent.reaches[0]] }.to_owned(),
                topic: if sent.topic { "news" } else { "" }.to_owned(),
                thread_id: THREADS[sent.thread].to_owned(),
                body: "x".repeat(sent.bytes).into(),
                created_at_ms: 1_777_543_200_000 + seq,
                ..Default::default()
            };
            let mut writes: Writes = vec![(keys::message(TEAM, seq), Some(message.encode_to_vec().into()))];
            let receivers = if sent.topic {
                &sent.reaches[..]
            } else {
                &sent.reaches[..1]
            };
            for agent in receivers {
                if sent.topic && sent.chunks {
                    last_seq += 1;
                }
                let entry = record::InboxEntry {
                    position: last_seq,
                    message_seq: seq,
                    read_at_ms: 0,
                    ..record::InboxEntry::default()
                };
                let state = match last_seq % 2 {
                    0 => ReadState::Read,
                    _ => ReadState::Unread,
                };
                let key = keys::inbox_entry(state, TEAM, AGENTS[*agent], last_seq);
                writes.push((key, Some(entry.encode_to_vec().into())));
            }
            memory.write(writes);
        }
        memory
    }

    /// What a session sees that reads from the beginning.
    fn forwards(memory: &Memory, scopes: &[&str]) -> Vec<Value> {
        let (mut feed, mut events) = (feed(scopes), Vec::new());
        loop {
            let batch = feed.batch(memory, 0).unwrap();
            let frames = batch.events.iter().map(|(_, text)| text.as_str());
            events.extend(frames.map(|text| serde_json::from_str::<Value>(text).unwrap()));
            if !batch.more {
                return events;
            }
        }
    }

    fn page(memory: &Memory, feed: &Feed, before_seq: u64, limit: u64, thread: Option<&str>) -> Recent {
        let mut history = History::before(before_seq, limit, thread.map(str::to_owned));
        while feed.recall(memory, &mut history, 0).unwrap() {}
        assert!(history.examined <= limits::PAGE_EXAMINED_MAX);
        history.page()
    }

    /// Pages until there is no older one.
    fn backwards(memory: &Memory, scopes: &[&str], limit: u64, thread: Option<&str>) -> Vec<RecentEvent> {
        let (feed, mut before_seq, mut events) = (feed(scopes), u64::MAX, Vec::new());
        loop {
            let page = page(memory, &feed, before_seq, limit, thread);
            assert!(page.events.len() as u64 <= limit);
            let bytes: usize = page
                .events
                .iter()
                .map(|event| serde_json::to_string(&event.event).unwrap().len())
                .sum();
            assert!(bytes <= RECENT_BYTES_MAX || page.events.len() == 1, "{bytes}");
            events.extend(page.events);
            match page.next_before_seq {
                Some(next) => {
                    assert!(next < before_seq, "a page that leads nowhere");
                    before_seq = next;
                }
                None => return events,
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn pages_back_show_what_a_session_was_shown(
            history in prop::collection::vec(sent(), 0..40),
            scopes in prop::sample::select(SCOPES),
            limit in 1..12u64,
            thread in prop::option::of(1..3usize),
        ) {
            let (memory, thread) = (state(&history), thread.map(|at| THREADS[at]));
            let mut expected = forwards(&memory, scopes);
            expected.retain(|frame| thread.is_none_or(|thread| frame["event"]["data"]["thread_id"] == thread));
            expected.reverse();
            let found = backwards(&memory, scopes, limit, thread);
            prop_assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(&expected) {
                prop_assert_eq!(found.seq, expected["seq"].as_u64().unwrap());
                prop_assert_eq!(&serde_json::to_value(&found.event).unwrap(), &expected["event"]);
                prop_assert_eq!(&found.created_at, &found.event.time);
            }
        }
    }

    fn many(count: usize, thread: usize, bytes: usize) -> Vec<Sent> {
        let sent = Sent {
            from: 0,
            thread,
            bytes,
            reaches: vec![0],
            topic: false,
            chunks: false,
        };
        vec![sent; count]
    }

    #[test]
    fn a_page_examines_a_bounded_number_of_bytes() {
        let large = 100_000;
        let memory = state(&[many(1, 1, 1), many(100, 0, large)].concat());
        for scopes in [&["*"][..], &["agent_to:a"]] {
            let (feed, mut before_seq, mut pages) = (feed(scopes), u64::MAX, 0);
            loop {
                let mut history = History::before(before_seq, 10, Some("t-1".to_owned()));
                while feed.recall(&memory, &mut history, 0).unwrap() {}
                pages += 1;
                let step = FIRST_ROWS * large;
                assert!(history.examined_bytes < limits::PAGE_EXAMINED_BYTES_MAX + step);
                let page = history.page();
                match page.next_before_seq {
                    Some(next) => before_seq = next,
                    None => break assert_eq!(page.events.len(), 1),
                }
            }
            assert_eq!(pages, 3, "10 MB, 4 MiB in each page");
        }
    }

    #[test]
    fn a_page_examines_a_bounded_number_of_rows() {
        let old = many(1, 1, 1);
        let history = [old, many(3 * limits::PAGE_EXAMINED_MAX, 0, 1)].concat();
        let memory = state(&history);
        for scopes in [&["*"][..], &["agent_to:a"], &["agent_to:a", "agent_to:b"]] {
            let (feed, mut before_seq, mut pages) = (feed(scopes), u64::MAX, 0);
            let found = loop {
                pages += 1;
                let page = page(&memory, &feed, before_seq, 10, Some("t-1"));
                match page.next_before_seq {
                    Some(next) => {
                        assert!(page.events.is_empty());
                        before_seq = next;
                    }
                    None => break page.events,
                }
            };
            assert_eq!((pages, found.len(), found[0].seq), (4, 1, 1), "{scopes:?}");
        }
    }

    #[test]
    fn the_largest_events_come_one_by_one() {
        let memory = state(&many(5, 0, limits::BODY_BYTES_MAX));
        let feed = feed(&["*"]);
        let first = page(&memory, &feed, u64::MAX, 100, None);
        assert_eq!(first.events.iter().map(|e| e.seq).collect::<Vec<_>>(), [5, 4, 3]);
        assert_eq!(first.next_before_seq, Some(3));
        let last = page(&memory, &feed, 3, 100, None);
        assert_eq!((last.events.len(), last.next_before_seq), (2, None));
    }

    #[test]
    fn limits_are_clamped_and_the_end_is_known() {
        let memory = state(&many(1_100, 0, 1));
        let feed = feed(&["*"]);
        for (limit, events) in [(0, 1), (1, 1), (1_000, 1_000), (u64::MAX, 1_000)] {
            assert_eq!(page(&memory, &feed, u64::MAX, limit, None).events.len(), events);
        }
        for (before_seq, events, next) in [(102, 100, Some(2)), (101, 100, None), (100, 99, None), (2, 1, None)] {
            let page = page(&memory, &feed, before_seq, 100, None);
            assert_eq!((page.events.len(), page.next_before_seq), (events, next));
        }
        assert_eq!(page(&memory, &feed, 1, 100, None).events.len(), 0);
        assert_eq!(page(&memory, &feed, 0, 100, None).next_before_seq, None);
    }
}
