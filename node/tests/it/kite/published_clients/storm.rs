//! The cluster, its load and its faults.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentpost_node::server::ws;
use agentpost_proto::id::{MessageId, TeamId};
use agentpost_raft_store::core::query;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::common::web::{Call, Team};
use crate::common::{TestCluster, eventually, read_state};

/// The agents that receive messages.
pub const AGENTS: [&str; 4] = ["old", "rig", "busy", "cli"];
/// The faults; the seed decides their order.
const FAULTS: [Fault; 5] = [
    Fault::Transfer,
    Fault::StopLeader,
    Fault::Transfer,
    Fault::KillLeader,
    Fault::KillFollower,
];
/// The number of sends that must succeed between two faults.
const BETWEEN_FAULTS: usize = 60;

#[derive(Debug, Clone, Copy)]
enum Fault {
    Transfer,
    StopLeader,
    KillLeader,
    KillFollower,
}

pub struct Storm {
    pub cluster: TestCluster,
    pub team: Team,
    /// The base URLs at which the nodes serve `/ws` with short times. A restarted node gets a new one.
    doors: Vec<Mutex<String>>,
    seed: u64,
    /// Ids of acknowledged sends, by receiver.
    accepted: Mutex<BTreeMap<&'static str, BTreeSet<MessageId>>>,
    count: AtomicUsize,
    /// Faults and load are over, so clients may read to the end.
    calm: AtomicBool,
    /// Cancelled when the clients must end.
    pub over: CancellationToken,
}

/// Options with short times instead of minutes.
fn hasty() -> ws::ws_state::SessionOptions {
    ws::ws_state::SessionOptions {
        ping_every: Duration::from_millis(200),
        implied_after: Duration::from_millis(1_500),
        look_every: Duration::from_millis(100),
        ..ws::ws_state::SessionOptions::default()
    }
}

impl Storm {
    pub async fn start(seed: u64) -> Arc<Self> {
        let cluster = TestCluster::start(3).await;
        let team = Team::create(&cluster.url(0), &cluster.admin_key(), "storm").await;
        let mut doors = Vec::new();
        for node in 0..3 {
            doors.push(Mutex::new(cluster.serve_ws(node, hasty()).await));
        }
        Arc::new(Storm {
            cluster,
            team,
            doors,
            seed,
            accepted: Mutex::default(),
            count: AtomicUsize::new(0),
            calm: AtomicBool::new(false),
            over: CancellationToken::new(),
        })
    }

    /// A random generator for one part of the test.
    pub fn rng(&self, part: u64) -> StdRng {
        StdRng::seed_from_u64(self.seed << 8 | part)
    }

    pub fn team_id(&self) -> TeamId {
        self.team.id.parse().unwrap()
    }

    pub fn door(&self, node: usize) -> String {
        self.doors[node % self.doors.len()].lock().unwrap().clone()
    }

    pub fn is_calm(&self) -> bool {
        self.calm.load(Ordering::Relaxed)
    }

    /// The stored seq of a cursor; `None` if it cannot be read now.
    pub async fn stored(&self, agent: &str, client_id: &str) -> Option<u64> {
        let node = *self.cluster.running().first()?;
        let state = self.cluster.services(node).fresh_state().await?;
        let cursor = query::inbox::cursor(&*state, self.team_id(), agent, client_id).unwrap();
        Some(cursor.map_or(0, |cursor| cursor.seq))
    }

    /// Sends once. After an error the message may be stored or not.
    pub async fn send(&self, node: usize, to: &'static str, body: &str) -> Result<(), String> {
        let mail = json!({ "from": "sender", "to": to, "body": body });
        let call = Call::post("/api/v1/agents/messages", &mail).bearer(&self.team.key);
        let answer = call
            .once(&format!("{to} {body}"))
            .try_to(&self.cluster.url(node))
            .await?;
        match answer.status {
            200 => {
                let id: MessageId = answer.body["id"].as_str().unwrap().parse().unwrap();
                self.accepted.lock().unwrap().entry(to).or_default().insert(id);
                Ok(())
            }
            503 | 504 => Err(answer.body.to_string()),
            other => panic!("{other}: {}", answer.body),
        }
    }

