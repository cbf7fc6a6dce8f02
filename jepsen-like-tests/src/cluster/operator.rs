//! The cluster as its operator sees it: the leader, equal states, teams, and nodes that rejoin under a new id.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use agentpost::operator::{Node, Operator};
use agentpost::retry::RetryPolicy;
use agentpost::{Agent, Agentpost};
use anyhow::{Context, Result, bail, ensure};

use super::team::{Team, create_team};
use super::{Cluster, PATIENCE};

impl Cluster {
    /// Lets a node rejoin whose data is lost or damaged and whose process does not run: the cluster removes it, and
    /// it joins again, empty and under a new id, with `agentpost node rejoin`. Returns when it is a voter.
    pub async fn rejoin(&mut self, node: usize) -> Result<()> {
        let file = self.file(node, "toml");
        self.agentpost(&["node", "rejoin", "--config", &file.display().to_string()])?;
        self.nodes[node - 1].id = id_in(&file)?;
        self.launch(&[node])?;
        let id = self.nodes[node - 1].id.to_string();
        self.agentpost(&["cluster", "promote", &id])?;
        self.await_ready(&[node]).await
    }

    /// Runs the operator's CLI `agentpost` of the same build against the nodes that run.
    pub fn agentpost(&self, arguments: &[&str]) -> Result<String> {
        let urls: Vec<String> = self.running().map(|node| self.url(node)).collect();
        let output = Command::new(self.binary.with_file_name("agentpost"))
            .args(arguments)
            .env("AGENTPOST_URLS", urls.join(" "))
            .env(
                "AGENTPOST_ADMIN_KEY",
                std::fs::read_to_string(self.admin_key_file())?.trim(),
            )
            .output()
            .context("cannot run agentpost, which must be in the directory of agentpostd")?;
        let said = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        ensure!(output.status.success(), "agentpost {}: {said}", arguments.join(" "));
        Ok(said)
    }

    /// The number of the node with this id.
    fn number(&self, id: u64) -> Option<usize> {
        self.nodes.iter().position(|node| node.id == id).map(|place| place + 1)
    }

    /// Waits for a leader other than `away`.
    pub async fn leader_without(&self, away: usize) -> Result<usize> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            for node in self.running().filter(|node| *node != away) {
                let key = std::fs::read_to_string(self.admin_key_file())?;
                let one = Agentpost::builder(self.url(node))
                    .key(key.trim())
                    .retry(RetryPolicy::once())
                    .build()?;
                let leader = one
                    .operator()
                    .cluster()
                    .await
                    .ok()
                    .and_then(|status| self.number(status.leader?));
                if let Some(leader) = leader.filter(|leader| *leader != away) {
                    return Ok(leader);
                }
            }
            ensure!(
                Instant::now() < deadline,
                "no leader other than node {away} within {PATIENCE:?}"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Transfers leadership to a node.
    pub async fn transfer(&self, node: usize) -> Result<()> {
        let admin = self.admin()?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            // Refused while the node is behind or there is no leader.
            let refused = admin.transfer(self.nodes[node - 1].id).await.err();
            if self.leader().await? == node {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "node {node} does not lead: {refused:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until all nodes have the same state hash at the same applied index.
    pub async fn same_state(&self) -> Result<()> {
        let admin = self.admin()?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = admin.cluster().await?;
            let hash = |n: &Node| n.state_hash_index.zip(n.state_hash.clone());
            let hashes: Vec<_> = status.nodes.iter().map(hash).collect();
            let members = self.nodes.iter().filter(|node| node.id != 0).count();
            if hashes.len() == members && hashes[0].is_some() && hashes.iter().all(|h| *h == hashes[0]) {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "the replicas' hashes never agreed: {status:?}"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The file into which node 1 wrote the first admin key.
    pub fn admin_key_file(&self) -> PathBuf {
        self.dir.join("admin.key")
    }

    /// A client of all nodes with the first admin key.
    pub fn admin(&self) -> Result<Operator> {
        let key = std::fs::read_to_string(self.admin_key_file())?;
        Ok(Agentpost::builder(self.urls()).key(key.trim()).build()?.operator())
    }

    pub async fn team(&self, name: &str) -> Result<Team> {
        create_team(&self.admin()?, name, None).await
    }

    /// A client of one node, without retries.
    pub fn node_client(&self, node: usize, team: &Team, agent: &str) -> Result<Agent> {
        let post = Agentpost::builder(self.url(node)).key(&team.key);
        Ok(post.retry(RetryPolicy::once()).build()?.agent(agent))
    }

    /// A client of all nodes.
    pub fn client(&self, team: &Team, agent: &str) -> Result<Agent> {
        let post = Agentpost::builder(self.urls()).key(&team.key);
        Ok(post.build()?.agent(agent))
    }

    /// Waits for a leader and returns it.
    pub async fn leader(&self) -> Result<usize> {
        let admin = self.admin()?;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Ok(status) = admin.cluster().await
                && let Some(leader) = status.leader.and_then(|id| self.number(id))
                && self.running().any(|node| node == leader)
            {
                return Ok(leader);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        bail!("no leader within {PATIENCE:?}")
    }
}

/// Reads `node.id` from a configuration file.
fn id_in(file: &Path) -> Result<u64> {
    let text = std::fs::read_to_string(file)?;
    let id = text.lines().find_map(|line| line.strip_prefix("id = "));
    Ok(id.context("no node.id")?.trim().parse()?)
}
