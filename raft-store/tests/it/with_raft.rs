//! The stores under a real openraft: two nodes in one process, with function calls for a network.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use agentpost_proto::command::operation::Op;
use agentpost_proto::command::{BeginEpoch, Tick, reply};
use agentpost_raft_store::core::kv::{Kv, Order, Row};
use agentpost_raft_store::core::query;
use agentpost_raft_store::disk::log_store::LogMetrics;
use agentpost_raft_store::disk::open;
use agentpost_raft_store::disk::options::Options;
use agentpost_raft_store::disk::snapshot::{Snapshot, SnapshotData, Snapshots};
use agentpost_raft_store::disk::state::StateHandle;
use agentpost_raft_store::disk::state_machine::StateMachine;
use agentpost_raft_store::disk::types::{Member, Proposal, TypeConfig, Vote};
use agentpost_testkit::{commands, eventually};
use futures::{StreamExt, stream};
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::v2::RaftNetworkV2;
use openraft::network::{RPCOption, RaftNetworkFactory};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse};
use openraft::{AnyError, Config, LogIdOptionExt, SnapshotPolicy};
use parking_lot::{Condvar, Mutex};
use tempfile::TempDir;

type Raft = openraft::Raft<TypeConfig, StateMachine>;

/// What a link calls on another node.
type Peer = (Raft, Arc<Snapshots>);

/// Every running node, by id.
#[derive(Clone, Default)]
struct Router(Arc<Mutex<BTreeMap<u64, Peer>>>);

struct Link {
    router: Router,
    target: u64,
}

fn unreachable_node(error: impl ToString) -> Unreachable<TypeConfig> {
    Unreachable::new(&AnyError::error(error))
}

impl Link {
    fn target(&self) -> Result<Peer, Unreachable<TypeConfig>> {
        let nodes = self.router.0.lock();
        nodes.get(&self.target).cloned().ok_or_else(|| unreachable_node("down"))
    }
}

impl RaftNetworkFactory<TypeConfig> for Router {
    type Network = Link;

    async fn new_client(&mut self, target: u64, _node: &Member) -> Link {
        let router = self.clone();
        Link { router, target }
    }
}

impl RaftNetworkV2<TypeConfig> for Link {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let (raft, _) = self.target()?;
        Ok(raft.append_entries(rpc).await.map_err(unreachable_node)?)
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let (raft, _) = self.target()?;
        Ok(raft.vote(rpc).await.map_err(unreachable_node)?)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        _cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let (raft, snapshots) = self.target()?;
        let data = snapshot.snapshot;
        let mut receiver = snapshots.receive(data.meta().clone(), &[]).map_err(unreachable_node)?;
        let mut chunks = data.chunks(&[]);
        while let Some(chunk) = chunks.next().await {
            let (file, bytes) = chunk.map_err(unreachable_node)?;
            receiver.chunk(file, &bytes).map_err(unreachable_node)?;
        }
        let received = receiver.finish().map_err(unreachable_node)?.into_snapshot();
        let received = received.map_err(unreachable_node)?;
        Ok(raft
            .install_full_snapshot(vote, received)
            .await
            .map_err(unreachable_node)?)
    }
}

struct Node {
    raft: Raft,
    state: StateHandle,
    log: Arc<LogMetrics>,
    effects: Arc<AtomicUsize>,
    installed: Arc<AtomicUsize>,
}

async fn start(id: u64, dir: &Path, router: &Router) -> Node {
    start_with(id, dir, router, Gate::default()).await
}

/// A place at which apply stands still while the gate is held. It opens after a time, so that a test fails and does not
/// hang.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    fn hold(&self, held: bool) {
        *self.0.0.lock() = held;
        self.0.1.notify_all();
    }

    fn pass(&self) {
        let mut held = self.0.0.lock();
        self.0
            .1
            .wait_while_for(&mut held, |held| *held, Duration::from_secs(60));
    }
}

