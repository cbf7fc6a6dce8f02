//! Batches as fast as the cluster takes them. They are not recorded, so that an hour of full load fits into memory; the
//! recorded clients of the workloads beside it show whether the cluster keeps its promises.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use agentpost::Agent;
use agentpost::api::abbababa::{BatchRequest, SendRequest};
use agentpost::http::Request;
use anyhow::{Context as _, Result};
use serde_json::Value;
use serde_json::value::to_raw_value;
use tokio::task::JoinSet;

use super::load::StopFlag;
use crate::workload::context::ClientContext;

/// Batches in flight at a time.
const LANES: usize = 16;
/// Messages of a batch.
const BATCH: usize = 100;
/// Inboxes that get them. Each keeps 100,000 messages, which bounds the bytes on disk of a long run.
const INBOXES: usize = 20;
/// Bytes of a body.
const BODY: usize = 200;
/// The pause after a failure.
const AFTER_FAILURE: Duration = Duration::from_millis(50);

/// A flood that goes on until it is stopped.
pub struct Flood {
    stop: StopFlag,
    lanes: JoinSet<()>,
    sent: Arc<AtomicU64>,
}

impl Flood {
    /// Starts the clients, in a team of their own.
    pub async fn start(ctx: &ClientContext) -> Result<Self> {
        let team = ctx.team("flood", None).await?;
        let (stop, sent) = (StopFlag::default(), Arc::new(AtomicU64::new(0)));
        let mut lanes = JoinSet::new();
        for lane in 0..LANES {
            let nodes: Result<Vec<Agent>> = (1..=ctx.nodes())
                .map(|node| ctx.node(node, &team.key, "flood"))
                .collect();
            lanes.spawn(send_on(nodes?, lane, stop.clone(), sent.clone()));
        }
        Ok(Flood { stop, lanes, sent })
    }

    /// Waits until so many messages are acknowledged; false if they are not in time.
    pub async fn has_sent(&self, count: u64, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while self.sent.load(Ordering::Relaxed) < count {
            if Instant::now() > deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        true
    }

    /// Ends the clients and returns the number of acknowledged messages.
    pub async fn stop(mut self) -> Result<u64> {
        self.stop.set();
        while let Some(lane) = self.lanes.join_next().await {
            lane.context("a client of the flood panicked")?;
        }
        Ok(self.sent.load(Ordering::Relaxed))
    }
}

/// Sends through one node until it fails, then through the next.
async fn send_on(nodes: Vec<Agent>, lane: usize, stop: StopFlag, sent: Arc<AtomicU64>) {
    let mut turn = lane;
    for number in lane.. {
        if stop.is_set() {
            return;
        }
        let Ok(request) = batch(number) else { return };
        match nodes[turn % nodes.len()].request(&request).await {
            Ok(answer) => sent.fetch_add(accepted(&answer.body), Ordering::Relaxed),
            Err(_) => {
                turn += 1;
                tokio::time::sleep(AFTER_FAILURE).await;
                0
            }
        };
    }
}

/// A batch without idempotency keys, whose rows would stay for a day.
fn batch(number: usize) -> Result<Request> {
    let body = to_raw_value(&"x".repeat(BODY))?;
    let message = |n: usize| SendRequest {
        to_agent_id: Some(format!("flood-{}", (number + n) % INBOXES)),
        kind: Some("test.flood".to_owned()),
        body: Some(body.clone()),
        ..SendRequest::default()
    };
    let messages = (0..BATCH).map(message).collect();
    Ok(Request::post("/v1/messages/batch").json(&BatchRequest { messages })?)
}

/// The messages of a batch that were stored.
fn accepted(answer: &str) -> u64 {
    let answer: Value = serde_json::from_str(answer).unwrap_or_default();
    let results = answer["results"].as_array().map(Vec::as_slice).unwrap_or_default();
    results.iter().filter(|result| result["success"] == true).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_stored_messages_count() {
        let answer = r#"{"results":[{"success":true},{"success":false,"error":"e"},{"success":true}]}"#;
        assert_eq!(accepted(answer), 2);
        assert_eq!(accepted("no JSON"), 0);
    }
}
