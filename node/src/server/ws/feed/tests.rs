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
            let batch = feed.batch(&memory, 0).unwrap();
            assert!(batch.events.len() <= BATCH_EVENTS);
            seen.extend(seqs(&batch));
            if !batch.more {
                break;
            }
        }
        assert_eq!(seen, expected, "{scopes:?}");
        mail(&mut memory, [(151, "a", 10)]);
        assert_eq!(
            seqs(&feed.batch(&memory, 0).unwrap()).len(),
            usize::from(!expected.is_empty()),
            "{scopes:?}"
        );
        assert!(seqs(&feed.batch(&memory, 0).unwrap()).is_empty());
    }
}

#[test]
fn what_has_expired_counts_as_removed() {
    let mut memory = Memory::default();
    mail(&mut memory, (1..=4).map(|seq| (seq, "a", 10)));
    for seq in [2, 4] {
        let key = keys::message(TEAM, seq);
        let mut message: record::Message = agentpost_raft_store::core::view::load(&memory, &key).unwrap().unwrap();
        message.expires_at_ms = 5_000;
        memory.write(vec![(key, Some(message.encode_to_vec().into()))]);
    }
    for (scopes, next) in [(&["agent_to:a"][..], 5), (&["*"][..], 6)] {
        let mut early = feed(scopes);
        assert_eq!(seqs(&early.batch(&memory, 4_999).unwrap())[..4], [1, 2, 3, 4]);
        let mut late = feed(scopes);
        let batch = late.batch(&memory, 5_000).unwrap();
        assert_eq!(seqs(&batch)[..3], [0, 1, 3], "the first frame tells of it, once");
        assert!(batch.events[0].1.contains("cursor_expired"));
        mail(&mut memory, [(next, "a", 10)]);
        assert_eq!(seqs(&late.batch(&memory, 5_000).unwrap()), [next]);
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
            let batch = feed.batch(memory, 0).unwrap();
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
    let first = feed.batch(&memory, 0).unwrap();
    assert_eq!(seqs(&first), [1, 2]);
    assert!(first.more);
    assert_eq!(feed.rows, 1);
    let mut seen = seqs(&first);
    while seen.len() < 20 {
        let batch = feed.batch(&memory, 0).unwrap();
        assert_eq!(batch.events.len(), 1);
        seen.extend(seqs(&batch));
    }
    assert_eq!(seen, (1..=20).collect::<Vec<_>>());
    mail(&mut memory, (21..=90).map(|seq| (seq, "a", 10)));
    assert_eq!(seqs(&feed.batch(&memory, 0).unwrap()), [21]);
    assert_eq!(
        feed.batch(&memory, 0).unwrap().events.len(),
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
            told(&feed.batch(&memory, 0).unwrap()),
            [3, 4],
            "no event after the position is missing"
        );
        // Events were removed while the session did not read, and there is a gap before its position.
        removed(&mut memory, "a", [3, 4, 5, 7]);
        feed.rows = 2;
        assert_eq!(told(&feed.batch(&memory, 0).unwrap()), [-6, 6, 8], "{scopes:?}");
        assert_eq!(told(&feed.batch(&memory, 0).unwrap()), [9]);
        mail(&mut memory, [(10, "a", 10)]);
        removed(&mut memory, "a", [10]);
        assert_eq!(told(&feed.batch(&memory, 0).unwrap()), [-11], "nothing is left");
        assert!(told(&feed.batch(&memory, 0).unwrap()).is_empty());
        mail(&mut memory, [(11, "a", 10)]);
        assert_eq!(told(&feed.batch(&memory, 0).unwrap()), [11]);
    }
}
