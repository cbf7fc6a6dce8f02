//! The final state of webhook deliveries: the calls that the receiver got, the deliveries as the operator sees them,
//! the senders' failure notices, and the webhooks that were deleted.
//!
//! `calls.jsonl` has one line for each call, written before the call is answered. `deliveries.jsonl` has one
//! [`DeliveryRecord`] per line. Several teams may write to them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use agentpost::api::abbababa::{Delivery, DeliveryDetail};
use anyhow::{Context as _, Result, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::record::faults::{Fault, FaultState};

pub const CALLS: &str = "calls.jsonl";
pub const DELIVERIES: &str = "deliveries.jsonl";
/// The crash points of the dispatcher, at which the leader dies in scenario X1: each with the total number of calls and
/// the final number of unknown attempts of its one delivery. The agent of a delivery is named after the crash point.
pub const CRASH_POINTS: [(&str, usize, usize); 6] = [
    ("before-claim", 1, 0),
    ("claim-committed", 1, 1),
    ("before-call", 1, 1),
    ("after-call", 2, 1),
    ("before-outcome", 2, 1),
    ("outcome-committed", 1, 0),
];
/// The prefix of the path of a webhook whose server asks to be called later.
pub const LATER_PREFIX: &str = "/later";

/// A webhook call as the receiver got it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceivedCall {
    /// The id of the delivery, from `idempotency-key`.
    pub delivery: String,
    /// Whether `webhook-id` and `upstash-message-id` are the same id.
    pub one_id: bool,
    /// The header `x-attempt`.
    pub attempt: u32,
    /// The header `x-retry-step`.
    pub step: u32,
    /// The header `x-dispatch-epoch`.
    pub epoch: u64,
    /// Whether the call carries `x-redelivery: possible`.
    pub redelivery: bool,
    /// The path of the webhook.
    pub path: String,
    /// When the call arrived, microseconds since the start of the run.
    pub at_us: u64,
}

/// A failure notice in the inbox of a sender.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// The agent that received the notice.
    pub to: String,
    /// The id of the delivery that failed.
    pub delivery: String,
    /// The number of attempts that the notice reports.
    pub attempts: u32,
}

/// The deletion of a webhook by its owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deletion {
    /// The path of the webhook at the receiver.
    pub path: String,
    /// When the deletion was acknowledged, microseconds since the start of the run.
    pub at_us: u64,
}

/// An agent whose webhook existed from before the first message to the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agent {
    pub id: String,
    /// Whether its server answers at once, so that only other agents' servers could delay a call to it.
    pub prompt: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryRecord {
    /// The final state of a delivery.
    Delivery(Box<DeliveryDetail>),
    /// The id of a delivery in the list of dead letters.
    DeadLetter(String),
    /// A failure notice.
    Notice(Notice),
    /// A webhook that was deleted.
    Deletion(Deletion),
    /// An agent for which every message had to be delivered.
    Agent(Agent),
}

/// The faults of a run as far as they excuse irregular deliveries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Disruptions {
    /// Upper bound on the number of nodes that were lost, and of leaders that were replaced without a hand-over; `None`
    /// if there is no bound.
    pub node_losses: Option<u32>,
    /// The number of processes that were stopped for a while.
    pub pauses: u32,
}

impl Disruptions {
    /// Derives the bounds from the faults and from the number of leader changes that were observed.
    pub fn of(faults: &[Fault], leader_changes: u64) -> Self {
        let mut handed_over = 0;
        let mut disruptions = Disruptions {
            node_losses: Some(0),
            pauses: 0,
        };
        for fault in faults.iter().filter(|fault| fault.state != FaultState::Skipped) {
            let nodes = fault.nodes.len() as u32;
            match fault.kind.as_str() {
                "transfer" => handed_over += 1,
                "kill" | "failpoint" | "power" | "restart" => {
                    disruptions.node_losses = disruptions.node_losses.map(|n| n + nodes)
                }
                "pause" => {
                    disruptions.node_losses = disruptions.node_losses.map(|n| n + nodes);
                    disruptions.pauses += 1;
                }
                // A bad network or disk can cost any number of leaders and calls of other nodes.
                _ => disruptions.node_losses = None,
            }
        }
        let lost = leader_changes.saturating_sub(handed_over) as u32;
        disruptions.node_losses = disruptions.node_losses.map(|n| n.max(lost));
        disruptions
    }

