//! The replicated state of the model: the real `apply` over maps in memory.
//!
//! Two measures keep the explored space small. States that agree in everything that decides the future of their
//! deliveries, with times relative to their cluster time, count as one; the first one represents them all. And the
//! effect of an entry on a state is computed once.

// The maps are only looked up by key, never iterated, so their order cannot matter.
#![allow(clippy::disallowed_types)]

use std::collections::HashMap;
use std::sync::Arc;

use agentpost_proto::api::abbababa::DeliveryFailed;
use agentpost_proto::command::operation::Op;
use agentpost_proto::command::{
    AttemptOutcome, AttemptRef, AttemptResult, BeginEpoch, Claim, Grant, Outcome, Permission, RegisterWebhook,
    Takeover, Tick, WebhookEvent, reply,
};
use agentpost_proto::limits;
use agentpost_proto::record::{
    Applied, AttemptEnd, Claimed, Delivery, DeliveryState, EndpointHead, InboxEntry, LogId, Message as Mail,
};
use agentpost_raft_store::core::apply::apply_command;
use agentpost_raft_store::core::keys;
use agentpost_raft_store::core::kv::{Kv, Lookup, Memory, Order};
use agentpost_raft_store::core::query::delivery as query;
use agentpost_raft_store::core::view::{self, HotCache, View};
use agentpost_testkit::commands::{bootstrap, create_key, create_team, encode, principal, send, team_id, unlimited};
use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use prost::Message as _;

use super::world::{Answer, Attempt, Entry, Weakness};
use crate::common::core::Core;

const TEAM: &str = "acme";
const SENDER: &str = "alice";
const RECEIVER: &str = "bob";
/// Longer than every delay.
const LONG_MS: u64 = 100_000;
const URL: &str = "https://bob.example/hook";

/// A state of the replicas, with the absolute times and log indexes of the path on which it was first reached.
#[derive(Clone)]
struct State {
    rows: Memory,
    index: u64,
    cluster_ms: u64,
    /// The log index of each `BeginEpoch` so far.
    epochs: Vec<u64>,
    deliveries: u64,
    broken: Vec<String>,
}

/// The part of a state that decides its future.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Summary {
    epochs: usize,
    deliveries: Vec<Standing>,
    broken: bool,
}

/// The part of a delivery that decides its future.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Standing {
    /// The delivery's state.
    pub state: DeliveryState,
    /// Its position in the retry schedule.
    pub step: u32,
    /// The number of the newest attempt.
    pub attempt_no: u8,
    /// How many attempts were closed as delivered, failed, unknown and not sent.
    pub closed: [u32; 4],
    /// The remaining delay, while it is scheduled.
    pub due_in_ms: u64,
    /// The claim, while it is claimed.
    pub claim: Option<Granted>,
}

impl Standing {
    /// Whether it has not ended.
    pub fn is_open(&self) -> bool {
        matches!(self.state, DeliveryState::Scheduled | DeliveryState::Claimed)
    }
}

/// A claim: its epoch, and when it may be taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Granted {
    /// The epoch, counted from 1.
    pub epoch: u8,
    /// The remaining time until it may be closed as unknown.
    pub late_in_ms: u64,
}

/// All states reached so far.
pub struct Replicas {
    weakness: Option<Weakness>,
    met: Mutex<Met>,
}

#[derive(Default)]
struct Met {
    states: Vec<(State, Arc<[Standing]>)>,
    by_summary: HashMap<Summary, u32>,
    applied: HashMap<(u32, Entry, u64), (u32, bool)>,
}

impl Replicas {
    /// The initial state: a team whose webhook has deliveries, all due, and the first epoch.
    pub fn new(failed_before: &[u8], weakness: Option<Weakness>) -> Self {
        let replicas = Replicas {
            weakness,
            met: Mutex::default(),
        };
        let first = first_state(failed_before);
        replicas.met().intern(first);
        replicas
    }

    /// Applies an entry, `elapsed_ms` of cluster time after the last one. Returns the new state and whether the entry
    /// was accepted.
    pub fn apply(&self, state: u32, entry: Entry, elapsed_ms: u64) -> (u32, bool) {
        let met = &mut *self.met();
        if let Some(known) = met.applied.get(&(state, entry, elapsed_ms)) {
            return *known;
        }
        let mut next = met.states[state as usize].0.clone();
        if let Some(weakness) = self.weakness {
            next.weaken(weakness, entry);
        }
        let done = next.apply(weakened(self.weakness, entry, &next), elapsed_ms);
        if let (Some(Weakness::NumbersReused), Entry::Takeover { of, .. }, true) = (self.weakness, entry, done) {
            next.rewrite(of, |d| {
                d.attempt_no -= 1;
                d.closed_unknown -= 1;
                d.attempts.pop();
            });
        }
        next.broken = next.check();
        let result = (met.intern(next), done);
        met.applied.insert((state, entry, elapsed_ms), result);
        result
    }

