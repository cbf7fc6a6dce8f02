//! Workload E: mail to agents with webhooks, and what became of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use agentpost::Client;
use agentpost::api::abbababa::SendRequest;
use anyhow::{Result, ensure};
use serde_json::value::to_raw_value;
use tokio::task::JoinHandle;

use crate::cluster::{Cluster, Team};
use crate::deliveries::{Evidence, Faults, is_over, rows};
use crate::receiver::{Call, Receiver};

/// Who sends.
pub const SENDER: &str = "sender";

/// A team whose agents have their mail delivered to one receiver, each to the path of its name.
pub struct Webhooks {
    /// The team.
    pub team: Team,
    /// Where their mail goes.
    pub receiver: Receiver,
}

impl Webhooks {
    /// Makes the team, and a webhook for each agent.
    pub async fn start(cluster: &Cluster, name: &str, agents: &[&str]) -> Result<Self> {
        let webhooks = Webhooks {
            team: cluster.team(name).await?,
            receiver: Receiver::start().await?,
        };
        for agent in agents {
            let url = webhooks.receiver.url_of(&format!("/{agent}"));
            let client = cluster.client(&webhooks.team, agent)?;
            client.register_webhook(&url, &["message.received"]).await?;
        }
        Ok(webhooks)
    }

    /// Sends one message; it is stored when this returns.
    pub async fn send(&self, cluster: &Cluster, to: &str, key: &str) -> Result<String> {
        let client = cluster.client(&self.team, SENDER)?;
        Ok(client.send(message(to, key)?).await?.message_id)
    }

    /// Sends to these agents in turn, a message every `gap`, until the load is ended.
    pub fn load(&self, cluster: &Cluster, agents: &[&str], gap: Duration) -> Result<Load> {
        let client = cluster.client(&self.team, SENDER)?;
        let agents: Vec<String> = agents.iter().map(|agent| (*agent).to_owned()).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let sending = tokio::spawn(send_on(client, agents, gap, stop.clone()));
        Ok(Load { stop, sending })
    }

    /// The calls to an agent so far.
    pub fn calls(&self, agent: &str) -> Vec<Call> {
        self.receiver.calls_to(&format!("/{agent}"))
    }

    /// Waits until `count` deliveries exist and all are over, and the calls on their way have arrived; then
    /// gathers the evidence and compares the replicas.
    pub async fn finish(
        &self,
        cluster: &Cluster,
        count: usize,
        faults: Faults,
        patience: Duration,
    ) -> Result<Evidence> {
        let deadline = Instant::now() + patience;
        loop {
            let rows = rows(cluster, &self.team, None).await?;
            let open = rows.iter().filter(|row| !is_over(row)).count();
            if open == 0 && rows.len() >= count {
                break;
            }
            ensure!(
                Instant::now() < deadline,
                "{open} deliveries are open after {patience:?}"
            );
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        cluster.same_state().await?;
        let calls = self.receiver.calls();
        let evidence = Evidence::gather(cluster, &self.team, &[SENDER.to_owned()], &calls).await?;
        ensure!(
            evidence.deliveries.len() == count,
            "{} deliveries of {count} messages",
            evidence.deliveries.len()
        );
        Ok(Evidence { faults, ..evidence })
    }
}

/// Messages that keep coming.
pub struct Load {
    stop: Arc<AtomicBool>,
    sending: JoinHandle<Result<usize>>,
}

impl Load {
    /// Ends it: how many messages were stored.
    pub async fn end(self) -> Result<usize> {
        self.stop.store(true, Ordering::Relaxed);
        self.sending.await?
    }
}

/// A message is repeated under its key until it is stored: faults may take longer than a client's patience.
async fn send_on(client: Client, agents: Vec<String>, gap: Duration, stop: Arc<AtomicBool>) -> Result<usize> {
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        let message = message(&agents[sent % agents.len()], &format!("load-{sent}"))?;
        let mut tries = 0;
        while let Err(error) = client.send(message.clone()).await {
            tries += 1;
            ensure!(tries < 60, "message {sent} cannot be sent: {error}");
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        sent += 1;
        tokio::time::sleep(gap).await;
    }
    Ok(sent)
}

fn message(to: &str, key: &str) -> Result<SendRequest> {
    Ok(SendRequest {
        to_agent_id: Some(to.to_owned()),
        kind: Some("test.note".to_owned()),
        body: Some(to_raw_value(&serde_json::json!({ "key": key }))?),
        idempotency_key: Some(key.to_owned()),
        ..SendRequest::default()
    })
}
