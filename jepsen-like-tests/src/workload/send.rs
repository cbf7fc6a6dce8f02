//! Workload A: clients that send to a few inboxes through every node and repeat what is unknown under the same
//! idempotency key.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use agentpost::api::abbababa::SendRequest;
use agentpost::{Client, Consistency, Error, ListQuery};
use anyhow::{Context as _, Result};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::value::to_raw_value;

use super::{Load, Stop};
use crate::history::{Fields, Item, Lane, Op, Outcome};
use crate::world::{Team, World};

/// Clients of a load.
const LANES: u64 = 16;
/// Inboxes that they share.
const INBOXES: usize = 8;
/// Attempts of one send before its client gives up and calls it unknown.
const ATTEMPTS_MAX: usize = 60;
/// What an audit may take to get an answer from a node that has just been healed.
const AUDIT_PATIENCE: Duration = Duration::from_secs(60);

/// Starts [`LANES`] clients with `batch` messages to a request.
pub async fn start(world: &World, batch: usize) -> Result<Load> {
    let team = world.team(&format!("send-{batch}"), None).await?;
    let inboxes: Vec<String> = (0..INBOXES).map(|n| format!("inbox-{n}")).collect();
    let (audited, owner) = (inboxes.clone(), team.clone());
    let mut load = Load::new(move |world| async move { audit(&world, &owner, &audited).await });
    for _ in 0..LANES {
        let lane = world.recorder.lane();
        let clients: Result<Vec<Client>> = (1..=world.nodes())
            .map(|node| world.node(node, &team.key, &format!("sender-{}", lane.number())))
            .collect();
        let sender = Sender {
            random: StdRng::seed_from_u64(world.seed ^ u64::from(lane.number()) << 32),
            lane,
            clients: clients?,
            inboxes: inboxes.clone(),
            batch,
            gap: pace(world.rate, LANES, batch),
        };
        load.spawn(sender.run(load.stop()));
    }
    Ok(load)
}

/// How long a lane waits between two requests so that all lanes together reach the rate.
pub fn pace(rate: u64, lanes: u64, batch: usize) -> Duration {
    match rate {
        0 => Duration::ZERO,
        rate => Duration::from_secs_f64((lanes * batch as u64) as f64 / rate as f64),
    }
}

struct Sender {
    lane: Lane,
    clients: Vec<Client>,
    inboxes: Vec<String>,
    random: StdRng,
    batch: usize,
    gap: Duration,
}

impl Sender {
    async fn run(mut self, stop: Stop) -> Result<()> {
        let mut sent = 0;
        while !stop.is_set() {
            let began = Instant::now();
            let inbox = self.inboxes[self.random.random_range(0..self.inboxes.len())].clone();
            let keys: Vec<String> = (sent..sent + self.batch)
                .map(|n| format!("{}-{n}", self.lane.number()))
                .collect();
            sent += self.batch;
            let items = keys.iter().map(|key| Item {
                id: String::new(),
                key: key.clone(),
                seq: None,
            });
            self.lane.invoke(None, Op::Send, &inbox, Fields::items(items.collect()));
            let outcome = self.send(&inbox, &keys, &stop).await?;
            self.lane.end(outcome);
            tokio::time::sleep(self.gap.saturating_sub(began.elapsed())).await;
        }
        Ok(())
    }

    /// One request, repeated through other nodes until somebody decides all of it.
    async fn send(&mut self, inbox: &str, keys: &[String], stop: &Stop) -> Result<Outcome> {
        let requests: Result<Vec<SendRequest>> = keys.iter().map(|key| message(inbox, key)).collect();
        let requests = requests?;
        let mut last = String::new();
        for _ in 0..ATTEMPTS_MAX {
            let client = &self.clients[self.random.random_range(0..self.clients.len())];
            match attempt(client, &requests).await {
                Ok(ids) => {
                    let items = ids.into_iter().zip(keys).map(|(id, key)| Item {
                        id,
                        key: key.clone(),
                        seq: None,
                    });
                    return Ok(Outcome::Ok(Fields::items(items.collect())));
                }
                // 429 under overload is the one refusal that a repeat can cure.
                Err(Error::Refused(answer)) if answer.status.as_u16() != 429 => {
                    return Ok(Outcome::Fail(answer.to_string()));
                }
                Err(error) => last = error.to_string(),
            }
            if stop.is_set() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(self.random.random_range(20..200))).await;
        }
        Ok(Outcome::Info(last))
    }
}

/// One attempt at all messages; an error if any of them is not stored.
async fn attempt(client: &Client, requests: &[SendRequest]) -> Result<Vec<String>, Error> {
    if let [request] = requests {
        return Ok(vec![client.send(request.clone()).await?.message_id]);
    }
    let reply = client.send_batch(requests.to_vec()).await?;
    let ids: Option<Vec<String>> = reply.results.into_iter().map(|result| result.message_id).collect();
    ids.ok_or_else(|| Error::Invalid("some of the batch was not stored".to_owned()))
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
    let mut lane = world.recorder.lane();
    for node in 1..=world.nodes() {
        for inbox in inboxes {
            lane.invoke(Some(node), Op::Audit, inbox, Fields::default());
            let items = read_all(&world.node(node, &team.key, inbox)?).await;
            lane.end(match items {
                Ok(items) => Outcome::Ok(Fields::items(items)),
                Err(error) => Outcome::Info(format!("{error:#}")),
            });
        }
    }
    Ok(())
}

/// Everything in an agent's inbox, as one node has it.
pub async fn read_all(client: &Client) -> Result<Vec<Item>> {
    let mut items = Vec::new();
    let mut query = ListQuery {
        limit: Some(200),
        consistency: Some(Consistency::Linearizable),
        ..ListQuery::default()
    };
    let deadline = Instant::now() + AUDIT_PATIENCE;
    loop {
        let page = match client.list(&query).await {
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
        query.cursor = Some(page.cursor);
    }
}

/// The client's name of a message, from its body.
pub fn key_of(body: &str) -> String {
    let body: Option<serde_json::Value> = serde_json::from_str(body).ok();
    let key = body.as_ref().and_then(|body| body.get("key")?.as_str());
    key.unwrap_or_default().to_owned()
}
