//! The cluster as the clients of a run see it: the URL of each node, an operator's key, the address for their own
//! servers, and the recorder of the history. It gives no access to the processes of the cluster.

use std::net::IpAddr;

use agentpost::Client;
use agentpost::api::admin::{CreateKey, CreateTeam, LimitsPatch};
use agentpost::retry::RetryPolicy;
use anyhow::Result;

use crate::history::Recorder;

/// A team with a key that may act as any of its agents.
#[derive(Debug, Clone)]
pub struct Team {
    pub id: String,
    /// An API key with the permission `write`.
    pub key: String,
}

/// What every client of a run needs. Cloning is cheap.
#[derive(Clone)]
pub struct World {
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

impl World {
    pub fn nodes(&self) -> usize {
        self.urls.len()
    }

    /// A client of one node (numbered from 1) that does not retry.
    pub fn node(&self, node: usize, key: &str, agent: &str) -> Result<Client> {
        let client = Client::builder(&self.urls[node - 1])
            .api_key(key)
            .agent(agent)
            .retry(RetryPolicy::once());
        Ok(client.build()?)
    }

    /// An operator's client of all nodes, with retries.
    pub fn operator(&self) -> Result<Client> {
        Ok(Client::builder(self.urls.join(" ")).api_key(&self.admin_key).build()?)
    }

    /// Creates a team; without limits if `limits` is `None`.
    pub async fn team(&self, name: &str, limits: Option<LimitsPatch>) -> Result<Team> {
        create_team(&self.operator()?, name, limits).await
    }
}

/// Creates a team and a key for it; without limits if `limits` is `None`.
pub async fn create_team(operator: &Client, name: &str, limits: Option<LimitsPatch>) -> Result<Team> {
    let unlimited = LimitsPatch {
        daily_sends: Some(0),
        daily_reads: Some(0),
        monthly_events: Some(0),
        ..LimitsPatch::default()
    };
    let team = CreateTeam {
        name: name.to_owned(),
        limits: Some(limits.unwrap_or(unlimited)),
    };
    let team = operator.create_team(&team).await?;
    let key = CreateKey {
        name: "test".to_owned(),
        permissions: vec!["write".to_owned()],
        agent_id: None,
        scopes: None,
        expires_at: None,
    };
    let key = operator.create_key(&team.id, &key).await?;
    Ok(Team {
        id: team.id,
        key: key.api_key.into(),
    })
}
