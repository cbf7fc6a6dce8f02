//! Properties that hold after every random history: rows agree with each other, and no command reaches another team.

use std::collections::{BTreeMap, BTreeSet};

use agentpost_proto::command::operation::Op;
use agentpost_proto::command::reply::Reply as R;
use agentpost_proto::command::send_outcome::Outcome;
use agentpost_proto::command::{Command, Operation, Reply, SendReply};
use agentpost_proto::id::{MessageId, TeamId};
use agentpost_proto::record::Message;
use agentpost_proto::time;
use agentpost_raft_store::core::effect::Effect;
use agentpost_raft_store::core::keys::{self, ReadState};
use agentpost_raft_store::core::kv::{Lookup, Memory, Order};
use agentpost_raft_store::core::query;
use agentpost_raft_store::core::query::inbox::{InboxItem, PageQuery};
use agentpost_raft_store::core::view::decode;
use agentpost_testkit::commands::{encode, id_of, key_hash, message_id, principal, send, team_id};
use bytes::Bytes;
use proptest::prelude::*;

use crate::common::core::Core;
use crate::common::random::{self, AGENTS, DAILY_SENDS, TEAMS, beginning, finished_log, log, step};
use crate::common::{books, claims};

fn whole_inbox(kv: &Memory, team: &str, agent: &str, state: Option<ReadState>, order: Order) -> Vec<InboxItem> {
    let query = PageQuery {
        after_seq: None,
        order,
        skip: 0,
        limit: 1000,
        state,
        from: None,
        topic: None,
        wall_ms: 0,
    };
    query::inbox::page(kv, team_id(team), agent, &query).unwrap().items
}

/// The result of each send of a command, `None` for a rejected one.
fn sent_of(reply: &Reply) -> Vec<Option<SendReply>> {
    match reply.reply.clone().unwrap() {
        R::Send(sent) => vec![Some(sent)],
        R::SendBatch(batch) => batch
            .outcomes
            .into_iter()
            .map(|o| match o.outcome.unwrap() {
                Outcome::Sent(sent) => Some(sent),
                Outcome::Rejection(_) => None,
            })
            .collect(),
        _ => Vec::new(),
    }
}

/// The result of a history: the state, and what happened on the way.
#[derive(Default)]
struct History {
    memory: Memory,
    /// All accepted sends, with the day of each.
    accepted: Vec<(u32, SendReply)>,
    publishes: Publishes,
}

/// Applies a log entry by entry, beginning after the initial state.
fn run(log: &[Bytes]) -> Result<History, TestCaseError> {
    let mut core = beginning();
    let mut history = History {
        publishes: Publishes::beginning(),
        ..History::default()
    };
    for command in log.iter().skip(core.index as usize) {
        if command.is_empty() {
            core.blank();
            continue;
        }
        let last_seqs = TEAMS.map(|team| query::team::head(&core.memory, team_id(team)).unwrap().last_seq);
        let expected = claims::expected(&core, command);
        let (reply, effects) = core.play(command);
        claims::check(&core, expected, &reply)?;
        history.publishes.note(&core, command, &reply, &last_seqs);
        history.publishes.check(&core, &effects)?;
        let day = time::day(query::applied(&core.memory).unwrap().wall_ms);
        history
            .accepted
            .extend(sent_of(&reply).into_iter().flatten().map(|sent| (day, sent)));
    }
    history.memory = core.memory;
    Ok(history)
}

/// A model of topics: who is subscribed, and which agents each publish must reach.
#[derive(Default)]
struct Publishes {
    subscribed: BTreeMap<(TeamId, String), BTreeSet<String>>,
    expected: BTreeMap<(TeamId, u64), BTreeSet<String>>,
}

impl Publishes {
    fn beginning() -> Self {
        let mut model = Publishes::default();
        for (team, topic, agent) in random::subscribed_at_first() {
            let subscribed = model.subscribed.entry((team_id(team), topic.to_owned()));
            subscribed.or_default().insert(agent);
        }
        model
    }

    /// Updates the model after an accepted command.
    fn note(&mut self, core: &Core, command: &Bytes, reply: &Reply, last_seqs: &[u64]) {
        let command: Command = decode(command.clone()).unwrap();
        let operation: Operation = decode(command.operation).unwrap();
        if matches!(reply.reply, Some(R::Rejection(_))) {
            return;
        }
        let Some(team) = operation.principal.map(|p| TeamId::from_slice(&p.team_id).unwrap()) else {
            return;
        };
        match operation.op.unwrap() {
            Op::Subscribe(op) => drop(self.subscribed.entry((team, op.topic)).or_default().insert(op.agent)),
            Op::Unsubscribe(op) => drop(self.subscribed.entry((team, op.topic)).or_default().remove(&op.agent)),
            Op::Send(_) | Op::SendBatch(_) => {
                let before = TEAMS
                    .iter()
                    .position(|t| team_id(t) == team)
                    .map_or(0, |at| last_seqs[at]);
                for sent in sent_of(reply).into_iter().flatten().filter(|sent| sent.seq > before) {
                    let id = MessageId::from_slice(&sent.message_id).unwrap();
                    let message = query::inbox::message(&core.memory, team, id).unwrap().unwrap();
                    if !message.topic.is_empty() {
                        let subscribed = self.subscribed.get(&(team, message.topic)).cloned();
                        let mut receivers = subscribed.unwrap_or_default();
                        receivers.remove(&message.from);
                        self.expected.insert((team, sent.seq), receivers);
                    }
                }
            }
            _ => {}
        }
    }

