//! A cluster of real nodes in this process: real sockets on loopback, real disks in a temporary directory.
//!
//! Nodes are numbered from 0 here; node `i` has the id `i + 1`. No test fails because the machine is slow: a test waits for
//! a state of the cluster, moves its clocks, or asserts a lower bound of a time.

use std::net::{SocketAddr, TcpListener as StdListener};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use crate::common::NodeHandles;
use agentpost_node::base::clock::Clock;
use agentpost_node::base::config::Config;
use agentpost_node::node::{self, RunningNode};
use agentpost_node::server::{http, ws};
use agentpost_proto::command::{CreateKey, CreateTeam, Operation, Permission, Principal, TeamLimits, operation, reply};
use agentpost_proto::id::{KeyId, TeamId};
use agentpost_raft_store::core::query;
use agentpost_testkit::{PATIENCE, eventually};
use futures::future::join_all;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::time::timeout;

/// Dropping it stops the nodes in order, or kills them if the test has failed, and removes their data.
pub struct TestCluster {
    dir: tempfile::TempDir,
    /// The nodes have a runtime of their own, so that `drop` can wait for them. `None` only while `drop` runs.
    runtime: Option<Runtime>,
    places: Vec<Place>,
    nodes: Vec<Mutex<Option<RunningNode>>>,
    /// TOML that is appended to the configuration of every node.
    settings: String,
}

/// The addresses of a node; it keeps them over a restart.
#[derive(Clone, Copy)]
struct Place {
    client: SocketAddr,
    peer: SocketAddr,
}

/// A team with a write key that is bound to no agent.
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

    /// Starts `n` nodes with settings that differ from the defaults, as TOML.
    pub async fn start_with(n: usize, settings: &str) -> Self {
        Self::start_with_clocks(n, settings, |_| Clock::system()).await
    }

    /// Starts `n` nodes with settings, each with its own clock. A restart gives a node the system's clock.
    pub async fn start_with_clocks(n: usize, settings: &str, clock_of: impl Fn(usize) -> Clock) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime = Runtime::new().unwrap();
        agentpost_node::base::secrets::write_private(&dir.path().join("secret"), &[7; 32]).unwrap();
        let bind = || StdListener::bind("127.0.0.1:0").unwrap();
        let listeners: Vec<_> = (0..n).map(|_| (bind(), bind())).collect();
        let place = |(client, peer): &(StdListener, StdListener)| Place {
            client: client.local_addr().unwrap(),
            peer: peer.local_addr().unwrap(),
        };
        let places: Vec<Place> = listeners.iter().map(place).collect();
        let nodes = (0..n).map(|_| Mutex::new(None)).collect();
        let cluster = TestCluster {
            dir,
            runtime: Some(runtime),
            places,
            nodes,
            settings: settings.to_owned(),
        };
        for (i, (client, peer)) in listeners.into_iter().enumerate() {
            let node = cluster.start_node(clock_of(i), i, client, peer).await.unwrap();
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

    /// The address of node `i`'s peer port.
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

    /// The data directory of node `i`.
    pub fn data_dir(&self, i: usize) -> PathBuf {
        self.dir.path().join(format!("node-{i}"))
    }

    /// Waits for a node that a majority knows as the leader.
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

    /// Waits until all running nodes have applied the same entries and have equal states.
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

    /// Ends node `i` as a crash would: it hands nothing over and flushes nothing.
    pub async fn kill(&self, i: usize) {
        self.take(i).abort().await;
    }

    /// Stops node `i` in order.
    pub async fn stop_node(&self, i: usize) {
        self.take(i).stop().await;
    }

    /// Starts node `i` again at its addresses and waits until it serves.
    pub async fn restart(&self, i: usize) {
        self.restart_unready(i).await;
        self.ready(i).await;
    }

    /// Starts node `i` again without waiting, because without a quorum it does not serve.
    pub async fn restart_unready(&self, i: usize) {
        let place = self.places[i];
        // The previous run may release its sockets and databases a moment later.
        let node = eventually("a node that starts", async || {
            let client = StdListener::bind(place.client).ok()?;
            let peer = StdListener::bind(place.peer).ok()?;
            self.start_node(Clock::system(), i, client, peer).await.ok()
        })
        .await;
        self.put(i, node);
    }

    /// Waits until node `i` fails, stops it as its process would, and returns the reason.
    pub async fn failed(&self, i: usize) -> String {
        let node = self.take(i);
        let why = timeout(PATIENCE, node.failed()).await;
        node.abort().await;
        why.expect("the node goes on")
    }

    /// Serves `/ws` of node `i` on one more port, with other times. Returns the base URL.
    pub async fn serve_ws(&self, i: usize, options: ws::ws_state::SessionOptions) -> String {
        let services = self.services(i);
        let serve = async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let (shutdown, tasks) = (services.lifetime.shutdown.clone(), services.lifetime.tasks.clone());
            let router = ws::route::route_with(services.services.clone(), services.ws(), options);
            let routes = http::serve::Routes::new(router);
            tokio::spawn(http::serve::serve(listener, routes, shutdown, tasks));
            url
        };
        self.runtime().spawn(serve).await.unwrap()
    }

    async fn start_node(
        &self,
        clock: Clock,
        i: usize,
        client: StdListener,
        peer: StdListener,
    ) -> anyhow::Result<RunningNode> {
        let config = self.config(i);
        let start = async move {
            client.set_nonblocking(true)?;
            peer.set_nonblocking(true)?;
            let (client, peer) = (TcpListener::from_std(client)?, TcpListener::from_std(peer)?);
            node::start_at(clock, config, client, peer).await
        };
        self.runtime().spawn(start).await.unwrap()
    }

    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().unwrap()
    }

    /// The principal of the admin key.
    pub async fn admin(&self) -> Principal {
        let services = self.services(self.running()[0]);
        let hash = services.secrets.key_hash(&self.admin_key());
        let key = eventually("an admin key in the state", async || {
            let state = services.fresh_state().await?;
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

    /// Changes the settings of nodes that start from now on.
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
            // The tests run on a full disk too.
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

impl Drop for TestCluster {
    fn drop(&mut self) {
        let nodes: Vec<RunningNode> = self.running().into_iter().map(|i| self.take(i)).collect();
        let runtime = self.runtime.take().unwrap();
        let failed = std::thread::panicking();
        let stop = move || {
            let ended = runtime.block_on(async {
                let all = nodes.into_iter().map(|node| async move {
                    match failed {
                        true => node.abort().await,
                        false => node.stop().await,
                    }
                });
                timeout(PATIENCE, join_all(all)).await
            });
            runtime.shutdown_timeout(PATIENCE);
            ended.is_ok()
        };
        // A thread of its own: the test's thread may belong to a runtime, which must not block on another one.
        let stopped = std::thread::spawn(stop).join();
        // A second panic would end the process and hide the first one.
        assert!(
            failed || matches!(stopped, Ok(true)),
            "the nodes do not stop: {stopped:?}"
        );
    }
}
