//! Reads run on a pool of their own, of which a team has at most half: they delay neither Raft nor other teams.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use agentpost_node::shard::read_pool::{ReadRefused, Share};
use agentpost_testkit::eventually;
use futures::future::join_all;
use parking_lot::Mutex;
use serde_json::json;

use crate::common::web::{Call, mail};
use crate::common::{NodeHandles, TestCluster, TestTeam};

/// More reads than the pool has places.
const MANY: usize = 24;

/// Reads that stand still until they are let go.
struct Held {
    begun: Receiver<()>,
    release: Vec<SyncSender<()>>,
    reads: Vec<tokio::task::JoinHandle<Result<(), ReadRefused>>>,
}

impl Held {
    fn by(node: &NodeHandles, share: Share) -> Self {
        let (begin, begun) = sync_channel(MANY);
        let mut held = Held {
            begun,
            release: Vec::new(),
            reads: Vec::new(),
        };
        for _ in 0..MANY {
            let (release, released) = sync_channel(1);
            let (state, begin, released) = (node.reader.local(), begin.clone(), Arc::new(Mutex::new(released)));
            held.release.push(release);
            held.reads.push(tokio::spawn(async move {
                let read = state.read(share, move |_| {
                    begin.send(()).unwrap();
                    // It ends on its own after a while, so that a test fails and does not hang.
                    let _ = released.lock().recv_timeout(Duration::from_secs(60));
                    Ok::<_, ReadRefused>(())
                });
                read.await
            }));
        }
        held
    }

    /// How many run now.
    async fn running(&self, at_least: usize) -> usize {
        let mut running = 0;
        eventually("reads that run", async || {
            running += self.begun.try_iter().count();
            (running >= at_least).then_some(())
        })
        .await;
        running
    }

    async fn let_go(self) {
        for release in &self.release {
            let _ = release.send(());
        }
        for read in join_all(self.reads).await {
            assert_eq!(read.unwrap(), Ok(()));
        }
    }
}

async fn list(url: &str, team: &TestTeam) -> usize {
    let listed = Call::get("/v1/messages").key(&team.key).agent("b").to(url).await.ok();
    listed["messages"].as_array().unwrap().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_full_of_reads_delays_neither_raft_nor_writes() {
    let cluster = TestCluster::start(3).await;
    let team = cluster.team("readers").await;
    let leader = cluster.leader().await;
    let node = cluster.services(leader);
    let term = node.cluster.this_node.status().term;
    let held = [Held::by(&node, Share::Team(team.id)), Held::by(&node, Share::Node)];
    assert_eq!(held[0].running(4).await, 4, "half of the places");
    assert_eq!(held[1].running(4).await, 4, "the other half");
    let reading = tokio::spawn({
        let (url, team) = (cluster.url(leader), team.clone());
        async move { list(&url, &team).await }
    });
    for n in 0..20 {
        let sent = Call::post("/v1/messages", &mail("b", &json!({ "n": n })));
        sent.key(&team.key).agent("a").to(&cluster.url(leader)).await.ok();
    }
    // Longer than the leader's lease and an election.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let status = node.cluster.this_node.status();
    assert_eq!((status.role.as_str(), status.term), ("leader", term));
    assert!(!reading.is_finished(), "a list waits for its turn");
    for held in held {
        held.let_go().await;
    }
    assert_eq!(reading.await.unwrap(), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_team_that_reads_much_leaves_half_of_the_pool_to_others() {
    let cluster = TestCluster::start(1).await;
    let (greedy, other) = (cluster.team("greedy").await, cluster.team("other").await);
    let held = Held::by(&cluster.services(0), Share::Team(greedy.id));
    assert_eq!(held.running(4).await, 4);
    assert_eq!(list(&cluster.url(0), &other).await, 0, "answered while the others wait");
    assert_eq!(held.running(0).await, 0, "no more of them began");
    held.let_go().await;
}