    /// The deliveries of a state.
    pub fn standings(&self, state: u32) -> Arc<[Standing]> {
        self.met().states[state as usize].1.clone()
    }

    /// The invariants that a state violates.
    pub fn broken(&self, state: u32) -> Vec<String> {
        self.met().states[state as usize].0.broken.clone()
    }

    /// How many different states were reached, and how many entries were applied.
    pub fn figures(&self) -> (usize, usize) {
        let met = self.met();
        (met.states.len(), met.applied.len())
    }

    fn met(&self) -> MutexGuard<'_, Met> {
        self.met.lock()
    }
}

impl Met {
    fn intern(&mut self, state: State) -> u32 {
        let deliveries = state.standings();
        let summary = Summary {
            epochs: state.epochs.len(),
            deliveries: deliveries.clone(),
            broken: !state.broken.is_empty(),
        };
        let next = self.states.len() as u32;
        let id = *self.by_summary.entry(summary).or_insert(next);
        if id == next {
            self.states.push((state, deliveries.into()));
        }
        id
    }
}

fn first_state(failed_before: &[u8]) -> State {
    let mut core = Core {
        wall_ms: 1_000,
        ..Core::default()
    };
    core.apply(None, Op::BeginEpoch(BeginEpoch { node: 0, term: 1 }));
    core.epoch = core.index;
    core.apply(None, bootstrap("root"));
    core.apply(Some(principal("system", "root")), create_team(TEAM, Some(unlimited())));
    let key = create_key(TEAM, "w", Permission::Write, "");
    core.apply(Some(principal("system", "root")), Op::CreateKey(key));
    let webhook = RegisterWebhook {
        agent: RECEIVER.to_owned(),
        webhook_id: Bytes::from_static(b"webhook-of-bob.."),
        url: URL.to_owned(),
        events: vec![WebhookEvent::MessageReceived as i32],
    };
    core.apply(Some(principal(TEAM, "w")), Op::RegisterWebhook(webhook));
    for n in 1..=failed_before.len() {
        let mail = send(&format!("m{n}"), SENDER, RECEIVER);
        core.apply(Some(principal(TEAM, "w")), Op::Send(mail));
    }
    let mut state = State {
        index: core.index,
        cluster_ms: core.cluster_ms,
        epochs: vec![core.epoch],
        deliveries: failed_before.len() as u64,
        broken: Vec::new(),
        rows: core.memory,
    };
    for (delivery, failures) in (1..).zip(failed_before.iter().copied()) {
        for no in 1..=failures {
            let attempt = Attempt { epoch: 1, delivery, no };
            let claim = Entry::Claim { of: attempt, node: 0 };
            assert!(state.apply(claim, LONG_MS));
            assert!(state.apply(Entry::Outcome(attempt, Answer::Failed), 0));
        }
    }
    state.apply(Entry::Tick, LONG_MS);
    state.broken = state.check();
    state
}

impl State {
    fn apply(&mut self, entry: Entry, elapsed_ms: u64) -> bool {
        self.index += 1;
        let term = self.epochs.len() as u64 + u64::from(matches!(entry, Entry::Begin { .. }));
        let command = encode(
            1_000,
            self.epoch(0),
            self.cluster_ms + elapsed_ms,
            None,
            self.op(entry, term),
        );
        let (node, index) = (0, self.index);
        let mut cache = HotCache::default();
        let mut view = View::new(&self.rows, &mut cache).unwrap();
        let reply = apply_command(&mut view, &LogId { term, node, index }, &command, &mut Vec::new()).unwrap();
        let writes = view.into_writes();
        self.rows.write(writes);
        let applied: Applied = view::load(&self.rows, &keys::applied()).unwrap().unwrap();
        self.cluster_ms = applied.cluster_ms;
        match (entry, reply.reply) {
            (Entry::Begin { .. }, Some(reply::Reply::Done(_))) => {
                self.epochs.push(self.index);
                true
            }
            (_, Some(reply::Reply::Attempts(reply))) => reply.done == [true],
            (Entry::Tick, Some(reply::Reply::Done(_))) => true,
            (_, Some(reply::Reply::Rejection(_))) => false,
            (entry, reply) => panic!("{entry:?} was answered {reply:?}"),
        }
    }

    /// The log index of an epoch, counted from 1. 0 means the newest.
    fn epoch(&self, ordinal: u8) -> u64 {
        match ordinal {
            0 => *self.epochs.last().unwrap(),
            n => self.epochs[usize::from(n) - 1],
        }
    }

