//! The final state of webhook deliveries: the calls that the receiver got, the deliveries as the operator sees them,
//! the senders' failure notices, and the webhooks that were deleted.
//!
//! `calls.jsonl` has one line for each call, written before the call is answered. `deliveries.jsonl` has one
//! [`Record`] per line. Several teams may write to them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead as _, BufReader, BufWriter, Write as _};
use std::path::Path;

use agentpost::api::abbababa::{Delivery, DeliveryDetail, DeliveryFailed, DeliveryRow};
use agentpost::{Client, Consistency, DeliveryQuery, ListQuery};
use anyhow::{Context, Result, ensure};
use futures::stream::{StreamExt as _, TryStreamExt as _};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::faults::{Fault, State};
use crate::receiver::Call;
use crate::world::{Team, World};

pub const CALLS: &str = "calls.jsonl";
pub const DELIVERIES: &str = "deliveries.jsonl";
/// Requests that are made concurrently.
const QUESTIONS: usize = 16;

/// A webhook call as the receiver got it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The id of the delivery, from `idempotency-key`.
    pub delivery: String,
    /// Whether `webhook-id` and `upstash-message-id` are the same id.
    pub one_id: bool,
    /// From `x-attempt`.
    pub attempt: u32,
    /// From `x-retry-step`.
    pub step: u32,
    /// From `x-dispatch-epoch`.
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
pub enum Record {
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
pub struct Unrest {
    /// Upper bound on the number of leaders that were lost without a hand-over; `None` if there is no bound.
    pub unclean: Option<u32>,
    /// The number of processes that were stopped for a while.
    pub stops: u32,
}

impl Unrest {
    /// Derives the bounds from the faults and from the number of leader changes that were observed.
    pub fn of(faults: &[Fault], leader_changes: u64) -> Self {
        let mut handed_over = 0;
        let mut unrest = Unrest {
            unclean: Some(0),
            stops: 0,
        };
        for fault in faults.iter().filter(|fault| fault.state != State::Skipped) {
            let nodes = fault.nodes.len() as u32;
            match fault.kind.as_str() {
                "transfer" => handed_over += 1,
                "kill" | "failpoint" | "power" | "restart" => unrest.unclean = unrest.unclean.map(|n| n + nodes),
                "pause" => {
                    unrest.unclean = unrest.unclean.map(|n| n + nodes);
                    unrest.stops += 1;
                }
                // A bad network or disk can cost any number of leaders.
                _ => unrest.unclean = None,
            }
        }
        let lost = leader_changes.saturating_sub(handed_over) as u32;
        unrest.unclean = unrest.unclean.map(|n| n.max(lost));
        unrest
    }

    /// Whether no leader was lost.
    pub fn is_clean(&self) -> bool {
        self.unclean == Some(0)
    }
}

/// Everything that the checkers of the dispatcher need.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    /// Sorted by arrival.
    pub calls: Vec<Seen>,
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
    pub unrest: Unrest,
}

impl Evidence {
    /// Reads the records of a run; they are empty if the run had no webhooks.
    pub fn load(dir: &Path, faults: &[Fault], leader_changes: u64) -> Result<Self> {
        let mut evidence = Evidence {
            calls: read_lines(&dir.join(CALLS))?,
            unrest: Unrest::of(faults, leader_changes),
            ..Evidence::default()
        };
        for record in read_lines(&dir.join(DELIVERIES))? {
            match record {
                Record::Delivery(delivery) => {
                    let twice = evidence.deliveries.insert(delivery.id.clone(), *delivery);
                    ensure!(twice.is_none(), "a delivery is listed twice: {twice:?}");
                }
                Record::Agent(agent) => evidence.agents.push(agent),
                Record::DeadLetter(id) => evidence.dead.push(id),
                Record::Notice(notice) => evidence.notices.push(notice),
                Record::Deletion(deletion) => evidence.deletions.push(deletion),
            }
        }
        evidence.calls.sort_by_key(|call| call.at_us);
        Ok(evidence)
    }

