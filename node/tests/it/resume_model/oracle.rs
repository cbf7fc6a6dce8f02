//! The oracle: it derives from the steps, not from the code under test, what each session must see.

use std::collections::{BTreeMap, BTreeSet};

use agentpost_node::server::ws::resume::{CursorName, Start};
use agentpost_proto::command::CursorAck;
use agentpost_proto::limits;
use agentpost_proto::record::Cursor;
use agentpost_raft_store::core::keys::{self, ReadState};
use agentpost_raft_store::core::kv::{Lookup as _, Memory};
use agentpost_raft_store::core::query;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::cluster::team;
use super::steps::{AGENTS, CURSORS_LEFT, SENDERS, Sees, Subscription};

type Checked = Result<(), TestCaseError>;

/// A message that was accepted.
#[derive(Debug)]
pub struct Sent {
    pub seq: u64,
    pub from: &'static str,
    /// The receiver in the wide form.
    pub to: String,
    pub receivers: BTreeSet<&'static str>,
    pub id: String,
}

/// What the clients of one cursor have received together.
#[derive(Debug, Default)]
pub struct Known {
    /// The seq at which the cursor began.
    pub origin: u64,
    /// Events that a client has read or acknowledged.
    pub seen: BTreeSet<u64>,
    /// The seq up to which a client was told of losses.
    pub told: u64,
    /// The highest acknowledgement in the log.
    floor: u64,
    /// Acknowledgements that a node has accepted since it started.
    heard: BTreeMap<usize, u64>,
    row: Option<Cursor>,
    /// Cluster time of the last acknowledgement in the log, explicit or implied.
    used_ms: u64,
}

#[derive(Default)]
pub struct Oracle {
    pub sent: Vec<Sent>,
    pub subscribed: BTreeSet<&'static str>,
    /// The length of the log when an inbox lost an entry (`gone_from`), or the team lost a message (`gone`).
    gone_from: BTreeMap<(&'static str, u64), usize>,
    gone: BTreeMap<u64, usize>,
    pub cursors: BTreeMap<CursorName, (Sees, Known)>,
}

impl Oracle {
    /// The form in which a subscription shows a message after this many log entries; `None` if it is gone or not
    /// visible.
    pub fn shown(&self, sees: &Sees, sent: &Sent, log: usize) -> Option<String> {
        if is_from(sees, sent) {
            return is_left(self.gone.get(&sent.seq), log).then(|| sent.to.clone());
        }
        let left = |agent: &&&'static str| {
            sent.receivers.contains(**agent) && is_left(self.gone_from.get(&(**agent, sent.seq)), log)
        };
        let receivers: Vec<_> = sees.inboxes.iter().filter(left).collect();
        match receivers.as_slice() {
            [] => None,
            [agent] => Some((**agent).to_owned()),
            _ => Some(sent.to.clone()),
        }
    }

    /// The messages of a range that a subscription shows, including those that are gone.
    pub fn between(&self, sees: Sees, after: u64, until: u64) -> impl Iterator<Item = &Sent> {
        let from = self.sent.partition_point(|sent| sent.seq <= after);
        self.sent[from..]
            .iter()
            .take_while(move |sent| sent.seq <= until)
            .filter(move |sent| is_from(&sees, sent) || sees.inboxes.iter().any(|agent| sent.receivers.contains(agent)))
    }

    /// Asserts each field of the event of a message.
    pub fn check_event(&self, sees: &Sees, seq: u64, frame: &serde_json::Value, log: usize) -> Checked {
        let sent = self.sent.iter().find(|sent| sent.seq == seq);
        prop_assert!(sent.is_some(), "{seq} was never sent");
        let sent = sent.unwrap();
        let data = &frame["event"]["data"];
        prop_assert_eq!(frame["event"]["kiteseq"].as_u64(), Some(seq));
        prop_assert_eq!(data["body"].as_str(), Some(sent.id.as_str()));
        prop_assert_eq!(data["from"].as_str(), Some(sent.from));
        let shown = self.shown(sees, sent, log);
        prop_assert!(shown.is_some(), "{seq} is not for {sees:?}, or gone");
        prop_assert_eq!(data["to"].as_str(), shown.as_deref());
        Ok(())
    }

    /// Asserts that every message up to `until` was shown, or is gone and was told as lost.
    pub fn check_nothing_missing(
        &self,
        sees: Sees,
        (after, until): (u64, u64),
        has: impl Fn(u64) -> bool,
        told: u64,
        log: usize,
    ) -> Checked {
        for sent in self.between(sees, after, until) {
            let lost = sent.seq <= told && self.shown(&sees, sent, log).is_none();
            prop_assert!(has(sent.seq) || lost, "{} is missing in ({after}, {until}]", sent.seq);
        }
        Ok(())
    }

    /// Records what the newest log entry removed.
    pub fn note_removals(&mut self, memory: &Memory, log: usize) {
        for sent in &self.sent {
            let exists = |key: &[u8]| memory.get(key).unwrap().is_some();
            if !exists(&keys::message(team(), sent.seq)) {
                self.gone.entry(sent.seq).or_insert(log);
            }
            for agent in &sent.receivers {
                let entry = |state| exists(&keys::inbox_entry(state, team(), agent, sent.seq));
                if !entry(ReadState::Unread) && !entry(ReadState::Read) {
                    self.gone_from.entry((agent, sent.seq)).or_insert(log);
                }
            }
        }
    }

    /// What the clients of a cursor have received.
    pub fn known(&mut self, name: &CursorName, sees: Sees) -> &mut Known {
        &mut self.cursors.entry(name.clone()).or_insert((sees, Known::default())).1
    }