    /// Whether no node was lost.
    pub fn is_clean(&self) -> bool {
        self.node_losses == Some(0)
    }
}

/// Everything that the checkers of the dispatcher need.
#[derive(Debug, Clone, Default)]
pub struct DeliveryEvidence {
    /// Sorted by arrival.
    pub calls: Vec<ReceivedCall>,
    /// By delivery id.
    pub deliveries: BTreeMap<String, DeliveryDetail>,
    /// Delivery ids in the list of dead letters.
    pub dead: Vec<String>,
    /// The failure notices of all senders.
    pub notices: Vec<Notice>,
    /// In no particular order.
    pub deletions: Vec<Deletion>,
    /// The agents for which every message had to be delivered.
    pub agents: Vec<Agent>,
    pub disruptions: Disruptions,
}

impl DeliveryEvidence {
    /// Reads the records of a run; they are empty if the run had no webhooks.
    pub fn load(dir: &Path, faults: &[Fault], leader_changes: u64) -> Result<Self> {
        let mut evidence = DeliveryEvidence {
            calls: read_lines(&dir.join(CALLS))?,
            disruptions: Disruptions::of(faults, leader_changes),
            ..DeliveryEvidence::default()
        };
        for record in read_lines(&dir.join(DELIVERIES))? {
            match record {
                DeliveryRecord::Delivery(delivery) => {
                    let twice = evidence.deliveries.insert(delivery.id.clone(), *delivery);
                    ensure!(twice.is_none(), "a delivery is listed twice: {twice:?}");
                }
                DeliveryRecord::Agent(agent) => evidence.agents.push(agent),
                DeliveryRecord::DeadLetter(id) => evidence.dead.push(id),
                DeliveryRecord::Notice(notice) => evidence.notices.push(notice),
                DeliveryRecord::Deletion(deletion) => evidence.deletions.push(deletion),
            }
        }
        evidence.calls.sort_by_key(|call| call.at_us);
        Ok(evidence)
    }

    /// The calls of each delivery, sorted by attempt.
    pub fn by_delivery(&self) -> BTreeMap<&str, Vec<&ReceivedCall>> {
        let mut calls: BTreeMap<&str, Vec<&ReceivedCall>> = BTreeMap::new();
        for call in &self.calls {
            calls.entry(&call.delivery).or_default().push(call);
        }
        for calls in calls.values_mut() {
            calls.sort_by_key(|call| (call.attempt, call.at_us));
        }
        calls
    }
}

/// The number of attempts of a delivery that ended with `end`.
pub fn ended(delivery: &DeliveryDetail, end: &str) -> usize {
    delivery.attempts.iter().filter(|attempt| attempt.end == end).count()
}

/// Whether a delivery has reached a final state.
pub fn is_over<A>(delivery: &Delivery<A>) -> bool {
    !matches!(delivery.state.as_str(), "scheduled" | "claimed")
}

/// Reads a file of JSON lines; a missing file counts as empty.
fn read_lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot open {}", path.display())),
    };
    let mut lines = Vec::new();
    for (number, line) in (1..).zip(BufReader::new(file).lines()) {
        let line = serde_json::from_str(&line?);
        lines.push(line.with_context(|| format!("{} line {number}", path.display()))?);
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disruptions(faults: &[(&str, FaultState)]) -> Disruptions {
        let fault = |(kind, state): &(&str, FaultState)| Fault {
            kind: (*kind).to_owned(),
            nodes: vec![1],
            note: String::new(),
            cut_links: Vec::new(),
            members: None,
            began: 0,
            ended: 1,
            state: *state,
        };
        Disruptions::of(&faults.iter().map(fault).collect::<Vec<_>>(), 1)
    }

    #[test]
    fn lost_leaders_are_bounded_unless_the_network_or_a_disk_was_bad() {
        let installed = |kind: &'static str| (kind, FaultState::Installed);
        assert!(disruptions(&[installed("transfer")]).is_clean());
        assert_eq!(
            disruptions(&[]).node_losses,
            Some(1),
            "a leader was lost without a fault"
        );
        assert!(disruptions(&[("kill", FaultState::Skipped), installed("transfer")]).is_clean());
        let counted = disruptions(&[
            installed("kill"),
            installed("pause"),
            ("failpoint", FaultState::Indeterminate),
        ]);
        assert_eq!((counted.node_losses, counted.pauses), (Some(3), 1));
        assert_eq!(
            disruptions(&[installed("kill"), installed("partition")]).node_losses,
            None
        );
    }
}
