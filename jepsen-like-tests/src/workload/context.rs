//! The cluster as the clients of a run see it: the URL of each node, an operator's key, the address for their own
//! servers, and the recorder of the history. It gives no access to the processes of the cluster.

use std::net::IpAddr;

use agentpost::api::admin::LimitsPatch;
use agentpost::operator::Operator;
use agentpost::retry::RetryPolicy;
use agentpost::{Agent, Agentpost};
use anyhow::Result;

use crate::cluster::{Cluster, Team, create_team};
use crate::record::history::Recorder;

/// What every client of a run needs. Cloning is cheap.
#[derive(Clone)]
pub struct ClientContext {
    /// Base URLs of the client ports of nodes 1, 2, …. Nodes that joined later come last.
    pub urls: Vec<String>,
    /// The API key of the first operator.
    pub admin_key: String,
    /// The address on which servers of clients (webhook receivers) listen, reachable from the nodes.
    pub host: IpAddr,
    pub recorder: Recorder,
    /// The seed of all random choices of clients; each lane mixes in its own number.
    pub seed: u64,
    /// Messages that all clients together try to send per second; 0 means no limit.
    pub rate: u64,
}

impl ClientContext {
    /// The context of the clients of this cluster.
    pub fn new(cluster: &Cluster, recorder: Recorder, seed: u64, rate: u64) -> Result<Self> {
        Ok(ClientContext {
            urls: (1..=cluster.nodes()).map(|node| cluster.url(node)).collect(),
            admin_key: std::fs::read_to_string(cluster.admin_key_file())?.trim().to_owned(),
            host: cluster.client_host(),
            recorder,
            seed,
            rate,
        })
    }

    pub fn nodes(&self) -> usize {
        self.urls.len()
    }

    /// A client of one node (numbered from 1) that does not retry.
    pub fn node(&self, node: usize, key: &str, agent: &str) -> Result<Agent> {
        let post = Agentpost::builder(&self.urls[node - 1]).key(key);
        Ok(post.retry(RetryPolicy::once()).build()?.agent(agent))
    }

    /// An operator's client of one node that does not retry.
    pub fn node_operator(&self, node: usize) -> Result<Operator> {
        Ok(self.node(node, &self.admin_key, "")?.post().operator())
    }

    /// An operator's client of all nodes, with retries.
    pub fn operator(&self) -> Result<Operator> {
        let post = Agentpost::builder(self.urls.join(" ")).key(&self.admin_key);
        Ok(post.build()?.operator())
    }

    /// Creates a team; without limits if `limits` is `None`.
    pub async fn team(&self, name: &str, limits: Option<LimitsPatch>) -> Result<Team> {
        create_team(&self.operator()?, name, limits).await
    }
}
