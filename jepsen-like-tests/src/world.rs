//! What the clients of a run know: how to reach each node, an operator's key, where their own servers may listen, and
//! where to write down what they did. It can do nothing to the cluster's processes.

use std::net::IpAddr;

use agentpost::Client;
use agentpost::api::admin::{CreateKey, CreateTeam, LimitsPatch};
use agentpost::retry::RetryPolicy;
use anyhow::Result;

use crate::history::Recorder;

/// A team, and a key that may act as any of its agents.
#[derive(Debug, Clone)]
pub struct Team {
    /// `team_…`.
    pub id: String,
    /// A key with the permission `write`.
    pub key: String,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct World {
    /// Base URLs of the client ports of nodes 1, 2, …. Nodes that joined later come last.
    pub urls: Vec<String>,
    /// The first operator's key.
    pub admin_key: String,
    /// Where servers of clients (webhook receivers) listen so that the nodes reach them.
    pub host: IpAddr,
    /// Where clients write down what they did.
    pub recorder: Recorder,
    /// Where all choices of clients come from: a lane mixes its own number in.
    pub seed: u64,
    /// How many messages a second all clients together try to send; 0 = as fast as they can.
    pub rate: u64,
}

impl World {
    /// How many nodes there are.
    pub fn nodes(&self) -> usize {
        self.urls.len()
    }

    /// A client of one node (from 1) that asks once.
    pub fn node(&self, node: usize, key: &str, agent: &str) -> Result<Client> {
        let client = Client::builder(&self.urls[node - 1])
            .api_key(key)
            .agent(agent)
            .retry(RetryPolicy::once());
        Ok(client.build()?)
    }

    /// An operator's client of all nodes, which repeats what may be repeated.
    pub fn operator(&self) -> Result<Client> {
        Ok(Client::builder(self.urls.join(" ")).api_key(&self.admin_key).build()?)
    }

    /// Creates a team; without limits if none are given.
    pub async fn team(&self, name: &str, limits: Option<LimitsPatch>) -> Result<Team> {
        create_team(&self.operator()?, name, limits).await
    }
}

/// Creates a team and a key for it; without limits if none are given.
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