    fn op(&self, entry: Entry, term: u64) -> Op {
        let attempt = |a: Attempt| AttemptRef {
            team_id: team_id(TEAM).to_bytes(),
            number: u64::from(a.delivery),
            attempt_no: u32::from(a.no),
        };
        match entry {
            Entry::Begin { node } => Op::BeginEpoch(BeginEpoch {
                node: u64::from(node),
                term,
            }),
            Entry::Tick => Op::Tick(Tick {}),
            Entry::Claim { of, node } => Op::Claim(Claim {
                epoch: self.epoch(of.epoch),
                grants: vec![Grant {
                    attempt: Some(attempt(of)),
                    node: u64::from(node),
                }],
            }),
            Entry::Takeover { epoch, of } => Op::Takeover(Takeover {
                epoch: self.epoch(epoch),
                attempts: vec![attempt(of)],
            }),
            Entry::Outcome(a, answer) => {
                let result = AttemptResult {
                    not_sent: answer == Answer::NotSent,
                    status: match answer {
                        Answer::Ok => 200,
                        Answer::Failed => 500,
                        Answer::NotSent => 0,
                    },
                    ..AttemptResult::default()
                };
                Op::Outcome(Outcome {
                    outcomes: vec![AttemptOutcome {
                        attempt: Some(attempt(a)),
                        epoch: self.epoch(a.epoch),
                        result: Some(result),
                    }],
                })
            }
        }
    }

    fn deliveries(&self) -> Vec<Delivery> {
        let numbers = 1..=self.deliveries;
        numbers
            .map(|n| query::by_number(&self.rows, team_id(TEAM), n).unwrap().unwrap())
            .collect()
    }

    fn standings(&self) -> Vec<Standing> {
        let standing = |d: Delivery| Standing {
            state: d.state(),
            step: d.step,
            attempt_no: d.attempt_no as u8,
            closed: [d.closed_delivered, d.closed_failed, d.closed_unknown, d.closed_not_sent],
            due_in_ms: d.due_ms.saturating_sub(self.cluster_ms),
            claim: d.claim.map(|claim| Granted {
                epoch: 1 + self.epochs.iter().position(|e| *e == claim.epoch).unwrap() as u8,
                late_in_ms: (claim.ct_ms + limits::TAKEOVER_AFTER_MS).saturating_sub(self.cluster_ms),
            }),
        };
        // After the end nothing before it matters.
        let over = |d: &Delivery| !matches!(d.state(), DeliveryState::Scheduled | DeliveryState::Claimed);
        let ended = |d: Delivery| Standing {
            step: 0,
            attempt_no: 0,
            closed: [0; 4],
            ..standing(d)
        };
        let deliveries = self.deliveries().into_iter();
        deliveries
            .map(|d| if over(&d) { ended(d) } else { standing(d) })
            .collect()
    }
}

/// Weakens rules of `apply` by changing the command.
fn weakened(weakness: Option<Weakness>, entry: Entry, state: &State) -> Entry {
    match (weakness, entry) {
        (Some(Weakness::ClaimsOfOldEpochs), Entry::Claim { of, node }) => Entry::Claim {
            of: Attempt { epoch: 0, ..of },
            node,
        },
        (Some(Weakness::OutcomesOfAnyNumber), Entry::Outcome(a, answer)) => {
            let now = &state.standings()[usize::from(a.delivery) - 1];
            let epoch = now.claim.map_or(a.epoch, |claim| claim.epoch);
            let no = now.attempt_no;
            Entry::Outcome(Attempt { epoch, no, ..a }, answer)
        }
        _ => entry,
    }
}

impl State {
    /// Weakens rules of `apply` by changing the rows.
    fn weaken(&mut self, weakness: Weakness, entry: Entry) {
        match (weakness, entry) {
            (Weakness::EarlyTakeover, Entry::Takeover { of, .. }) => self.rewrite(of, |d| {
                if let Some(claim) = &mut d.claim {
                    claim.ct_ms = 0;
                }
            }),
            (Weakness::OutcomesAfterTheEnd, Entry::Outcome(of, _)) => {
                let epoch = self.epoch(of.epoch);
                self.rewrite(of, |d| {
                    if d.attempt_no == u32::from(of.no) {
                        d.set_state(DeliveryState::Claimed);
                        d.claim = Some(Claimed {
                            epoch,
                            ..Claimed::default()
                        });
                    }
                });
            }
            _ => {}
        }
    }

    fn rewrite(&mut self, of: Attempt, change: impl FnOnce(&mut Delivery)) {
        let mut delivery = self.deliveries()[usize::from(of.delivery) - 1].clone();
        change(&mut delivery);
        let key = keys::delivery(team_id(TEAM), u64::from(of.delivery));
        self.rows
            .write(vec![(key, Some(Bytes::from(delivery.encode_to_vec())))]);
    }

