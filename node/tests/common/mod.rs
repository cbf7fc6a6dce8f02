//! A cluster of real nodes in this process: real sockets on loopback, real disks in a temporary directory.
//!
//! Nodes are numbered from 0 here; node `i` has the id `i + 1`. Nothing in these tests may depend on how fast
//! the machine is: wait for a state of the cluster, never for a time.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc, dead_code, missing_docs)]

mod handles;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use agentpost_node::base::clock::Clock;
use agentpost_node::base::config::Config;
use agentpost_node::node::{self, RunningNode};
use agentpost_proto::command::{CreateKey, CreateTeam, Operation, Permission, Principal, TeamLimits, operation, reply};
use agentpost_proto::id::{KeyId, TeamId};
use agentpost_raft_store::core::query;
use tokio::net::TcpListener;

pub use handles::NodeHandles;

/// Longer than anything takes on a machine that is busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct TestCluster {
    dir: tempfile::TempDir,
    places: Vec<Place>,
    nodes: Vec<Mutex<Option<RunningNode>>>,
    /// Appended to every node's configuration.
    settings: String,
}

/// Where a node listens, now and after a restart.
#[derive(Clone, Copy)]
struct Place {
    client: SocketAddr,
    peer: SocketAddr,
}

/// A team with a key that is bound to nobody and may write.
#[derive(Clone)]
pub struct TestTeam {
    pub id: TeamId,
    pub key_id: KeyId,
    pub key: String,
}

impl TestTeam {
    pub fn principal(&self) -> Principal {
        Principal {
            team_id: self.id.to_bytes(),
            key_id: self.key_id.to_bytes(),
        }
    }
}

impl TestCluster {
    /// Starts `n` nodes and waits until all of them serve.
    pub async fn start(n: usize) -> Self {
        Self::start_with(n, "").await
    }

    /// The same with settings that differ from the defaults, for all nodes, as TOML.
    pub async fn start_with(n: usize, settings: &str) -> Self {
        Self::start_with_clocks(n, settings, |_| Clock::system()).await
    }

    /// The same with clocks of the nodes' own, until they are restarted.
    pub async fn start_with_clocks(n: usize, settings: &str, clock_of: impl Fn(usize) -> Clock) -> Self {
        let dir = tempfile::tempdir().unwrap();
        agentpost_node::base::secrets::write_private(&dir.path().join("secret"), &[7; 32]).unwrap();
        let mut listeners = Vec::new();
        for _ in 0..n {
            let bind = || TcpListener::bind("127.0.0.1:0");
            listeners.push((bind().await.unwrap(), bind().await.unwrap()));
        }
        let place = |(client, peer): &(TcpListener, TcpListener)| Place {
            client: client.local_addr().unwrap(),
            peer: peer.local_addr().unwrap(),
        };
        let places: Vec<Place> = listeners.iter().map(place).collect();
        let nodes = (0..n).map(|_| Mutex::new(None)).collect();
        let cluster = TestCluster {
            dir,
            places,
            nodes,
            settings: settings.to_owned(),
        };
        for (i, (client, peer)) in listeners.into_iter().enumerate() {
            let node = node::start_at(clock_of(i), cluster.config(i), client, peer)
                .await
                .unwrap();
            cluster.put(i, node);
        }
        for i in 0..n {
            cluster.ready(i).await;
        }
        cluster.admin().await;
        cluster
    }

    /// The URL of node `i`'s client port.
    pub fn url(&self, i: usize) -> String {
        format!("http://{}", self.places[i].client)
    }

    /// Where node `i` answers the others.
    pub fn peer_addr(&self, i: usize) -> SocketAddr {
        self.places[i].peer
    }

    pub fn urls(&self) -> Vec<String> {
        (0..self.places.len()).map(|i| self.url(i)).collect()
    }

    /// The handles of node `i`, which must be running.
    pub fn services(&self, i: usize) -> NodeHandles {
        let node = self.nodes[i].lock().unwrap_or_else(PoisonError::into_inner);
        NodeHandles::of(node.as_ref().expect("the node runs"))
    }

