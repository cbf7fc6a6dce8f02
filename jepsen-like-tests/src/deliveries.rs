//! What a run of the dispatcher left behind: the receiver's log of calls, the deliveries as the operator sees them, the
//! senders' notices, and when which URL was given up.

use std::collections::BTreeMap;

use agentpost::api::abbababa::{Delivery, DeliveryDetail, DeliveryFailed, DeliveryRow};
use agentpost::{Consistency, DeliveryQuery, ListQuery};
use anyhow::{Context, Result, ensure};

use crate::cluster::{Cluster, Team};
use crate::receiver::Call;

/// A call as the receiver saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Id of the delivery: `idempotency-key`.
    pub delivery: String,
    /// Whether `webhook-id` and `upstash-message-id` are the same.
    pub one_id: bool,
    /// `x-attempt`.
    pub attempt: u32,
    /// `x-retry-step`.
    pub step: u32,
    /// `x-dispatch-epoch`.
    pub epoch: u64,
    /// `x-redelivery: possible`.
    pub redelivery: bool,
    /// Where.
    pub path: String,
    /// When, in microseconds of the receiver's monotonic clock.
    pub at_us: u64,
}

/// A notice in its sender's inbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Whose inbox.
    pub to: String,
    /// Of which delivery.
    pub delivery: String,
    /// How many attempts it speaks of.
    pub attempts: u32,
}

/// A URL that its owner deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deletion {
    /// Its path at the receiver.
    pub path: String,
    /// When the deletion was acknowledged, on the receiver's clock.
    pub at_us: u64,
}

/// What a run did to the cluster: it decides what may be asked of the deliveries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// Leaders killed or cut off.
    pub unclean: u32,
    /// Processes stopped for a while.
    pub stops: u32,
}

/// Everything that the checkers of the dispatcher look at.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    /// By arrival.
    pub calls: Vec<Seen>,
    /// By id.
    pub deliveries: BTreeMap<String, DeliveryDetail>,
    /// Ids, as the list of dead ones has them.
    pub dead: Vec<String>,
    /// Of all senders.
    pub notices: Vec<Notice>,
    /// In no order.
    pub deletions: Vec<Deletion>,
    /// What was done.
    pub faults: Faults,
}

impl Evidence {
    /// Reads what the cluster has now, and takes over what the receiver saw of this team.
    pub async fn gather(cluster: &Cluster, team: &Team, senders: &[String], calls: &[Call]) -> Result<Self> {
        let mut evidence = Evidence::default();
        let admin = cluster.admin()?;
        for DeliveryRow { id, .. } in rows(cluster, team, None).await? {
            let delivery = admin.team_delivery(&team.id, &id).await?;
            ensure!(
                evidence.deliveries.insert(id.clone(), delivery).is_none(),
                "{id} is listed twice"
            );
        }
        let dead = rows(cluster, team, Some("dead")).await?;
        evidence.dead = dead.into_iter().map(|row| row.id).collect();
        for sender in senders {
            evidence.notices.extend(notices(cluster, team, sender).await?);
        }
        for call in calls {
            evidence.calls.push(seen(call)?);
        }
        evidence.calls.sort_by_key(|call| call.at_us);
        Ok(evidence)
    }

    /// The calls of each delivery, by attempt.
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

/// How many attempts of a delivery ended so.
pub fn ended(delivery: &DeliveryDetail, end: &str) -> usize {
    delivery.attempts.iter().filter(|attempt| attempt.end == end).count()
}

/// Whether a delivery is over.
pub fn is_over<A>(delivery: &Delivery<A>) -> bool {
    !matches!(delivery.state.as_str(), "scheduled" | "claimed")
}

/// What a call says about itself.
pub fn seen(call: &Call) -> Result<Seen> {
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
        at_us: call.at_us,
    })
}

/// A team's deliveries, all or those in a state, in the order in which they were made. Each page is read at one moment.
pub async fn rows(cluster: &Cluster, team: &Team, state: Option<&str>) -> Result<Vec<DeliveryRow>> {
    let admin = cluster.admin()?;
    let mut query = DeliveryQuery {
        state: state.map(str::to_owned),
        limit: Some(200),
        ..DeliveryQuery::default()
    };
    let mut rows = Vec::new();
    loop {
        let page = admin.team_deliveries(&team.id, &query).await?;
        rows.extend(page.deliveries);
        // A page that looked at many rows may be empty and yet not the last.
        if query.cursor.replace(page.cursor.clone()) == Some(page.cursor) {
            return Ok(rows);
        }
    }
}

async fn notices(cluster: &Cluster, team: &Team, sender: &str) -> Result<Vec<Notice>> {
    let node = cluster.running().next().context("no node runs")?;
    let client = cluster.node_client(node, team, sender)?;
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
