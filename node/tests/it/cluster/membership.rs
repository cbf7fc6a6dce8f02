//! Nodes that join and leave a running cluster: which become members, which are refused, and what happens to a node
//! that lost its disk.

use std::net::SocketAddr;
use std::path::PathBuf;

use agentpost_node::base::clock::{Clock, IdSource};
use agentpost_node::base::config::Config;
use agentpost_node::base::owner;
use agentpost_node::base::secrets::Secrets;
use agentpost_node::net::dial::{Dialer, Purpose};
use agentpost_node::net::handshake::Identity;
use agentpost_node::net::lives::Lives;
use agentpost_node::node::{self, RunningNode};
use agentpost_node::shard::members::{Change, ChangeError};
use agentpost_proto::peer::StatusRequest;
use agentpost_raft_store::disk::types::Member;
use serde_json::json;
use tokio::net::TcpListener;

use crate::common::office::Office;
use crate::common::web::{Call, Team, mail};
use crate::common::webhooks::WebhookOffice;
use crate::common::{NodeHandles, TestCluster, eventually};

/// A node that is not a founder of the cluster.
struct Extra {
    node: RunningNode,
    member: Member,
    dir: PathBuf,
}

impl Extra {
    /// Starts the node; it is no member yet.
    async fn start(cluster: &TestCluster, id: u64) -> Self {
        let bind = || TcpListener::bind("127.0.0.1:0");
        let (client, peer) = (bind().await.unwrap(), bind().await.unwrap());
        let at = |listener: &TcpListener| listener.local_addr().unwrap();
        let member = member(at(&peer), at(&client));
        let dir = cluster.data_dir(0).with_file_name(format!("extra-{id}"));
        let rows = cluster.urls().into_iter().enumerate().map(|(i, url)| {
            let peer = cluster.peer_addr(i);
            format!("{{ id = {}, peer_addr = \"{peer}\", url = \"{url}\" }}", i + 1)
        });
        let own = format!(
            "{{ id = {id}, peer_addr = \"{}\", url = \"{}\" }}",
            member.peer_addr, member.url
        );
        let rows: Vec<String> = rows.chain([own]).collect();
        let text = format!(
            "[node]\nid = {id}\ndata_dir = {dir:?}\n[cluster]\nsecret_file = {:?}\nnodes = [{}]\n\
             [raft]\nelection_min_ms = 500\nelection_max_ms = 1000\n\
             [storage]\nmin_free_bytes = 0\nmin_free_percent = 0\nballast_bytes = 0\n",
            dir.with_file_name("secret"),
            rows.join(", ")
        );
        let config = Config::from_parts("test", &text, []).unwrap();
        let node = node::start_with(config, client, peer).await.unwrap();
        Extra { node, member, dir }
    }

    fn add(&self, id: Option<u64>) -> Change {
        let member = self.member.clone();
        Change::Add { id, member }
    }
}

fn member(peer: SocketAddr, client: SocketAddr) -> Member {
    Member {
        peer_addr: peer.to_string(),
        url: format!("http://{client}"),
    }
}

/// Repeats a change until it is done. Only a conflict whose reason contains `meanwhile` is repeated.
async fn changed(services: &NodeHandles, change: Change, meanwhile: &str) -> u64 {
    eventually("a change of the members", async || {
        match services.cluster.change_members(change.clone()).await {
            Ok((id, _)) => Some(id),
            Err(ChangeError::Conflict(why)) if why.contains(meanwhile) => None,
            Err(other) => panic!("{other:?}"),
        }
    })
    .await
}

async fn conflict(services: &NodeHandles, change: Change) -> String {
    match services.cluster.change_members(change).await {
        Err(ChangeError::Conflict(why)) => why,
        other => panic!("{other:?}"),
    }
}

/// The ids and roles of the members as a node knows them.
async fn roles(services: &NodeHandles) -> Vec<(u64, Option<String>)> {
    let status = services.cluster.status().await;
    status.nodes.into_iter().map(|node| (node.id, node.role)).collect()
}

async fn ids(services: &NodeHandles) -> Vec<u64> {
    roles(services).await.into_iter().map(|(id, _)| id).collect()
}

