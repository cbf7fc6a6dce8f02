//! Workload A: clients that send to a few inboxes through every node, repeat what is unknown under the same idempotency
//! key, and now and then what is known, too.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use agentpost::api::abbababa::SendRequest;
use anyhow::{Context as _, Result};
use rand::RngExt;
use serde_json::value::to_raw_value;
use tokio::task::JoinSet;

use super::Load;
use super::mailbox::{Actor, PREFIX, list};
use crate::history::{Fields, Item, Op, Outcome};
use crate::world::{Team, World};

/// Clients of a load.
const LANES: u64 = 16;
/// Inboxes that they share.
const INBOXES: usize = 8;
/// The same for batches: an inbox keeps 100,000 messages, and one that lost its oldest to retention would look like a loss.
const INBOXES_OF_BATCHES: usize = 100;
/// How often a client sends again what it sent before …
const REPEATS: f64 = 0.02;
/// … and how often something else under a key that it used.
const MISUSES: f64 = 0.005;
/// Messages of a page of an audit: few, so that an inbox has many edges of pages.
const AUDIT_PAGE: usize = 50;
/// What an audit may take to get an answer from a node that has just been healed.
const AUDIT_PATIENCE: Duration = Duration::from_secs(60);

/// Starts [`LANES`] clients with `batch` messages to a request.
pub async fn start(world: &World, batch: usize) -> Result<Load> {
    let team = world.team(&format!("send-{batch}"), None).await?;
    let count = if batch == 1 { INBOXES } else { INBOXES_OF_BATCHES };
    let inboxes = inboxes(&format!("send{batch}"), count);
    let mut load = load(&team, &inboxes);
    for _ in 0..LANES {
        let actor = Actor::new(world, &team, load.stop())?;
        load.spawn(send_on(actor, inboxes.clone(), batch, pace(world.rate, LANES, batch)));
    }
    Ok(load)
}

/// Names of inboxes that no other load of the run has.
pub fn inboxes(load: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{PREFIX}{load}-{n}")).collect()
}

/// A load that looks at these inboxes in the end.
pub fn load(team: &Team, inboxes: &[String]) -> Load {
    let (team, inboxes) = (team.clone(), inboxes.to_vec());
    Load::new(move |world| async move { audit(&world, &team, &inboxes).await })
}

/// How long a lane waits between two requests so that all lanes together reach the rate.
pub fn pace(rate: u64, lanes: u64, batch: usize) -> Duration {
    match rate {
        0 => Duration::ZERO,
        rate => Duration::from_secs_f64((lanes * batch as u64) as f64 / rate as f64),
    }
}

/// A client that sends until it is told to stop.
pub async fn send_on(mut actor: Actor, inboxes: Vec<String>, batch: usize, gap: Duration) -> Result<()> {
    while !actor.over() {
        let began = Instant::now();
        let inbox = &inboxes[actor.random.random_range(0..inboxes.len())];
        actor.send(inbox, batch).await?;
        if actor.random.random_bool(REPEATS) {
            actor.repeat().await?;
        }
        if actor.random.random_bool(MISUSES) {
            actor.misuse().await?;
        }
        tokio::time::sleep(gap.saturating_sub(began.elapsed())).await;
    }
    Ok(())
}

/// A message whose body carries its client's name of it.
pub fn message(inbox: &str, key: &str) -> Result<SendRequest> {
    Ok(SendRequest {
        to_agent_id: Some(inbox.to_owned()),
        kind: Some("test.note".to_owned()),
        body: Some(to_raw_value(&BTreeMap::from([("key", key)]))?),
        idempotency_key: Some(key.to_owned()),
        ..SendRequest::default()
    })
}

/// Reads inboxes from every node, from the beginning to the end.
pub async fn audit(world: &World, team: &Team, inboxes: &[String]) -> Result<()> {
    let mut nodes = JoinSet::new();
    for node in 1..=world.nodes() {
        nodes.spawn(audit_node(world.clone(), team.clone(), inboxes.to_vec(), node));
    }
    while let Some(node) = nodes.join_next().await {
        node.context("an audit panicked")??;
    }
    Ok(())
}

async fn audit_node(world: World, team: Team, inboxes: Vec<String>, node: usize) -> Result<()> {
    let mut lane = world.recorder.lane();
    let client = world.node(node, &team.key, "auditor")?;
    for inbox in inboxes {
        lane.invoke(Some(node), Op::Audit, &inbox, Fields::default());
        let items = read_all(&client, &inbox).await;
        lane.end(match items {
            Ok(items) => Outcome::Ok(Fields::items(items)),
            Err(error) => Outcome::Info(format!("{error:#}")),
        });
    }
    Ok(())
}

/// Everything in an agent's inbox, as one node has it.
pub async fn read_all(client: &agentpost::Client, inbox: &str) -> Result<Vec<Item>> {
    let mut items = Vec::new();
    let mut path = format!("/v1/messages?limit={AUDIT_PAGE}");
    let deadline = Instant::now() + AUDIT_PATIENCE;
    loop {
        let page = match list(client, inbox, path.clone()).await {
            Ok(page) => page,
            Err(error) if Instant::now() > deadline => return Err(error).context("reading an inbox"),
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        for message in &page.messages {
            items.push(Item {
                id: message.id.clone(),
                key: key_of(message.body.get()),
                seq: None,
            });
        }
        if page.messages.is_empty() {
            return Ok(items);
        }
        path = format!("/v1/messages?limit={AUDIT_PAGE}&cursor={}", page.cursor);
    }
}

/// The client's name of a message, from its body.
pub fn key_of(body: &str) -> String {
    let body: Option<serde_json::Value> = serde_json::from_str(body).ok();
    let key = body.as_ref().and_then(|body| body.get("key")?.as_str());
    key.unwrap_or_default().to_owned()
}