    /// Checks D3, D4, D5, D7 and the indexes in the rows alone.
    fn check(&self) -> Vec<String> {
        let mut broken = Vec::new();
        for delivery in self.deliveries() {
            check_attempts(&delivery, &mut broken);
            self.check_indexes(&delivery, &mut broken);
            self.check_notices(&delivery, &mut broken);
        }
        broken
    }

    fn check_indexes(&self, delivery: &Delivery, broken: &mut Vec<String>) {
        let (team, rows) = (team_id(TEAM), &self.rows);
        let (number, generation) = (delivery.number, delivery.generation);
        let found: Vec<Bytes> = rows.rows().map(|(key, _)| key.clone()).collect();
        let count = |tag: &[u8], parsed: &dyn Fn(&[u8]) -> Option<u64>| {
            let of_tag = found.iter().filter(|key| key.starts_with(tag));
            of_tag.filter(|key| parsed(key) == Some(number)).count()
        };
        let du = count(b"du", &|key| keys::parse_due(key).map(|(_, n)| n));
        let claims = query::claims(rows).unwrap();
        let cl = claims.iter().filter(|(_, _, n)| *n == number).count();
        let dx = count(b"dx", &|key| keys::parse_message_expiry(key).map(|(_, n)| n));
        let expected = match delivery.state() {
            DeliveryState::Scheduled => (1, 0, 0),
            DeliveryState::Claimed => (0, 1, 0),
            _ => (0, 0, 1),
        };
        if (du, cl, dx) != expected {
            broken.push(format!(
                "D10: {:?} with du, cl, dx = {:?}",
                delivery.state(),
                (du, cl, dx)
            ));
        }
        let first = rows
            .range(keys::due_from(team, generation, 0, 0), Order::Ascending)
            .next();
        let first = first.and_then(|row| keys::parse_due(&row.unwrap().0));
        let head: Option<EndpointHead> = view::load(rows, &keys::endpoint_head(team, generation)).unwrap();
        if head.map(|head| (head.due_ms, head.number)) != first {
            broken.push(format!(
                "D10: the endpoint's head is {head:?}, its first due is {first:?}"
            ));
        }
    }

    fn check_notices(&self, delivery: &Delivery, broken: &mut Vec<String>) {
        let team = team_id(TEAM);
        let dead = delivery.state() == DeliveryState::Dead;
        let letter = self.rows.get(&keys::dead_letter(team, delivery.number)).unwrap();
        let inbox = keys::inbox_from(keys::ReadState::Unread, team, SENDER, 0);
        let id = hex_id(delivery);
        let notices = self.rows.range(inbox, Order::Ascending).filter(|row| {
            let entry = InboxEntry::decode(row.as_ref().unwrap().1.clone()).unwrap();
            let mail: Mail = view::load(&self.rows, &keys::message(team, entry.message_seq))
                .unwrap()
                .unwrap();
            mail.r#type == DeliveryFailed::TYPE && String::from_utf8_lossy(&mail.body).contains(&id)
        });
        let notices = notices.count();
        if letter.is_some() != dead || notices != usize::from(dead) {
            broken.push(format!(
                "D7: {:?} with a dead letter: {}, and {notices} notices",
                delivery.state(),
                letter.is_some()
            ));
        }
    }
}

fn hex_id(delivery: &Delivery) -> String {
    agentpost_proto::id::DeliveryId::from_slice(&delivery.id)
        .unwrap()
        .to_string()
}

fn check_attempts(delivery: &Delivery, broken: &mut Vec<String>) {
    let claimed = u32::from(delivery.state() == DeliveryState::Claimed);
    let closed =
        delivery.closed_delivered + delivery.closed_failed + delivery.closed_unknown + delivery.closed_not_sent;
    if closed + claimed != delivery.attempt_no {
        broken.push(format!("D3: {closed} closed of {}", delivery.attempt_no));
    }
    let numbers: Vec<u32> = delivery.attempts.iter().map(|a| a.attempt_no).collect();
    if !numbers.is_sorted_by(|a, b| a < b) {
        broken.push(format!("D4: the closed numbers are {numbers:?}"));
    }
    let failed = delivery.attempts.iter().filter(|a| a.end() == AttemptEnd::Failed);
    let failed: Vec<u32> = failed.map(|a| a.step).collect();
    if !failed.iter().copied().eq(0..failed.len() as u32) || failed.len() as u32 != delivery.closed_failed {
        broken.push(format!("D5: the failed steps are {failed:?}"));
    }
    let ladder = limits::RETRY_DELAYS_MS.len() as u32;
    if delivery.step != delivery.closed_failed.min(ladder) {
        broken.push(format!("D5: step {} after {failed:?}", delivery.step));
    }
    let over = delivery.closed_delivered > 0;
    if over != (delivery.state() == DeliveryState::Delivered) || delivery.closed_delivered > 1 {
        broken.push(format!(
            "D7: {:?} with {} successes",
            delivery.state(),
            delivery.closed_delivered
        ));
    }
}