    /// The calls of each delivery, sorted by attempt.
    pub fn by_delivery(&self) -> BTreeMap<&str, Vec<&Seen>> {
        let mut calls: BTreeMap<&str, Vec<&Seen>> = BTreeMap::new();
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

/// Reads the headers of a call.
pub fn seen(call: &Call, at_us: u64) -> Result<Seen> {
    let header = |name: &str| call.header(name).with_context(|| format!("a call without {name}"));
    let id = header("idempotency-key")?;
    Ok(Seen {
        delivery: id.to_owned(),
        one_id: header("webhook-id")? == id && header("upstash-message-id")? == id,
        attempt: header("x-attempt")?.parse()?,
        step: header("x-retry-step")?.parse()?,
        epoch: header("x-dispatch-epoch")?.parse()?,
        redelivery: call.header("x-redelivery") == Some("possible"),
        path: call.path.clone(),
        at_us,
    })
}

/// Records the final deliveries, dead letters and notices of a team, and `more`.
pub async fn write_down(world: &World, team: &Team, more: Vec<Record>) -> Result<()> {
    let operator = world.operator()?;
    let path = world.recorder.dir().join(DELIVERIES);
    let file = File::options().create(true).append(true).open(&path);
    let mut file = BufWriter::new(file.with_context(|| format!("cannot open {}", path.display()))?);
    let mut write = |record: &Record| -> Result<()> {
        serde_json::to_writer(&mut file, record)?;
        Ok(file.write_all(b"\n")?)
    };
    let all = rows(&operator, team, None).await?.into_iter();
    let details = all.map(|row| async { operator.team_delivery(&team.id, &{ row.id }).await });
    let mut details = futures::stream::iter(details).buffered(QUESTIONS);
    let mut senders = BTreeSet::new();
    while let Some(delivery) = details.try_next().await? {
        senders.insert(delivery.from_agent_id.clone());
        write(&Record::Delivery(Box::new(delivery)))?;
    }
    for row in rows(&operator, team, Some("dead")).await? {
        write(&Record::DeadLetter(row.id))?;
    }
    for sender in &senders {
        for notice in notices(world, team, sender).await? {
            write(&Record::Notice(notice))?;
        }
    }
    more.iter().try_for_each(&mut write)?;
    Ok(file.flush()?)
}

/// Lists a team's deliveries, optionally in one state, in the order of their creation. Each page is consistent.
pub async fn rows(operator: &Client, team: &Team, state: Option<&str>) -> Result<Vec<DeliveryRow>> {
    let mut query = DeliveryQuery {
        state: state.map(str::to_owned),
        limit: Some(200),
        ..DeliveryQuery::default()
    };
    let mut rows = Vec::new();
    loop {
        let page = operator.team_deliveries(&team.id, &query).await?;
        rows.extend(page.deliveries);
        // A page that skipped many rows may be empty without being the last one.
        if query.cursor.replace(page.cursor.clone()) == Some(page.cursor) {
            return Ok(rows);
        }
    }
}

/// Whether no delivery of a team is open.
pub async fn all_over(operator: &Client, team: &Team) -> Result<bool> {
    // `scheduled` is asked twice, so that a delivery is not missed that changes its state between the questions.
    for state in ["scheduled", "claimed", "scheduled"] {
        if !rows(operator, team, Some(state)).await?.is_empty() {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn notices(world: &World, team: &Team, sender: &str) -> Result<Vec<Notice>> {
    let client = Client::builder(world.urls.join(" ")).api_key(&team.key).agent(sender);
    let client = client.build()?;
    let mut query = ListQuery {
        limit: Some(200),
        consistency: Some(Consistency::Linearizable),
        ..ListQuery::default()
    };
    let mut notices = Vec::new();
    loop {
        let page = client.list(&query).await?;
        for message in page.messages.iter().filter(|m| m.kind == DeliveryFailed::TYPE) {
            let body: DeliveryFailed = serde_json::from_str(message.body.get())?;
            notices.push(Notice {
                to: sender.to_owned(),
                delivery: body.delivery_id,
                attempts: body.attempts,
            });
        }
        if page.messages.is_empty() {
            return Ok(notices);
        }
        query.cursor = Some(page.cursor);
    }
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

    fn unrest(faults: &[(&str, State)]) -> Unrest {
        let fault = |(kind, state): &(&str, State)| Fault {
            kind: (*kind).to_owned(),
            nodes: vec![1],
            note: String::new(),
            began: 0,
            ended: 1,
            state: *state,
        };
        Unrest::of(&faults.iter().map(fault).collect::<Vec<_>>(), 1)
    }

    #[test]
    fn faults_are_counted_as_far_as_they_can_be() {
        let installed = |kind: &'static str| (kind, State::Installed);
        assert!(unrest(&[installed("transfer")]).is_clean());
        assert_eq!(unrest(&[]).unclean, Some(1), "a leader was lost without a fault");
        assert!(unrest(&[("kill", State::Skipped), installed("transfer")]).is_clean());
        let counted = unrest(&[
            installed("kill"),
            installed("pause"),
            ("failpoint", State::Indeterminate),
        ]);
        assert_eq!((counted.unclean, counted.stops), (Some(3), 1));
        assert_eq!(unrest(&[installed("kill"), installed("partition")]).unclean, None);
    }
}