    /// Sends to all agents until the faults are over.
    pub async fn rage(self: &Arc<Self>) {
        let quiet = CancellationToken::new();
        let load: Vec<_> = (0..AGENTS.len())
            .map(|at| {
                let (storm, quiet) = (Arc::clone(self), quiet.clone());
                tokio::spawn(async move { storm.load(AGENTS[at], at as u64, quiet).await })
            })
            .collect();
        let mut rng = self.rng(100);
        let mut faults = FAULTS;
        faults.shuffle(&mut rng);
        for fault in faults {
            self.sent(BETWEEN_FAULTS).await;
            self.fault(fault, &mut rng).await;
        }
        self.sent(BETWEEN_FAULTS).await;
        quiet.cancel();
        for sender in load {
            sender.await.unwrap();
        }
        self.calm.store(true, Ordering::Relaxed);
    }

    async fn load(&self, to: &'static str, part: u64, quiet: CancellationToken) {
        let mut rng = self.rng(part);
        let mut number = 0;
        while !quiet.is_cancelled() {
            let body = format!("{to}-{number}");
            number += 1;
            // Repeat the message on any node until it is accepted.
            while self.send(rng.random_range(0..3), to, &body).await.is_err() {
                sleep(Duration::from_millis(50)).await;
            }
            self.count.fetch_add(1, Ordering::Relaxed);
            sleep(Duration::from_millis(rng.random_range(0..60))).await;
        }
    }

    /// Waits until `more` further sends have succeeded.
    async fn sent(&self, more: usize) {
        let until = self.count.load(Ordering::Relaxed) + more;
        eventually("sends that succeed", async || {
            (self.count.load(Ordering::Relaxed) >= until).then_some(())
        })
        .await;
    }

    /// Transfers leadership, or ends a node and restarts it after the others have accepted more messages.
    async fn fault(&self, fault: Fault, rng: &mut StdRng) {
        let leader = self.cluster.leader().await;
        let follower = (leader + rng.random_range(1..3)) % 3;
        let node = match fault {
            Fault::Transfer => {
                // The leader may lose its leadership meanwhile, which serves the test too.
                let _ = self
                    .cluster
                    .services(leader)
                    .cluster
                    .transfer(follower as u64 + 1)
                    .await;
                return;
            }
            Fault::StopLeader | Fault::KillLeader => leader,
            Fault::KillFollower => follower,
        };
        match fault {
            Fault::StopLeader => self.cluster.stop_node(node).await,
            _ => self.cluster.kill(node).await,
        }
        self.sent(BETWEEN_FAULTS).await;
        self.cluster.restart(node).await;
        let door = self.cluster.serve_ws(node, hasty()).await;
        *self.doors[node].lock().unwrap() = door;
    }

    /// The seqs of all messages of an agent, or of the team. Asserts that every accepted message is among them.
    pub async fn mail(&self, agent: Option<&str>) -> Vec<u64> {
        let state = read_state(&self.cluster.services(self.cluster.running()[0])).await;
        let team = self.team_id();
        let Some(agent) = agent else {
            let all = query::inbox::team_after(&*state, team, 0, usize::MAX).unwrap();
            return all.into_iter().map(|message| message.seq).collect();
        };
        let items = query::inbox::after(&*state, team, agent, 0, usize::MAX).unwrap();
        let ids: BTreeSet<MessageId> = items
            .iter()
            .map(|item| MessageId::from_slice(&item.message.id).unwrap())
            .collect();
        let accepted = self.accepted.lock().unwrap().get(agent).cloned().unwrap_or_default();
        assert!(accepted.is_subset(&ids), "an acknowledged send is lost");
        items.into_iter().map(|item| item.seq).collect()
    }

    /// Stops the cluster. All clients must have ended.
    pub async fn end(self: Arc<Self>) {
        drop(Arc::into_inner(self).expect("all clients have ended"));
    }
}