/// The answer of a node to a caller that claims to be node `id` in this life: the node's id, or the cause of the
/// refusal.
async fn greeted(address: SocketAddr, target: u64, id: u64, life: [u8; 16]) -> Result<u64, String> {
    let identity = Identity::new(
        &Secrets::derive(&[7; 32]),
        id,
        Lives::in_memory(life),
        IdSource::new(Clock::system()),
    );
    let mut client =
        Dialer::new(identity, tokio::runtime::Handle::current()).client(target, &address.to_string(), Purpose::Control);
    match client.status(StatusRequest { shard: 0 }).await {
        Ok(status) => Ok(status.into_inner().node),
        Err(refused) => {
            let mut cause: &dyn std::error::Error = &refused;
            while let Some(source) = cause.source() {
                cause = source;
            }
            Err(cause.to_string())
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_added_promoted_and_removed_and_its_id_never_comes_back() {
    let cluster = TestCluster::start_with(3, WebhookOffice::SETTINGS).await;
    let follower = cluster.services(cluster.follower().await);
    let extra = Extra::start(&cluster, 4).await;
    assert!(matches!(
        follower.cluster.change_members(Change::Promote(4)).await,
        Err(ChangeError::NotFound(_))
    ));
    let hook = format!("{}/hook", extra.member.url);
    assert_eq!(follower.egress.check_url(&hook), Ok(()), "a port like any other");
    assert_eq!(changed(&follower, extra.add(None), "-").await, 4);
    eventually("a closed port", async || follower.egress.check_url(&hook).err()).await;
    eventually("a learner", async || {
        let learner = (4, Some("learner".to_owned()));
        roles(&follower).await.contains(&learner).then_some(())
    })
    .await;
    assert!(
        conflict(&follower, extra.add(Some(5))).await.contains("remove 4"),
        "its addresses are in use"
    );
    changed(&follower, Change::Promote(4), "node 4").await;
    assert_eq!(
        changed(&follower, Change::Promote(4), "-").await,
        4,
        "twice is the same"
    );
    let services = NodeHandles::of(&extra.node);
    eventually("a fourth node that serves", async || {
        services.cluster.ready().await.then_some(())
    })
    .await;
    let team = Team::create(&extra.member.url, &cluster.admin_key(), "a").await;
    let call = Call::post("/v1/messages", &mail("bob", &json!("hello")))
        .key(&team.key)
        .agent("al");
    call.to(&extra.member.url).await.ok();
    assert_eq!(changed(&follower, Change::Remove(4), "-").await, 4);
    eventually("a node that is gone", async || {
        (ids(&follower).await == [1, 2, 3]).then_some(())
    })
    .await;
    let life = owner::life_in(&extra.dir).unwrap();
    for (node, address) in [
        (1, cluster.peer_addr(0)),
        (2, cluster.peer_addr(1)),
        (3, cluster.peer_addr(2)),
    ] {
        eventually("a refusal", async || {
            let refusal = greeted(address, node, 4, life).await.err()?;
            assert!(refusal.contains("not a member"), "{refusal}");
            Some(())
        })
        .await;
    }
    // Its open connections end as well, so it hears no leader and cannot ask for one.
    eventually("a removed node that does not serve", async || {
        (!services.cluster.ready().await).then_some(())
    })
    .await;
    assert!(conflict(&follower, extra.add(Some(4))).await.contains("used already"));
    assert_eq!(changed(&follower, Change::Remove(4), "-").await, 4, "twice is the same");
    assert!(matches!(
        follower.cluster.change_members(Change::Remove(9)).await,
        Err(ChangeError::NotFound(_))
    ));
    assert_eq!(changed(&follower, extra.add(None), "-").await, 5);
    extra.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_removed_hands_over_first() {
    let cluster = TestCluster::start(3).await;
    let leader = cluster.leader().await;
    let (follower, removed) = (cluster.services(cluster.follower().await), leader as u64 + 1);
    assert_eq!(changed(&follower, Change::Remove(removed), "-").await, removed);
    let status = eventually("a leader of two", async || {
        let status = follower.cluster.status().await;
        (status.nodes.len() == 2 && status.leader.is_some_and(|id| id != removed)).then_some(status)
    })
    .await;
    assert!(status.nodes.iter().all(|node| node.id != removed));
    eventually("two that serve", async || follower.cluster.ready().await.then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_would_end_the_majority_is_refused() {
    let cluster = TestCluster::start(3).await;
    let leader = cluster.leader().await;
    let services = cluster.services(leader);
    let others: Vec<usize> = (0..3).filter(|i| *i != leader).collect();
    let (dead, alive) = (others[0] as u64 + 1, others[1] as u64 + 1);
    cluster.kill(others[0]).await;
    eventually("a leader that gets no answer", async || {
        let known = services.cluster.status().await;
        known
            .nodes
            .iter()
            .find(|node| node.id == dead && node.role.is_none())
            .map(drop)
    })
    .await;
    // Its last answer counts for a second. A wait that takes longer than this on a slow machine does no harm.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    let why = conflict(&services, Change::Remove(alive)).await;
    assert!(why.contains(&format!("these do not answer: [{dead}]")), "{why}");
    let why = conflict(&services, Change::Remove(leader as u64 + 1)).await;
    assert!(why.contains("majority"), "{why}");
    assert_eq!(changed(&services, Change::Remove(dead), "-").await, dead);
    assert_eq!(
        changed(&services, Change::Remove(alive), "-").await,
        alive,
        "two of two answered"
    );
    let last = leader as u64 + 1;
    assert!(conflict(&services, Change::Remove(last)).await.contains("last voter"));
    eventually("one that serves alone", async || {
        services.cluster.ready().await.then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_operators_at_once_change_one_thing_at_a_time() {
    let cluster = TestCluster::start(3).await;
    let all: Vec<NodeHandles> = (0..3).map(|i| cluster.services(i)).collect();
    // Nobody listens at these addresses. A learner that never starts does no harm.
    let change = |n: usize| Change::Add {
        id: None,
        member: member(
            SocketAddr::from(([127, 0, 0, 1], 100 + n as u16)),
            SocketAddr::from(([127, 0, 0, 1], 200 + n as u16)),
        ),
    };
    let asked = (0..12).map(|n| all[n % 3].cluster.change_members(change(n)));
    let mut added = Vec::new();
    for (n, answer) in futures::future::join_all(asked).await.into_iter().enumerate() {
        match answer {
            Ok((id, member)) => added.push((id, member.peer_addr)),
            Err(ChangeError::Conflict(why)) => assert!(why.contains("another change"), "{n}: {why}"),
            Err(other) => panic!("{n}: {other:?}"),
        }
    }
    assert!(!added.is_empty());
    added.sort();
    let status = all[0].reader.linearizable().await.map(|_| all[0].cluster.status());
    let members = status.unwrap().await.nodes.into_iter().skip(3);
    let members: Vec<(u64, String)> = members
        .map(|node| (node.id, node.peer_url.trim_start_matches("http://").to_owned()))
        .collect();
    assert_eq!(
        members, added,
        "the members are exactly the nodes whose addition was accepted"
    );
    assert_eq!(
        members.iter().map(|(id, _)| *id).collect::<Vec<_>>(),
        (4..4 + added.len() as u64).collect::<Vec<_>>()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_its_data_is_refused_and_quarantines_itself() {
    for index in [1, 0] {
        let cluster = TestCluster::start(3).await;
        let before = ids(&cluster.services(2)).await;
        cluster.stop_node(index).await;
        let dir = cluster.data_dir(index);
        // Threads of RocksDB may still write a file.
        eventually("an empty disk", async || std::fs::remove_dir_all(&dir).ok()).await;
        cluster.restart_unready(index).await;
        let why = cluster.failed(index).await;
        assert!(why.starts_with("quarantined: ") && why.contains("wiped"), "{why}");
        let marker = std::fs::read_to_string(dir.join("QUARANTINE")).unwrap();
        assert!(marker.contains("wiped"), "{marker}");
        let rest = cluster.services(2);
        eventually("two that serve", async || rest.cluster.ready().await.then_some(())).await;
        assert_eq!(ids(&rest).await, before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_operators_change_the_members() {
    let office = Office::start(1, "").await;
    let url = office.urls[0].as_str();
    let path = "/admin/v1/cluster/members";
    let wanted = json!({ "peer_addr": "127.0.0.1:1", "url": "http://127.0.0.1:2" });
    let calls = || {
        [
            Call::post(path, &wanted),
            Call::post(format!("{path}/2/promote"), &json!({})),
            Call::delete(format!("{path}/2")),
        ]
    };
    for call in calls() {
        call.to(url).await.error(401);
    }
    for call in calls() {
        call.bearer(&office.team.key).to(url).await.error(403);
    }
    for bad in [
        json!({}),
        json!({ "peer_addr": "x", "url": "http://h:1" }),
        json!({ "peer_addr": "h:1", "url": "x" }),
    ] {
        Call::post(path, &bad).bearer(&office.admin).to(url).await.error(400);
    }
    for missing in [format!("{path}/7"), format!("{path}/x")] {
        Call::delete(&missing).bearer(&office.admin).to(url).await.error(404);
    }
    let added = Call::post(path, &wanted).bearer(&office.admin).to(url).await.ok();
    assert_eq!(
        added,
        json!({ "id": 2, "peer_addr": "127.0.0.1:1", "url": "http://127.0.0.1:2" })
    );
    let lags = Call::post(format!("{path}/2/promote"), &json!({}))
        .bearer(&office.admin)
        .to(url)
        .await;
    assert!(lags.error(409).contains("node 2"));
    let gone = Call::delete(format!("{path}/2"))
        .bearer(&office.admin)
        .to(url)
        .await
        .ok();
    assert_eq!(gone, json!({ "success": true }));
}