    pub fn admin_key(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("admin.key"))
            .unwrap()
            .trim()
            .to_owned()
    }

    /// Where node `i` keeps its data.
    pub fn data_dir(&self, i: usize) -> PathBuf {
        self.dir.path().join(format!("node-{i}"))
    }

    /// The node that leads according to a majority; waits for one.
    pub async fn leader(&self) -> usize {
        eventually("a leader that a majority knows", async || {
            let mut votes = vec![0; self.nodes.len()];
            for i in self.running() {
                if let Some(leader) = self.services(i).cluster.status().await.leader {
                    votes[leader as usize - 1] += 1;
                }
            }
            (0..votes.len()).find(|i| votes[*i] * 2 > votes.len() && self.running().contains(i))
        })
        .await
    }

    /// A running node that does not lead.
    pub async fn follower(&self) -> usize {
        let leader = self.leader().await;
        self.running()
            .into_iter()
            .find(|i| *i != leader)
            .expect("a second node runs")
    }

    pub fn running(&self) -> Vec<usize> {
        let runs = |i: &usize| self.nodes[*i].lock().unwrap_or_else(PoisonError::into_inner).is_some();
        (0..self.nodes.len()).filter(runs).collect()
    }

    /// Waits until node `i` serves.
    pub async fn ready(&self, i: usize) {
        eventually("a node that serves", async || {
            self.services(i).cluster.ready().await.then_some(())
        })
        .await;
    }

    /// Waits until every running node has applied what node `i` has applied now, and the states are equal.
    pub async fn caught_up(&self) {
        eventually("equal states on all nodes", async || {
            let status = self.services(self.running()[0]).cluster.status().await;
            let running = self.running().into_iter().map(|i| &status.nodes[i]);
            let states: Vec<_> = running
                .map(|node| (node.state_hash_index, node.state_hash.clone()))
                .collect();
            states.windows(2).all(|pair| pair[0] == pair[1]).then_some(())
        })
        .await;
    }

    /// Ends node `i` without a word to the others: nothing is handed over or flushed.
    pub async fn kill(&self, i: usize) {
        self.take(i).abort().await;
    }

    /// Stops node `i` in order.
    pub async fn stop_node(&self, i: usize) {
        self.take(i).stop().await;
    }

    /// Starts node `i` again where it was, and waits until it serves.
    pub async fn restart(&self, i: usize) {
        self.restart_unready(i).await;
        self.ready(i).await;
    }

    /// The same without waiting: for when there is no quorum.
    pub async fn restart_unready(&self, i: usize) {
        let place = self.places[i];
        // Its sockets and databases may take a moment to be released.
        let node = eventually("a node that starts", async || {
            let client = TcpListener::bind(place.client).await.ok()?;
            let peer = TcpListener::bind(place.peer).await.ok()?;
            node::start_with(self.config(i), client, peer).await.ok()
        })
        .await;
        self.put(i, node);
    }

    /// Waits until node `i` cannot go on, as its process does; it is stopped then. Tells why.
    pub async fn failed(&self, i: usize) -> String {
        let node = self.take(i);
        let why = tokio::time::timeout(PATIENCE, node.failed()).await;
        node.abort().await;
        why.expect("the node goes on")
    }

    /// Stops everything.
    pub async fn stop(self) {
        let nodes = self.running().into_iter().map(|i| self.take(i).stop());
        futures::future::join_all(nodes).await;
    }

    /// The principal of the admin key.
    pub async fn admin(&self) -> Principal {
        let services = self.services(self.running()[0]);
        let hash = services.secrets.key_hash(&self.admin_key());
        let key = eventually("an admin key in the state", async || {
            let state = services.reader.linearizable().await.ok()?;
            query::key::by_hash(&*state, &hash).unwrap()
        })
        .await;
        Principal {
            team_id: key.team_id,
            key_id: key.id,
        }
    }

    /// Creates a team without limits, and a key for it.
    pub async fn team(&self, name: &str) -> TestTeam {
        let services = self.services(self.running()[0]);
        let id = TeamId(services.ids.random());
        let limits = Some(TeamLimits::default());
        let team = CreateTeam {
            team_id: id.to_bytes(),
            name: name.to_owned(),
            limits,
        };
        self.administer(operation::Op::CreateTeam(team)).await;
        let key = agentpost_node::base::secrets::NewKey::team(&services.ids);
        let create = CreateKey {
            team_id: id.to_bytes(),
            key_id: key.id.to_bytes(),
            key_hash: services.secrets.key_hash(&key.api_key).to_vec().into(),
            key_prefix: key.prefix,
            name: "test".to_owned(),
            permissions: vec![Permission::Write as i32],
            scopes: vec!["*".to_owned()],
            ..CreateKey::default()
        };
        self.administer(operation::Op::CreateKey(create)).await;
        TestTeam {
            id,
            key_id: key.id,
            key: key.api_key,
        }
    }

    async fn administer(&self, op: operation::Op) {
        let operation = Operation {
            principal: Some(self.admin().await),
            op: Some(op),
        };
        let proposer = self.services(self.running()[0]).proposer;
        let reply = proposer.propose(operation).await.unwrap().reply.unwrap();
        assert!(!matches!(reply, reply::Reply::Rejection(_)), "{reply:?}");
    }

    /// Other settings, for nodes that are started again.
    pub fn set(&mut self, settings: &str) {
        settings.clone_into(&mut self.settings);
    }

    fn config(&self, i: usize) -> Config {
        let dir = self.dir.path().display();
        let nodes = self.places.iter().enumerate().map(|(i, place)| {
            format!(
                "{{ id = {}, peer_addr = \"{}\", url = \"http://{}\" }}",
                i + 1,
                place.peer,
                place.client
            )
        });
        let nodes = nodes.collect::<Vec<_>>().join(", ");
        let place = self.places[i];
        let admin_key_file = if i == 0 {
            format!("{dir}/admin.key")
        } else {
            String::new()
        };
        let raft = match self.settings.contains("[raft]") {
            true => "",
            // Three nodes and other tests share the machine's cores.
            false => "[raft]\nelection_min_ms = 500\nelection_max_ms = 1000\n",
        };
        let storage = match self.settings.contains("[storage]") {
            true => "",
            // However full the machine is.
            false => "[storage]\nmin_free_bytes = 0\nmin_free_percent = 0\nballast_bytes = 0\n",
        };
        let text = format!(
            "[node]\nid = {}\ndata_dir = \"{}\"\nclient_addr = \"{}\"\npeer_addr = \"{}\"\n\
             [cluster]\nsecret_file = \"{dir}/secret\"\nnodes = [{nodes}]\n\
             [bootstrap]\nadmin_key_file = \"{admin_key_file}\"\n{raft}{storage}{}",
            i + 1,
            self.data_dir(i).display(),
            place.client,
            place.peer,
            self.settings,
        );
        Config::from_parts("test", &text, []).unwrap()
    }

    fn put(&self, i: usize, node: RunningNode) {
        *self.nodes[i].lock().unwrap_or_else(PoisonError::into_inner) = Some(node);
    }

    fn take(&self, i: usize) -> RunningNode {
        self.nodes[i]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
            .expect("the node runs")
    }
}

/// Polls until `probe` has something; gives up after [`PATIENCE`].
pub async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let waiting = async {
        loop {
            if let Some(found) = probe().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let given_up = |_| panic!("no {what} within {PATIENCE:?}");
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(given_up)
}