async fn start_with(id: u64, dir: &Path, router: &Router, gate: Gate) -> Node {
    let config = Config {
        heartbeat_interval: 100,
        election_timeout_min: 1_000,
        election_timeout_max: 2_000,
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: 0,
        ..Config::default()
    };
    let mut stores = open::shard(&dir.join(id.to_string()), Options::default()).unwrap();
    let (effects, installed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counted = effects.clone();
    stores.machine.set_effects(Arc::new(move |effects| {
        counted.fetch_add(effects.len(), Ordering::Relaxed);
        gate.pass();
    }));
    let counted = installed.clone();
    stores.machine.set_installed(Arc::new(move || {
        counted.fetch_add(1, Ordering::Relaxed);
    }));
    let (log, state, snapshots) = (stores.log.metrics(), stores.state, stores.snapshots);
    let config = Arc::new(config.validate().unwrap());
    let raft = Raft::new(id, config, router.clone(), stores.log, stores.machine)
        .await
        .unwrap();
    router.0.lock().insert(id, (raft.clone(), snapshots));
    Node {
        raft,
        state,
        log,
        effects,
        installed,
    }
}

impl Node {
    async fn write(&self, op: Op) -> Option<reply::Reply> {
        let proposal = Proposal::new(commands::encode(1_000, 0, 0, None, op));
        self.raft.client_write(proposal).await.unwrap().data.reply
    }

    async fn ticks(&self, count: usize) {
        let replies = stream::iter(0..count)
            .map(|_| self.write(Op::Tick(Tick {})))
            .buffer_unordered(64);
        replies
            .for_each(|reply| async move { assert!(matches!(reply, Some(reply::Reply::Done(_)))) })
            .await;
    }

    fn rows(&self) -> Vec<Row> {
        let db = self.state.current();
        db.range(vec![]..vec![0xff], Order::Ascending)
            .map(Result::unwrap)
            .collect()
    }

    fn applied(&self) -> u64 {
        query::applied(&*self.state.current()).unwrap().last.unwrap().index
    }

    async fn snapshot_and_purge(&self) {
        let index = self.applied();
        self.raft.trigger().snapshot().await.unwrap();
        let wait = self.raft.wait(Some(Duration::from_secs(20)));
        wait.metrics(|m| m.snapshot.is_some_and(|id| id.index >= index), "snapshot")
            .await
            .unwrap();
        self.raft.trigger().purge_log(index).await.unwrap();
        let wait = self.raft.wait(Some(Duration::from_secs(20)));
        wait.metrics(|m| m.purged.is_some_and(|id| id.index == index), "purge")
            .await
            .unwrap();
    }
}

/// Stops a node and waits until its databases are closed.
async fn stop(id: u64, node: Node, router: &Router) {
    router.0.lock().remove(&id);
    node.raft.shutdown().await.unwrap();
    let Node { raft, state, log, .. } = node;
    drop((raft, state));
    // The log holds the other half of its metrics for as long as it is open.
    while Arc::strong_count(&log) > 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_snapshots_purges_and_a_learner_that_catches_up() {
    let dir = TempDir::new().unwrap();
    let router = Router::default();
    let leader = start(1, dir.path(), &router).await;
    leader
        .raft
        .initialize(BTreeMap::from([(1, Member::default())]))
        .await
        .unwrap();
    let wait = leader.raft.wait(Some(Duration::from_secs(20)));
    wait.current_leader(1, "the only node leads").await.unwrap();

    let key = leader.write(commands::bootstrap("root")).await;
    assert!(matches!(key, Some(reply::Reply::Key(_))), "{key:?}");
    let again = leader.write(commands::bootstrap("root2")).await;
    assert!(matches!(again, Some(reply::Reply::Rejection(_))), "{again:?}");
    let term = leader.raft.metrics().borrow_watched().current_term;
    leader.write(Op::BeginEpoch(BeginEpoch { node: 1, term })).await;
    leader.ticks(500).await;
    // Effects of an entry come after its reply, but before those of the next batch.
    assert_eq!(leader.effects.load(Ordering::Relaxed), 1, "the epoch began");
    assert!(
        leader.log.syncs() < leader.log.entries(),
        "concurrent writes share flushes"
    );
    leader.snapshot_and_purge().await;
    leader.ticks(20).await;

    // The log of its first entries is gone: the learner needs the snapshot.
    let learner = start(2, dir.path(), &router).await;
    leader.raft.add_learner(2, Member::default(), true).await.unwrap();
    let applied = leader.applied();
    let caught_up = learner.raft.wait(Some(Duration::from_secs(20)));
    caught_up
        .applied_index_at_least(Some(applied), "caught up")
        .await
        .unwrap();
    assert_eq!(learner.installed.load(Ordering::Relaxed), 1);
    assert_eq!(learner.rows(), leader.rows());

    // Both go on after a restart, with everything that was acknowledged.
    let rows = leader.rows();
    stop(1, leader, &router).await;
    stop(2, learner, &router).await;
    let leader = start(1, dir.path(), &router).await;
    let learner = start(2, dir.path(), &router).await;
    let wait = leader.raft.wait(Some(Duration::from_secs(20)));
    wait.current_leader(1, "leads again").await.unwrap();
    leader.ticks(10).await;
    let applied = leader.applied();
    let caught_up = learner.raft.wait(Some(Duration::from_secs(20)));
    caught_up
        .applied_index_at_least(Some(applied), "caught up")
        .await
        .unwrap();
    assert_eq!(learner.rows(), leader.rows());
    assert_eq!(learner.rows().len(), rows.len());
    assert_eq!(learner.installed.load(Ordering::Relaxed), 0, "from the log this time");
}

/// The leader's runtime has one thread, so whatever blocks that thread stops its heartbeats.
#[test]
fn a_leader_whose_apply_stands_still_keeps_its_leadership_and_commits() {
    let dir = TempDir::new().unwrap();
    let (router, gate) = (Router::default(), Gate::default());
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(1).enable_all().build().unwrap()
    };
    let (first, others) = (runtime(), runtime());
    let run = |runtime: &tokio::runtime::Runtime, id, gate| {
        let (dir, router) = (dir.path().to_owned(), router.clone());
        runtime.block_on(runtime.spawn(async move { start_with(id, &dir, &router, gate).await }))
    };
    let leader = Arc::new(run(&first, 1, gate.clone()).unwrap());
    let followers: Vec<_> = [2, 3].map(|id| run(&others, id, Gate::default()).unwrap()).into();
    let patience = Some(Duration::from_secs(60));
    runtime().block_on(async {
        leader
            .raft
            .initialize(BTreeMap::from([(1, Member::default())]))
            .await
            .unwrap();
        leader.raft.wait(patience).current_leader(1, "leads").await.unwrap();
        // Members can be added once the first membership is committed.
        leader.ticks(1).await;
        for id in [2, 3] {
            leader.raft.add_learner(id, Member::default(), true).await.unwrap();
        }
        leader.raft.change_membership([1, 2, 3], false).await.unwrap();
        let before = leader.raft.metrics().borrow_watched().clone();

        gate.hold(true);
        let (term, applied) = (before.current_term, leader.applied());
        let write = || {
            let leader = Arc::clone(&leader);
            tokio::spawn(async move { leader.write(Op::BeginEpoch(BeginEpoch { node: 1, term })).await })
        };
        // The first one has its reply before apply stops at its effect; the others have to wait.
        let effects = leader.effects.load(Ordering::Relaxed);
        let mut writes = vec![write()];
        eventually("the effect at which apply stops", async || {
            (leader.effects.load(Ordering::Relaxed) > effects).then_some(())
        })
        .await;
        writes.extend((0..7).map(|_| write()));
        let committed = leader.raft.wait(patience);
        let all = |index: Option<u64>| index >= Some(applied + 8);
        committed
            .metrics(|m| all(m.cluster_committed.index()), "committed")
            .await
            .unwrap();
        // Longer than the lease and the longest election timeout together.
        tokio::time::sleep(Duration::from_secs(6)).await;
        for node in followers.iter().chain([&*leader]) {
            let metrics = node.raft.metrics().borrow_watched().clone();
            assert_eq!((metrics.current_leader, metrics.current_term), (Some(1), term));
        }
        assert_eq!(leader.applied(), applied + 1, "apply stands still");
        gate.hold(false);
        for write in writes {
            assert!(matches!(write.await.unwrap(), Some(reply::Reply::Done(_))));
        }
        leader.raft.shutdown().await.unwrap();
        for follower in &followers {
            follower.raft.shutdown().await.unwrap();
        }
    });
}