    /// A session begins; `head` is the newest seq that its node has seen.
    pub fn check_start(
        &mut self,
        (node, subscription): (usize, &Subscription),
        cursor: Option<&CursorName>,
        start: &Start,
        head: u64,
    ) -> Checked {
        let Some(name) = cursor else {
            prop_assert_eq!(start.after_seq, head, "live only");
            return Ok(());
        };
        let is_mailbox = subscription.client_id.is_none();
        let known = self.known(name, subscription.sees);
        prop_assert!(start.after_seq <= head);
        prop_assert!(start.after_seq >= known.floor, "stored acks count on every node");
        let heard = known.heard.get(&node).copied().unwrap_or_default();
        prop_assert!(start.after_seq >= heard, "acks that this node took in count here");
        prop_assert_eq!(start.create, !is_mailbox && known.row.is_none());
        match known.row {
            Some(row) => prop_assert_eq!(start.after_seq, row.seq),
            None if is_mailbox => prop_assert_eq!(start.after_seq, 0, "the oldest mail"),
            None => {
                known.origin = start.after_seq;
                if subscription.scopes != ["agent_to:a"] {
                    prop_assert_eq!(start.after_seq, head, "now");
                }
            }
        }
        Ok(())
    }

    /// Asserts that a refused client has a new name and that the team has all its cursors.
    pub fn check_refusal(&self, cursor: Option<&CursorName>) -> Checked {
        let exists = |name: &CursorName| self.cursors.get(name).is_some_and(|(_, known)| known.row.is_some());
        prop_assert!(cursor.is_some_and(|name| !name.client_id.is_empty() && !exists(name)));
        prop_assert_eq!(self.named(), CURSORS_LEFT as usize);
        Ok(())
    }

    fn named(&self) -> usize {
        let named =
            |(name, (_, known)): &(&CursorName, &(Sees, Known))| !name.client_id.is_empty() && known.row.is_some();
        self.cursors.iter().filter(named).count()
    }

    /// A node accepted an acknowledgement.
    pub fn heard(&mut self, name: &CursorName, node: usize, seq: u64) {
        if let Some((_, known)) = self.cursors.get_mut(name) {
            let heard = known.heard.entry(node).or_default();
            *heard = seq.max(*heard);
        }
    }

    /// Asserts that accepted acknowledgements are in the log once none waits on the node.
    pub fn check_heard(&self, node: usize) -> Checked {
        for (name, (_, known)) in &self.cursors {
            let heard = known.heard.get(&node).copied().unwrap_or_default();
            prop_assert!(known.row.map_or(0, |row| row.seq) >= heard, "{name:?} lost an ack");
        }
        Ok(())
    }

    /// A node died; its acknowledgements that were not stored are lost.
    pub fn forget_heard(&mut self, node: usize) {
        for (_, known) in self.cursors.values_mut() {
            known.heard.remove(&node);
        }
    }

    /// Checks the state after a log entry with these acknowledgements: no cursor went back, none passed an event that
    /// its clients do not have, and none was forgotten while it was in use.
    pub fn check_cursors(
        &mut self,
        memory: &Memory,
        acks: &[CursorAck],
        cluster_ms: u64,
        log: usize,
        is_open: impl Fn(&CursorName) -> bool,
    ) -> Checked {
        let mut cursors = std::mem::take(&mut self.cursors);
        let head = query::team::head(memory, team()).unwrap().last_seq;
        for (name, (sees, known)) in &mut cursors {
            let ack = acks
                .iter()
                .find(|ack| (&ack.agent, &ack.client_id) == (&name.agent, &name.client_id));
            let row = query::inbox::cursor(memory, name.team, &name.agent, &name.client_id).unwrap();
            if let Some(ack) = ack {
                known.used_ms = cluster_ms;
                known.floor = known.floor.max(if ack.implied { 0 } else { ack.seq.min(head) });
            }
            match (known.row, row) {
                (Some(_), None) => {
                    let unused_ms = cluster_ms - known.used_ms + limits::CURSOR_TOUCH_MS;
                    prop_assert!(unused_ms >= limits::CURSOR_TTL_MS, "{name:?} was forgotten too early");
                    // A mailbox without a cursor begins at its oldest message, which is younger than any forgotten
                    // cursor.
                    let is_named = !name.client_id.is_empty();
                    prop_assert!(
                        !(is_named && is_open(name)),
                        "{name:?} was forgotten under an open session"
                    );
                    (known.floor, known.heard) = (0, BTreeMap::new());
                }
                (before, Some(row)) => {
                    let before = before.unwrap_or_default();
                    prop_assert!(row.seq >= before.seq, "{name:?} went back");
                    prop_assert!(row.acked || !before.acked, "{name:?} forgot its acks");
                    prop_assert!(row.seq >= known.floor);
                    let by_right = |ack: &&CursorAck| ack.seq >= row.seq && !(ack.implied && before.acked);
                    prop_assert!(
                        row.seq == before.seq || ack.filter(by_right).is_some(),
                        "{name:?} moved by itself"
                    );
                    let span = (known.origin, row.seq);
                    self.check_nothing_missing(*sees, span, |seq| known.seen.contains(&seq), known.told, log)?;
                }
                (None, None) => {}
            }
            known.row = row;
        }
        self.cursors = cursors;
        prop_assert!(self.named() <= CURSORS_LEFT as usize, "a cursor too many");
        Ok(())
    }
}

fn is_from(sees: &Sees, sent: &Sent) -> bool {
    sees.from.is_some_and(|from| from.is_empty() || from == sent.from)
}

fn is_left(gone: Option<&usize>, log: usize) -> bool {
    gone.is_none_or(|gone| *gone > log)
}

pub fn agent(n: usize) -> &'static str {
    AGENTS[n % AGENTS.len()]
}

pub fn sender(n: usize) -> &'static str {
    SENDERS[n % SENDERS.len()]
}
