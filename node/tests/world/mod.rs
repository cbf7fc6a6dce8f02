//! A cluster with its operator, its teams and their sockets, as tests of sockets see it. A file adds what is its own in
//! an `impl World` block.
#![allow(dead_code, clippy::unwrap_used)]

#[path = "../common/mod.rs"]
pub mod common;
#[path = "../common/web.rs"]
pub mod web;
#[path = "../ws_client/mod.rs"]
pub mod ws_client;

use serde_json::{Value, json};

use common::TestCluster;
use web::{Answer, Call, Team, new_key};
use ws_client::{Connect, Socket};

pub struct World {
    pub cluster: TestCluster,
    /// Of each node.
    pub urls: Vec<String>,
    /// The operator's key.
    pub admin: String,
}

impl World {
    /// Three nodes.
    pub async fn start() -> Self {
        Self::start_with(3, "").await
    }

    /// The same with settings that differ from the defaults, as TOML.
    pub async fn start_with(nodes: usize, settings: &str) -> Self {
        let cluster = TestCluster::start_with(nodes, settings).await;
        let (urls, admin) = (cluster.urls(), cluster.admin_key());
        World { cluster, urls, admin }
    }

    /// A new team with its first key, which may write.
    pub async fn team(&self, name: &str) -> Team {
        Team::create(&self.urls[0], &self.admin, name).await
    }

    /// Another key of the team: its id, and the team with that key.
    pub async fn key(&self, team: &Team, wanted: Value) -> (String, Team) {
        let (id, key) = new_key(&self.urls[0], &self.admin, &team.id, &wanted).await;
        (id, Team { key, ..team.clone() })
    }

    /// The same with a write key that is bound to `agent`.
    pub async fn bound(&self, team: &Team, agent: &str) -> Team {
        let key = team.bound(&self.urls[0], &self.admin, agent).await;
        Team { key, ..team.clone() }
    }

    /// Sends on the Kite face.
    pub async fn send(&self, node: usize, team: &Team, to: &str, body: &str) {
        self.try_send(node, team, to, body).await.ok();
    }

    /// The same where it may be refused.
    pub async fn try_send(&self, node: usize, team: &Team, to: &str, body: &str) -> Answer {
        let mail = json!({ "from": "sender", "to": to, "body": body });
        let call = Call::post("/api/v1/agents/messages", &mail).bearer(&team.key);
        call.to(&self.urls[node]).await
    }

    /// A greeted socket, and the `last_seq` that it was told.
    pub async fn listen(&self, node: usize, team: &Team, scopes: &[&str], client_id: Option<&str>) -> (Socket, u64) {
        Socket::connect(&self.urls[node], connect(team, scopes, client_id)).await
    }
}

/// As the holder of the team's key connects.
pub fn connect<'a>(team: &'a Team, scopes: &'a [&'a str], client_id: Option<&'a str>) -> Connect<'a> {
    Connect {
        key: &team.key,
        team: &team.id,
        scopes,
        client_id,
    }
}
