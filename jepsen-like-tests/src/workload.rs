//! Workload A: clients that send to a few inboxes through every node, retry what is unknown under the same
//! idempotency key, and remember what they were told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use agentpost::api::abbababa::SendRequest;
use agentpost::{Client, Consistency, Error, ListQuery};
use anyhow::Result;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::value::to_raw_value;
use tokio::task::JoinSet;

use crate::cluster::{Cluster, Team};
use crate::history::{History, InboxRead, Outcome, Send};

/// Attempts of one send before its client gives up and calls it unknown.
const ATTEMPTS_MAX: usize = 60;

/// A running workload.
pub struct Workload {
    stop: Arc<AtomicBool>,
    lanes: JoinSet<Vec<Send>>,
    inboxes: Vec<String>,
}

impl Workload {
    /// Starts `lanes` clients, each with one send in flight, choosing node and inbox from the seed.
    pub fn start(cluster: &Cluster, team: &Team, lanes: usize, seed: u64) -> Result<Self> {
        let inboxes: Vec<String> = (0..8).map(|n| format!("inbox-{n}")).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let mut set = JoinSet::new();
        for lane in 0..lanes {
            let nodes: Vec<usize> = cluster.running().collect();
            let clients: Vec<Client> = nodes
                .iter()
                .map(|node| cluster.node_client(*node, team, &format!("sender-{lane}")))
                .collect::<Result<_>>()?;
            let rng = StdRng::seed_from_u64(seed ^ (lane as u64) << 32);
            set.spawn(run_lane(lane, clients, inboxes.clone(), rng, stop.clone()));
        }
        Ok(Workload {
            stop,
            lanes: set,
            inboxes,
        })
    }

    /// Lets every client end its send, then reads every inbox from every node.
    pub async fn finish(mut self, cluster: &Cluster, team: &Team) -> Result<History> {
        self.stop.store(true, Ordering::Relaxed);
        let mut history = History::default();
        while let Some(sends) = self.lanes.join_next().await {
            history.sends.extend(sends?);
        }
        for node in cluster.running() {
            for inbox in &self.inboxes {
                let read = read_inbox(&cluster.node_client(node, team, inbox)?).await?;
                history.reads.entry(node).or_default().insert(inbox.clone(), read);
            }
        }
        Ok(history)
    }
}

async fn run_lane(
    lane: usize,
    clients: Vec<Client>,
    inboxes: Vec<String>,
    mut rng: StdRng,
    stop: Arc<AtomicBool>,
) -> Vec<Send> {
    let mut sends = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let key = format!("lane-{lane}-{}", sends.len());
        let inbox = inboxes[rng.random_range(0..inboxes.len())].clone();
        let outcome = send(&clients, &inbox, &key, &mut rng).await;
        sends.push(Send { key, inbox, outcome });
    }
    sends
}

/// One send, repeated through other nodes until somebody decides it.
async fn send(clients: &[Client], inbox: &str, key: &str, rng: &mut StdRng) -> Outcome {
    let body = to_raw_value(&serde_json::json!({ "key": key })).ok();
    let request = SendRequest {
        to_agent_id: Some(inbox.to_owned()),
        kind: Some("test.note".to_owned()),
        body,
        idempotency_key: Some(key.to_owned()),
        ..SendRequest::default()
    };
    let mut last = String::new();
    for _ in 0..ATTEMPTS_MAX {
        match clients[rng.random_range(0..clients.len())].send(request.clone()).await {
            Ok(sent) => return Outcome::Acknowledged(sent.message_id),
            // 429 under overload is the one refusal that a repeat can cure.
            Err(Error::Refused(answer)) if answer.status.as_u16() != 429 => {
                return Outcome::Refused(answer.to_string());
            }
            Err(error) => last = error.to_string(),
        }
        tokio::time::sleep(Duration::from_millis(rng.random_range(20..200))).await;
    }
    Outcome::Unknown(last)
}

async fn read_inbox(client: &Client) -> Result<InboxRead> {
    let mut read = InboxRead::default();
    let mut query = ListQuery {
        limit: Some(200),
        consistency: Some(Consistency::Linearizable),
        ..ListQuery::default()
    };
    loop {
        let page = client.list(&query).await?;
        for message in &page.messages {
            let body: serde_json::Value = serde_json::from_str(message.body.get())?;
            let key = body.get("key").and_then(|key| key.as_str()).unwrap_or_default();
            read.messages.push((message.id.clone(), key.to_owned()));
        }
        if page.messages.is_empty() {
            return Ok(read);
        }
        query.cursor = Some(page.cursor);
    }
}
