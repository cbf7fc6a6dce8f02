//! Workload A: clients that send to a few inboxes through every node, retry sends with an unknown outcome under the
//! same idempotency key, and now and then repeat an acknowledged one.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rand::RngExt;
use tokio::task::JoinSet;

use super::load::Load;
use super::mailbox::{MailboxClient, list};
use super::message::key_of;
use crate::cluster::Team;
use crate::record::history::{Fields, Item, Op, Outcome};
use crate::record::mailbox::PREFIX;
use crate::workload::context::ClientContext;

/// Clients of a workload.
const LANES: u64 = 16;
/// Inboxes that they share.
const INBOXES: usize = 8;
/// Inboxes of the batch workload: an inbox keeps 100,000 messages, and messages removed by retention would look lost.
const INBOXES_OF_BATCHES: usize = 100;
/// The probability that a client repeats an earlier send …
const REPEATS: f64 = 0.02;
/// … and that it sends another body under a key that it used.
const MISUSES: f64 = 0.005;
/// Messages in a page of an audit: few, so that an inbox has many page boundaries.
const AUDIT_PAGE: usize = 50;
/// Time limit for an audit to get a response from a node that has just been healed.
const AUDIT_PATIENCE: Duration = Duration::from_secs(60);

/// Starts [`LANES`] clients that send `batch` messages per request.
pub async fn start(ctx: &ClientContext, batch: usize) -> Result<Load> {
    let team = ctx.team(&format!("send-{batch}"), None).await?;
    let count = if batch == 1 { INBOXES } else { INBOXES_OF_BATCHES };
    let inboxes = inboxes(&format!("send{batch}"), count);
    let mut load = load(&team, &inboxes);
    for _ in 0..LANES {
        let client = MailboxClient::new(ctx, &team, load.stop())?;
        load.spawn(send_on(client, inboxes.clone(), batch, pace(ctx.rate, LANES, batch)));
    }
    Ok(load)
}

/// Names of inboxes that no other workload of the run uses.
pub fn inboxes(load: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{PREFIX}{load}-{n}")).collect()
}

/// A workload that audits these inboxes at the end.
pub fn load(team: &Team, inboxes: &[String]) -> Load {
    let (team, inboxes) = (team.clone(), inboxes.to_vec());
    Load::new(move |ctx| async move { audit(&ctx, &team, &inboxes).await })
}

/// The time between two requests of a lane, so that all lanes together reach the rate.
pub fn pace(rate: u64, lanes: u64, batch: usize) -> Duration {
    match rate {
        0 => Duration::ZERO,
        rate => Duration::from_secs_f64((lanes * batch as u64) as f64 / rate as f64),
    }
}

/// A client that sends until it is response to stop.
pub async fn send_on(mut client: MailboxClient, inboxes: Vec<String>, batch: usize, gap: Duration) -> Result<()> {
    while !client.over() {
        let began = Instant::now();
        let inbox = &inboxes[client.random.random_range(0..inboxes.len())];
        client.send(inbox, batch).await?;
        if client.random.random_bool(REPEATS) {
            client.repeat().await?;
        }
        if client.random.random_bool(MISUSES) {
            client.misuse().await?;
        }
        tokio::time::sleep(gap.saturating_sub(began.elapsed())).await;
    }
    Ok(())
}

/// Reads whole inboxes from every node.
pub async fn audit(ctx: &ClientContext, team: &Team, inboxes: &[String]) -> Result<()> {
    let mut nodes = JoinSet::new();
    for node in 1..=ctx.nodes() {
        nodes.spawn(audit_node(ctx.clone(), team.clone(), inboxes.to_vec(), node));
    }
    while let Some(node) = nodes.join_next().await {
        node.context("an audit panicked")??;
    }
    Ok(())
}

async fn audit_node(ctx: ClientContext, team: Team, inboxes: Vec<String>, node: usize) -> Result<()> {
    let mut lane = ctx.recorder.lane();
    let client = ctx.node(node, &team.key, "auditor")?;
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

/// Reads an agent's whole inbox from one node.
pub async fn read_all(client: &agentpost::Agent, inbox: &str) -> Result<Vec<Item>> {
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
