//! Nodes that join and leave. A place has a number; each node that occupies it gets an id that was never used before.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use agentpost::api::admin::AddMember;
use agentpost::operator::Operator;
use agentpost::{Agentpost, Error};
use anyhow::{Context, Result, ensure};

use super::{Cluster, Node, PATIENCE};

/// Time between two attempts.
const ASK_AGAIN: Duration = Duration::from_millis(100);

impl Cluster {
    /// Adds a vacant place; on loopback only.
    pub fn grow(&mut self) -> Result<usize> {
        self.network.grow()?;
        self.nodes.push(Node { id: 0, process: None });
        Ok(self.nodes.len())
    }

    pub fn is_vacant(&self, node: usize) -> bool {
        self.nodes[node - 1].id == 0
    }

    /// The id of the node at a place; 0 if it is vacant.
    pub fn id(&self, node: usize) -> u64 {
        self.nodes[node - 1].id
    }

    /// The addresses under which other nodes and clients reach a place.
    pub fn addresses(&self, node: usize) -> AddMember {
        AddMember {
            id: None,
            peer_addr: self.network.peer_addr_for_others(node).to_string(),
            url: self.url(node),
        }
    }

    /// Adds a new node without data at a vacant place; returns when it is a voter and ready.
    pub async fn join(&mut self, node: usize) -> Result<()> {
        self.join_within(node, PATIENCE).await
    }

    /// Does the same, and gives the node this much time to catch up.
    pub async fn join_within(&mut self, node: usize, patience: Duration) -> Result<()> {
        ensure!(self.is_vacant(node), "place {node} is not vacant");
        match std::fs::remove_dir_all(self.disk.data_dir(node)) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let admin = self.operator()?;
        let id = add(&admin, &self.addresses(node)).await?;
        self.nodes[node - 1].id = id;
        std::fs::write(self.file(node, "toml"), self.config(node))?;
        self.launch(&[node])?;
        promote(&admin, id, patience).await?;
        self.wait_ready_within(node, patience).await
    }

    /// Removes the node at a place from the cluster and kills its process.
    pub async fn leave(&mut self, node: usize) -> Result<()> {
        let (admin, id) = (self.operator()?, self.nodes[node - 1].id);
        remove(&admin, id).await?;
        self.kill(node)?;
        self.nodes[node - 1].id = 0;
        Ok(())
    }

    /// Deletes all data of a node that does not run.
    pub fn wipe(&mut self, node: usize) -> Result<()> {
        ensure!(self.nodes[node - 1].process.is_none(), "node {node} is running");
        let dir = self.disk.data_dir(node);
        std::fs::remove_dir_all(&dir).with_context(|| dir.display().to_string())
    }

    /// Makes a running node take a snapshot.
    pub async fn snapshot(&self, node: usize) -> Result<()> {
        let key = std::fs::read_to_string(self.admin_key_file())?;
        let one = Agentpost::builder(self.url(node)).key(key.trim()).build()?;
        Ok(one.operator().snapshot().await?)
    }

    /// An operator's client of the nodes that run.
    pub fn operator(&self) -> Result<Operator> {
        let urls: Vec<String> = self.running().map(|node| self.url(node)).collect();
        let key = std::fs::read_to_string(self.admin_key_file())?;
        Ok(Agentpost::builder(urls.join(" ")).key(key.trim()).build()?.operator())
    }
}

/// Adds a learner. If the outcome is unknown, the list of members shows it.
pub async fn add(admin: &Operator, wanted: &AddMember) -> Result<u64> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let refused = match admin.add_member(&wanted.peer_addr, &wanted.url).await {
            Ok(added) => return Ok(added.id),
            Err(error) => error,
        };
        if let Ok(cluster) = admin.cluster().await
            && let Some(there) = cluster.nodes.iter().find(|node| node.url == wanted.url)
        {
            return Ok(there.id);
        }
        ensure!(Instant::now() < deadline, "{wanted:?} was not added: {refused}");
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

pub async fn remove(admin: &Operator, id: u64) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while let Err(refused) = admin.remove_member(id).await {
        again("removed", refused, deadline).await?;
    }
    Ok(())
}

/// Makes a learner a voter when it has caught up.
async fn promote(admin: &Operator, id: u64, patience: Duration) -> Result<()> {
    let deadline = Instant::now() + patience;
    while let Err(refused) = admin.promote_member(id).await {
        again("promoted", refused, deadline).await?;
    }
    Ok(())
}

/// Waits before the next attempt: a change is refused while a node lags, another change runs or leadership moves.
async fn again(what: &str, refused: Error, deadline: Instant) -> Result<()> {
    ensure!(Instant::now() < deadline, "the node was not {what}: {refused}");
    tokio::time::sleep(ASK_AGAIN).await;
    Ok(())
}
