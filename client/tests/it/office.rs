//! A cluster of node processes with a team, for what the library does against real servers.

use agentpost::{Agent, Agentpost};
use jepsen_like_tests::cluster::{Cluster, Team};

/// Longer than anything here takes.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// A running cluster. Its processes and files end with it.
pub struct Office {
    pub cluster: Cluster,
    pub team: Team,
}

/// How a listener receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    WebSocket,
    LongPoll,
}

impl Office {
    pub async fn open(nodes: usize) -> Self {
        let cluster = Cluster::start(nodes).await.unwrap();
        let team = cluster.team("office").await.unwrap();
        Office { cluster, team }
    }

    /// All base URLs, node `first` (from 1) first, separated by commas.
    pub fn urls_from(&self, first: usize) -> String {
        let nodes = self.cluster.nodes();
        let urls = (0..nodes).map(|i| self.cluster.url((first - 1 + i) % nodes + 1));
        urls.collect::<Vec<_>>().join(",")
    }

    /// A connection with the team's key whose first node is `first`.
    pub fn post(&self, by: By, first: usize) -> Agentpost {
        let builder = Agentpost::builder(self.urls_from(first)).key(&self.team.key);
        match by {
            By::WebSocket => builder.team(&self.team.id).build().unwrap(),
            By::LongPoll => builder.build().unwrap(),
        }
    }

    /// An agent whose first node is `first`.
    pub fn agent(&self, by: By, first: usize, id: &str) -> Agent {
        self.post(by, first).agent(id)
    }

    pub async fn operator(&self) -> Agentpost {
        let key = std::fs::read_to_string(self.cluster.admin_key_file()).unwrap();
        agentpost::connect(self.urls_from(1), key.trim()).await.unwrap()
    }
}

/// Fails a test that waits for something that does not come.
pub async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what)
        .await
        .expect("it did not come in time")
}
