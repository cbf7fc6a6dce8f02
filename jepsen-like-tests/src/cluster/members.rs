//! Nodes that come and go. A place has a number, and whoever lives there has an id that nobody had before.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use agentpost::api::admin::AddMember;
use agentpost::{Client, Error};
use anyhow::{Context, Result, ensure};

use super::{Cluster, Node, PATIENCE};

/// Between two tries.
const ASK_AGAIN: Duration = Duration::from_millis(100);

impl Cluster {
    /// One more place, where nobody lives yet. On loopback only.
    pub fn grow(&mut self) -> Result<usize> {
        self.network.grow()?;
        self.nodes.push(Node { id: 0, process: None });
        Ok(self.nodes.len())
    }

    /// Whether nobody lives at a place.
    pub fn is_vacant(&self, node: usize) -> bool {
        self.nodes[node - 1].id == 0
    }

    /// How others reach a place.
    pub fn addresses(&self, node: usize) -> AddMember {
        AddMember {
            id: None,
            peer_addr: self.network.peer_addr_for_others(node).to_string(),
            url: self.url(node),
        }
    }

    /// A new node at a vacant place, without any data; returns when it is a voter and serves.
    pub async fn join(&mut self, node: usize) -> Result<()> {
        ensure!(self.is_vacant(node), "somebody lives at {node}");
        match std::fs::remove_dir_all(self.disk.data_dir(node)) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let admin = self.operator()?;
        let id = add(&admin, &self.addresses(node)).await?;
        self.nodes[node - 1].id = id;
        std::fs::write(self.file(node, "toml"), self.config(node))?;
        self.launch(&[node])?;
        promote(&admin, id).await?;
        self.await_ready(&[node]).await
    }

    /// Whoever lives at a place is removed from the cluster, and its process ended.
    pub async fn leave(&mut self, node: usize) -> Result<()> {
        let (admin, id) = (self.operator()?, self.nodes[node - 1].id);
        remove(&admin, id).await?;
        self.kill(node)?;
        self.nodes[node - 1].id = 0;
        Ok(())
    }

    /// Takes everything that a node stores, whose process does not run.
    pub fn wipe(&mut self, node: usize) -> Result<()> {
        ensure!(self.nodes[node - 1].process.is_none(), "node {node} runs");
        let dir = self.disk.data_dir(node);
        std::fs::remove_dir_all(&dir).with_context(|| dir.display().to_string())
    }

    /// Has a running node take a snapshot.
    pub async fn snapshot(&self, node: usize) -> Result<()> {
        let key = std::fs::read_to_string(self.admin_key_file())?;
        let one = Client::builder(self.url(node)).api_key(key.trim()).build()?;
        Ok(one.snapshot().await?)
    }

    /// An operator who asks the nodes whose process runs.
    pub fn operator(&self) -> Result<Client> {
        let urls: Vec<String> = self.running().map(|node| self.url(node)).collect();
        let key = std::fs::read_to_string(self.admin_key_file())?;
        Ok(Client::builder(urls.join(" ")).api_key(key.trim()).build()?)
    }
}

/// Adds a learner. When the outcome is unknown the list of members tells it.
pub async fn add(admin: &Client, wanted: &AddMember) -> Result<u64> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let refused = match admin.add_member(wanted).await {
            Ok(added) => return Ok(added.id),
            Err(error) => error,
        };
        if let Ok(cluster) = admin.cluster().await
            && let Some(there) = cluster.nodes.iter().find(|node| node.url == wanted.url)
        {
            return Ok(there.id);
        }
        ensure!(Instant::now() < deadline, "{wanted:?} not added: {refused}");
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

/// Removes a node.
pub async fn remove(admin: &Client, id: u64) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while let Err(refused) = admin.remove_member(id).await {
        again("removed", refused, deadline).await?;
    }
    Ok(())
}

/// Makes a learner a voter when it has caught up.
async fn promote(admin: &Client, id: u64) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while let Err(refused) = admin.promote_member(id).await {
        again("promoted", refused, deadline).await?;
    }
    Ok(())
}

/// While a node lags, another change runs or leadership moves it is refused.
async fn again(what: &str, refused: Error, deadline: Instant) -> Result<()> {
    ensure!(Instant::now() < deadline, "not {what}: {refused}");
    tokio::time::sleep(ASK_AGAIN).await;
    Ok(())
}
