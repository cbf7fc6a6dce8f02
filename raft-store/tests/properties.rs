//! What holds after every random history: the books balance and nothing crosses a team.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/random.rs"]
mod random;

use std::collections::{BTreeMap, BTreeSet};

use agentpost_proto::command::reply::Reply as R;
use agentpost_proto::command::send_outcome::Outcome;
use agentpost_proto::command::{Reply, SendReply};
use agentpost_proto::id::MessageId;
use agentpost_proto::record::{LogId, Message};
use agentpost_proto::time;
use agentpost_raft_store::apply::apply_command;
use agentpost_raft_store::keys::ReadState;
use agentpost_raft_store::kv::{Memory, Order};
use agentpost_raft_store::query::{self, InboxItem, PageQuery};
use agentpost_raft_store::view::{HotCache, View};
use common::{encode, id_of, key_hash, message_id, principal, send, team_id};
use proptest::prelude::*;
use random::{AGENTS, DAILY_SENDS, TEAMS, log, step};

fn whole_inbox(kv: &Memory, team: &str, agent: &str, state: Option<ReadState>, order: Order) -> Vec<InboxItem> {
    let query = PageQuery {
        after_seq: None,
        order,
        limit: 1000,
        state,
        from: None,
        topic: None,
    };
    query::inbox_page(kv, team_id(team), agent, &query).unwrap().items
}

fn sent_of(reply: Reply) -> Vec<SendReply> {
    match reply.reply.unwrap() {
        R::Send(sent) => vec![sent],
        R::SendBatch(batch) => batch
            .outcomes
            .into_iter()
            .filter_map(|o| match o.outcome.unwrap() {
                Outcome::Sent(sent) => Some(sent),
                Outcome::Rejection(_) => None,
            })
            .collect(),
        _ => Vec::new(),
    }
}

/// Replays a log one entry at a time; returns the state and every accepted send with its day.
fn run(log: &[bytes::Bytes]) -> (Memory, Vec<(u32, SendReply)>) {
    let (mut memory, mut cache, mut accepted) = (Memory::default(), HotCache::default(), Vec::new());
    for (i, command) in log.iter().enumerate() {
        let mut view = View::new(&memory, &mut cache).unwrap();
        let id = LogId {
            term: 1,
            node: 1,
            index: i as u64 + 1,
        };
        let reply = apply_command(&mut view, &id, command, &mut Vec::new()).unwrap();
        let writes = view.into_writes();
        memory.write(writes);
        let day = time::day(query::applied(&memory).unwrap().wall_ms);
        accepted.extend(sent_of(reply).into_iter().map(|sent| (day, sent)));
    }
    (memory, accepted)
}

