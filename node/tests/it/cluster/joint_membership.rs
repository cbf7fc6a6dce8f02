//! A change of the voters whose leader died between its two entries is finished by the next leader.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use agentpost_node::base::clock::{Clock, IdSource};
use agentpost_node::base::config::Config;
use agentpost_node::base::metrics::Metrics;
use agentpost_node::base::owner;
use agentpost_node::base::secrets::{self, Secrets};
use agentpost_node::base::space::Space;
use agentpost_node::base::task_watch::TaskWatch;
use agentpost_node::net::dial::Dialer;
use agentpost_node::net::forward::Forwarder;
use agentpost_node::net::handshake::Identity;
use agentpost_node::net::lives::Lives;
use agentpost_node::net::network::Network;
use agentpost_node::net::snapshot::SendOptions;
use agentpost_node::node::quarantine;
use agentpost_node::shard::cluster_time::ClusterTime;
use agentpost_node::shard::drain::Drain;
use agentpost_node::shard::leadership::Leadership;
use agentpost_node::shard::members::{Change, ChangeError, Members};
use agentpost_node::shard::proposer::{Proposer, ProposerHandles};
use agentpost_node::shard::reader::Reader;
use agentpost_node::shard::this_node::ThisNode;
use agentpost_node::shard::timekeeper::Timekeeper;
use agentpost_node::shard::wall_time::WallTime;
use agentpost_node::shard::{Raft, raft_config};
use agentpost_raft_store::disk::open;
use agentpost_raft_store::disk::state::StateHandle;
use agentpost_raft_store::disk::types::Member;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// Between two tries.
const RETRY: Duration = Duration::from_millis(20);

/// A Raft group of one node, without the node around it.
struct Group {
    raft: Raft,
    state: StateHandle,
    proposer: Proposer,
    cluster_time: ClusterTime,
    reader: Reader,
    timekeeper: Timekeeper,
    members: Members,
    _dir: tempfile::TempDir,
}

impl Group {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (data, secret) = (dir.path().join("data"), dir.path().join("secret"));
        secrets::write_private(&secret, &[7; 32]).unwrap();
        let text = format!("[node]\ndata_dir = {data:?}\n[cluster]\nsecret_file = {secret:?}\n");
        let config = Config::from_parts("test", &text, []).unwrap();
        let secrets = Secrets::load(&config.cluster.secret_file).unwrap();
        let (clock, metrics) = (Clock::system(), Metrics::new());
        let ids = IdSource::new(clock.clone());

        let options = quarantine::look(&config, &secrets).unwrap();
        let life = owner::claim(&config, &secrets, &ids).unwrap().life();
        let stores = open::shard(&data, options).unwrap();
        let state = stores.state.clone();
        let identity = Identity::new(&secrets, config.node.id, Lives::in_memory(life), ids.clone());
        let dialer = Dialer::new(identity, tokio::runtime::Handle::current());
        let sending = SendOptions {
            bytes_per_s: config.raft.snapshot_send_bytes_per_s,
        };
        let network = Network::new(dialer.clone(), sending, metrics.clone());
        let settings = Arc::new(raft_config(&config.raft).unwrap());
        let raft = Raft::new(config.node.id, settings, network, stores.log, stores.machine).await;
        let raft = raft.unwrap();

        let forwarder = Forwarder::new(dialer.clone(), metrics.clone());
        let wall_time = WallTime::new(clock.clone());
        let cluster_time = ClusterTime::default();
        let reader = Reader::new(
            raft.clone(),
            state.clone(),
            forwarder.clone(),
            ids.clone(),
            metrics.clone(),
            &TaskWatch::default(),
        );
        let (proposer, hands_over) = Proposer::new(ProposerHandles {
            raft: raft.clone(),
            state: state.clone(),
            reader: reader.clone(),
            forwarder,
            cluster_time: cluster_time.clone(),
            wall_time: wall_time.clone(),
            space: Space::open(&config),
            ids,
            metrics: metrics.clone(),
        });
        tokio::spawn(hands_over);
        let this_node = ThisNode::new(raft.clone(), state.clone(), proposer.clone(), Drain::default(), clock);
        Group {
            members: Members::new(raft.clone(), this_node.clone(), reader.clone()),
            reader,
            timekeeper: Timekeeper::new(wall_time, this_node, dialer, metrics),
            raft,
            state,
            proposer,
            cluster_time,
            _dir: dir,
        }
    }

    fn leadership(&self) -> Leadership {
        Leadership {
            raft: self.raft.clone(),
            state: self.state.clone(),
            proposer: self.proposer.clone(),
            cluster_time: self.cluster_time.clone(),
            workers: vec![self.members.finisher()],
            watch: TaskWatch::default(),
        }
    }
}

fn member(port: u16) -> Member {
    Member {
        peer_addr: format!("127.0.0.1:{port}"),
        url: format!("http://127.0.0.1:{}", port + 1),
    }
}

#[tokio::test]
async fn the_next_leader_finishes_a_joint_configuration() {
    let group = Group::start().await;
    let nodes = BTreeMap::from([(1, member(3))]);
    group.raft.initialize(nodes.clone()).await.unwrap();
    // After a read the first entry of the leader is committed. Before that Raft refuses every change.
    while group.reader.linearizable().await.is_err() {
        sleep(RETRY).await;
    }
    // A leader that died between the two entries of a change leaves this behind.
    let voters = || BTreeSet::from([1]);
    let joint = openraft::Membership::new(vec![voters(), voters()], nodes).unwrap();
    let appended = group.raft.append_membership(joint, openraft::EntryPayload::Blank, []);
    appended.await.unwrap();
    assert!(group.members.is_joint());
    let add = || Change::Add {
        id: None,
        member: member(1),
    };
    let refused = group.members.change(add()).await;
    assert!(matches!(refused, Err(ChangeError::Conflict(_))), "{refused:?}");

    let shutdown = CancellationToken::new();
    let leading = tokio::spawn(group.leadership().run(shutdown.clone()));
    let timekeeping = tokio::spawn(group.timekeeper.run(shutdown.clone()));
    let added = loop {
        match group.members.change(add()).await {
            Ok((id, _)) => break id,
            Err(ChangeError::Conflict(_)) => sleep(RETRY).await,
            Err(other) => panic!("{other:?}"),
        }
    };
    assert!(added == 2 && !group.members.is_joint());
    shutdown.cancel();
    leading.await.unwrap();
    timekeeping.await.unwrap();
    group.raft.shutdown().await.unwrap();
}
