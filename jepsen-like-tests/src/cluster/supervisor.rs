//! A supervisor that restarts nodes, like systemd. It knows only whether the process lives and what `/health` and
//! `/readyz` answer.

use std::time::{Duration, Instant};

use agentpost::Agentpost;
use agentpost::http::Request;
use agentpost::retry::RetryPolicy;
use anyhow::Result;

use super::Cluster;

/// Time limit for a response of a health route.
const ANSWER: Duration = Duration::from_secs(2);
/// Time between two checks, and between the first exit and the next start. Later starts wait longer, up to a second.
const GAP: Duration = Duration::from_millis(50);

/// The outcome of a start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeHealth {
    /// The node is ready.
    Ready,
    /// The node reports that it is in quarantine, and why.
    Quarantined(String),
    /// The node was neither when the time was up.
    Down(String),
}

/// A supervised start of a node.
#[derive(Debug, Clone)]
pub struct SupervisedStart {
    pub node: usize,
    pub health: NodeHealth,
    /// The time from the first start to the outcome.
    pub after: Duration,
    /// How often the process was started.
    pub starts: u32,
}

impl Cluster {
    /// Starts nodes that do not run, and restarts them if they end, until each is ready or in quarantine, or until
    /// the time is up. A node that is down then is not running.
    pub async fn supervise(&mut self, nodes: &[usize], patience: Duration) -> Result<Vec<SupervisedStart>> {
        let began = Instant::now();
        self.launch(nodes)?;
        let mut open: Vec<(usize, u32)> = nodes.iter().map(|node| (*node, 1)).collect();
        let mut decided = Vec::new();
        while !open.is_empty() {
            tokio::time::sleep(GAP).await;
            let late = began.elapsed() > patience;
            let ended = self.crashed()?;
            let mut undecided = Vec::new();
            for (node, starts) in open {
                let exit = ended.iter().find(|(number, _)| *number == node);
                let health = match exit {
                    Some((_, status)) if late => Some(NodeHealth::Down(format!("it ended with {status}"))),
                    Some(_) => None,
                    None => self.health(node).await,
                };
                let health = health.or_else(|| late.then(|| NodeHealth::Down("it is not ready in time".to_owned())));
                if let Some(health) = health {
                    if matches!(health, NodeHealth::Down(_)) {
                        self.kill(node)?;
                    }
                    decided.push(SupervisedStart {
                        node,
                        health,
                        after: began.elapsed(),
                        starts,
                    });
                    continue;
                }
                if exit.is_some() {
                    tokio::time::sleep((GAP * starts).min(Duration::from_secs(1))).await;
                    self.launch(&[node])?;
                }
                undecided.push((node, starts + u32::from(exit.is_some())));
            }
            open = undecided;
        }
        Ok(decided)
    }

    /// What a running node reports about itself, if it answers yet.
    pub async fn health(&self, node: usize) -> Option<NodeHealth> {
        let post = Agentpost::builder(self.url(node))
            .retry(RetryPolicy::once())
            .build()
            .ok()?;
        let ask = |path: &'static str| {
            let http = post.http();
            async move {
                tokio::time::timeout(ANSWER, http.request(&Request::get(path)))
                    .await
                    .ok()?
                    .ok()
            }
        };
        let health: serde_json::Value = serde_json::from_str(&ask("/health").await?.body).ok()?;
        if health["status"] == "quarantined" {
            let reason = health["reason"].as_str().unwrap_or_default();
            return Some(NodeHealth::Quarantined(reason.to_owned()));
        }
        ask("/readyz").await.map(|_| NodeHealth::Ready)
    }
}