fn check_books(memory: &Memory, team: &str) -> Result<(), TestCaseError> {
    let mut referred: BTreeMap<u64, u64> = BTreeMap::new();
    for agent in AGENTS {
        let all = whole_inbox(memory, team, agent, None, Order::Ascending);
        let head = query::inbox_head(memory, team_id(team), agent).unwrap();
        prop_assert_eq!(head.entries, all.len() as u64);
        prop_assert_eq!(
            head.unread,
            all.iter().filter(|item| item.read_at_ms == 0).count() as u64
        );
        let order: Vec<(u64, u64)> = all.iter().map(|item| (item.seq, item.position)).collect();
        prop_assert!(
            order.windows(2).all(|w| w[0].0 < w[1].0 && w[0].1 < w[1].1),
            "seq and position rise: {order:?}"
        );
        prop_assert!(order.last().is_none_or(|(_, position)| *position <= head.last_position));
        let reversed: Vec<u64> = whole_inbox(memory, team, agent, None, Order::Descending)
            .iter()
            .rev()
            .map(|item| item.seq)
            .collect();
        prop_assert_eq!(reversed, order.iter().map(|(seq, _)| *seq).collect::<Vec<_>>());
        for state in [ReadState::Unread, ReadState::Read] {
            for item in whole_inbox(memory, team, agent, Some(state), Order::Ascending) {
                prop_assert_eq!(item.read_at_ms == 0, state == ReadState::Unread);
            }
        }
        for item in all {
            prop_assert_eq!(&item.message.to, agent);
            *referred.entry(item.message.seq).or_default() += 1;
        }
    }
    let messages: Vec<Message> = query::team_after(memory, team_id(team), 0, 10_000).unwrap();
    let counted: BTreeMap<u64, u64> = messages
        .iter()
        .map(|m| (m.seq, query::references(memory, team_id(team), m.seq).unwrap()))
        .collect();
    prop_assert_eq!(counted, referred, "a message lives exactly while an entry refers to it");
    let ids: BTreeSet<_> = messages.iter().map(|m| m.id.clone()).collect();
    prop_assert_eq!(ids.len(), messages.len(), "one message per id");
    for message in &messages {
        let id = MessageId::from_slice(&message.id).unwrap();
        prop_assert_eq!(
            query::message(memory, team_id(team), id).unwrap().unwrap().seq,
            message.seq
        );
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn the_books_balance_after_any_history(steps in prop::collection::vec(step(), 0..120)) {
        let (memory, accepted) = run(&log(&steps));
        for team in TEAMS {
            check_books(&memory, team)?;
        }
        // Every accepted send of a counted agent said how many it was: no day has more than the limit.
        for (_, sent) in &accepted {
            prop_assert!(sent.sends_used <= DAILY_SENDS);
        }
    }

    #[test]
    fn no_daily_quota_is_ever_exceeded(steps in prop::collection::vec(step(), 0..120)) {
        let (memory, accepted) = run(&log(&steps));
        let mut per_day: BTreeMap<(u32, String, bytes::Bytes), BTreeSet<u64>> = BTreeMap::new();
        for (day, sent) in accepted {
            // Which agent sent it stands in the state, unless the message is gone; then the seq alone cannot say.
            for team in TEAMS {
                let id = MessageId::from_slice(&sent.message_id).unwrap();
                if let Some(message) = query::message(&memory, team_id(team), id).unwrap()
                    && message.seq == sent.seq && time::day(message.created_at_ms) == day
                {
                    per_day.entry((day, message.from, team_id(team).to_bytes())).or_default().insert(sent.seq);
                }
            }
        }
        for (who, seqs) in per_day {
            prop_assert!(seqs.len() as u64 <= DAILY_SENDS, "{who:?} sent {}", seqs.len());
        }
    }

    #[test]
    fn a_team_cannot_change_another(steps in prop::collection::vec(step(), 0..60), probe in step()) {
        let (before, _) = run(&log(&steps));
        // Whatever a key of acme asks for, no row of the team "other" changes.
        let by_acme = random::Step { principal: Some(principal("acme", "w")), ..probe };
        prop_assume!(!matches!(by_acme.op, agentpost_proto::command::operation::Op::AckCursors(_) | agentpost_proto::command::operation::Op::Sweep(_)));
        let mut all = steps.clone();
        all.push(by_acme);
        let (after, _) = run(&log(&all));
        let rows = |memory: &Memory| -> Vec<_> {
            let other = team_id("other").0;
            memory.rows().filter(|(key, _)| key.windows(16).any(|w| w == other)).map(|(k, v)| (k.clone(), v.clone())).collect()
        };
        prop_assert_eq!(rows(&before), rows(&after));
    }
}

/// A send under one idempotency key, again and again with fresh message ids, is one message.
#[test]
fn retries_under_one_key_make_one_message() {
    let mut log = log(&[]);
    for n in 0..20 {
        let mut op = send(&format!("retry{n}"), "alice", "bob");
        op.idempotency_key = "order-7".to_owned();
        let op = agentpost_proto::command::operation::Op::Send(op);
        log.push(encode(2_000 + n, 1, 2_000 + n, Some(principal("acme", "w")), op));
    }
    let (memory, accepted) = run(&log);
    assert_eq!(whole_inbox(&memory, "acme", "bob", None, Order::Ascending).len(), 1);
    assert_eq!(accepted.len(), 20);
    assert!(
        accepted
            .iter()
            .all(|(_, sent)| sent.message_id == message_id("retry0").to_bytes())
    );
    assert_eq!(
        query::key_by_hash(&memory, &key_hash("w")).unwrap().unwrap().id,
        id_of("w").to_vec()
    );
}
