//! The fixture of most tests: a cluster, its operator, and a team.

use agentpost_raft_store::core::query;
use agentpost_testkit::socket::{Connect, Socket};
use serde_json::{Value, json};

use crate::common::TestCluster;
use crate::common::web::{Answer, Call, Team, new_key};

/// Dropping it stops the cluster.
pub struct Office {
    pub cluster: TestCluster,
    /// The base URL of each node.
    pub urls: Vec<String>,
    /// The operator's key.
    pub admin: String,
    /// A team without limits.
    pub team: Team,
}

/// Starts an office with three nodes.
pub async fn office() -> Office {
    Office::start(3, "").await
}

impl Office {
    /// Starts an office with settings that differ from the defaults, as TOML.
    pub async fn start(nodes: usize, settings: &str) -> Self {
        let cluster = TestCluster::start_with(nodes, settings).await;
        let (urls, admin) = (cluster.urls(), cluster.admin_key());
        let team = Team::create(&urls[0], &admin, "office").await;
        Office {
            cluster,
            urls,
            admin,
            team,
        }
    }

    /// Creates another team, with a key that may write.
    pub async fn new_team(&self, name: &str) -> Team {
        Team::create(&self.urls[0], &self.admin, name).await
    }

    /// Creates another key of a team; returns its id, and the team with that key.
    pub async fn key(&self, team: &Team, wanted: Value) -> (String, Team) {
        let (id, key) = new_key(&self.urls[0], &self.admin, &team.id, &wanted).await;
        (id, Team { key, ..team.clone() })
    }

    /// Creates a write key that is bound to `agent`; returns the team with that key.
    pub async fn bound(&self, team: &Team, agent: &str) -> Team {
        let key = team.bound(&self.urls[0], &self.admin, agent).await;
        Team { key, ..team.clone() }
    }

    /// Sends through the Kite API.
    pub async fn send(&self, node: usize, team: &Team, to: &str, body: &str) {
        self.try_send(node, team, to, body).await.ok();
    }

    /// Sends through the Kite API a message that may be refused.
    pub async fn try_send(&self, node: usize, team: &Team, to: &str, body: &str) -> Answer {
        let mail = json!({ "from": "sender", "to": to, "body": body });
        let call = Call::post("/api/v1/agents/messages", &mail).bearer(&team.key);
        call.to(&self.urls[node]).await
    }

    /// Seq and kind of a cursor: whether it was acknowledged, not only implied by answered pings.
    pub async fn cursor(&self, team: &Team, agent: &str, client_id: &str) -> Option<(u64, bool)> {
        let services = self.cluster.services(self.cluster.running()[0]);
        let state = services.fresh_state().await?;
        let cursor = query::inbox::cursor(&*state, team.id.parse().unwrap(), agent, client_id).unwrap();
        cursor.map(|cursor| (cursor.seq, cursor.acked))
    }

    /// How many sessions a node has.
    pub fn sessions(&self, node: usize) -> usize {
        let text = self.cluster.services(node).metrics_text();
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix("agentpost_ws_sessions "));
        value.unwrap().parse().unwrap()
    }

    /// Opens a session; returns its `last_seq` too.
    pub async fn listen(&self, node: usize, team: &Team, scopes: &[&str], client_id: Option<&str>) -> (Socket, u64) {
        Socket::connect(&self.urls[node], connect(team, scopes, client_id)).await
    }
}

/// The `connect` of somebody who has the team's key.
pub fn connect<'a>(team: &'a Team, scopes: &'a [&'a str], client_id: Option<&'a str>) -> Connect<'a> {
    Connect {
        key: &team.key,
        team: &team.id,
        scopes,
        client_id,
    }
}