    /// Checks that every finished publish reached exactly the expected agents, each once.
    fn check(&self, core: &Core, effects: &[Effect]) -> Result<(), TestCaseError> {
        for effect in effects {
            let (team, seq) = match effect {
                Effect::Published { team, seq } | Effect::FanoutFinished { team, seq } => (*team, *seq),
                _ => continue,
            };
            let message: Message = decode(core.memory.get(&keys::message(team, seq)).unwrap().unwrap()).unwrap();
            if query::topic::fanout_pending(&core.memory, team, &message.topic, seq).unwrap() {
                continue;
            }
            let got = query::topic::receivers(&core.memory, team, seq, usize::MAX).unwrap();
            let once: BTreeSet<String> = got.iter().cloned().collect();
            prop_assert_eq!(once.len(), got.len(), "each once");
            prop_assert_eq!(
                &once,
                &self.expected[&(team, seq)],
                "publish {} to {}",
                seq,
                message.topic
            );
            let id = MessageId::from_slice(&message.id).unwrap();
            for agent in &got {
                let item = query::inbox::received(&core.memory, team, agent, id).unwrap();
                prop_assert_eq!(item.map(|item| item.message.seq), Some(seq));
            }
            let is_there = |agent: &&str| query::inbox::received(&core.memory, team, agent, id).unwrap().is_some();
            let others = AGENTS.iter().copied().filter(|agent| !once.contains(*agent));
            prop_assert_eq!(others.filter(is_there).count(), 0);
        }
        Ok(())
    }
}

/// Checks that the pages of an inbox agree with each other, and that it has the messages of each topic in order.
fn check_pages(memory: &Memory, team: &str) -> Result<(), TestCaseError> {
    for agent in AGENTS {
        let all = whole_inbox(memory, team, agent, None, Order::Ascending);
        let seqs: Vec<u64> = all.iter().map(|item| item.seq).collect();
        let reversed: Vec<u64> = whole_inbox(memory, team, agent, None, Order::Descending)
            .iter()
            .rev()
            .map(|item| item.seq)
            .collect();
        prop_assert_eq!(&reversed, &seqs);
        for state in [ReadState::Unread, ReadState::Read] {
            for item in whole_inbox(memory, team, agent, Some(state), Order::Ascending) {
                prop_assert_eq!(item.read_at_ms == 0, state == ReadState::Unread);
            }
        }
        let mut newest: BTreeMap<&str, u64> = BTreeMap::new();
        for item in &all {
            if item.message.topic.is_empty() {
                prop_assert_eq!(&item.message.to, agent);
                continue;
            }
            prop_assert!(item.message.to.is_empty() && item.message.from != agent);
            let before = newest.insert(&item.message.topic, item.message.seq);
            prop_assert!(before < Some(item.message.seq), "a topic's publishes keep their order");
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn counters_and_indexes_match_the_rows_after_any_history(steps in prop::collection::vec(step(), 0..240)) {
        let history = run(&log(&steps))?;
        for team in TEAMS {
            books::check(&history.memory, team_id(team))?;
            check_pages(&history.memory, team)?;
        }
        // The reply to an accepted send has the number of sends of the day, which must not exceed the limit.
        for (_, sent) in &history.accepted {
            prop_assert!(sent.sends_used <= DAILY_SENDS);
        }
    }

    #[test]
    fn every_publish_reaches_those_subscribed_at_it_once(steps in prop::collection::vec(step(), 0..240)) {
        let history = run(&finished_log(&steps))?;
        prop_assert_eq!(query::delivery::fanout_jobs(&history.memory).unwrap().len(), 0);
        for team in TEAMS {
            books::check(&history.memory, team_id(team))?;
            check_pages(&history.memory, team)?;
        }
    }

    #[test]
    fn no_daily_quota_is_ever_exceeded(steps in prop::collection::vec(step(), 0..240)) {
        let History { memory, accepted, .. } = run(&log(&steps))?;
        let mut per_day: BTreeMap<(u32, String, bytes::Bytes), BTreeSet<u64>> = BTreeMap::new();
        for (day, sent) in accepted {
            // The stored message names the sender. If the message is gone, the send cannot be attributed.
            for team in TEAMS {
                let id = MessageId::from_slice(&sent.message_id).unwrap();
                if let Some(message) = query::inbox::message(&memory, team_id(team), id).unwrap()
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
        let before = run(&log(&steps))?.memory;
        // No command with a key of acme may change a row of the team "other".
        let by_acme = random::Step { principal: Some(principal("acme", "boss")), ..probe };
        prop_assume!(!by_acme.act.is_internal());
        let mut all = steps.clone();
        all.push(by_acme);
        let after = run(&log(&all))?.memory;
        let rows = |memory: &Memory| -> Vec<_> {
            let other = team_id("other").0;
            memory.rows().filter(|(key, _)| key.windows(16).any(|w| w == other)).map(|(k, v)| (k.clone(), v.clone())).collect()
        };
        prop_assert_eq!(rows(&before), rows(&after));
    }
}

/// Repeated sends with one idempotency key and new message ids store one message.
#[test]
fn retries_under_one_key_make_one_message() {
    let mut log = log(&[]);
    for n in 0..20 {
        let mut op = send(&format!("retry{n}"), "alice", "bob");
        op.idempotency_key = "order-7".to_owned();
        let op = Op::Send(op);
        log.push(encode(2_000 + n, 1, 2_000 + n, Some(principal("acme", "w")), op));
    }
    let History { memory, accepted, .. } = run(&log).unwrap();
    assert_eq!(whole_inbox(&memory, "acme", "bob", None, Order::Ascending).len(), 1);
    assert_eq!(accepted.len(), 20);
    assert!(
        accepted
            .iter()
            .all(|(_, sent)| sent.message_id == message_id("retry0").to_bytes())
    );
    assert_eq!(
        query::key::by_hash(&memory, &key_hash("w")).unwrap().unwrap().id,
        id_of("w").to_vec()
    );
}
