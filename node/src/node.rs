//! The composition root: it starts the parts of a node in order and stops them in order. It contains no other logic.
//!
//! **Start**: the listeners are bound first, and the client port answers at once ([`client_port`]). Then the databases,
//! the Raft group and the peer port start. Until then everything but health and metrics is refused with what the start
//! is doing, and until the group has recovered, reads and writes find no quorum and get 503.
//!
//! **Stop**: all steps share one deadline.
//! 1. Refuse new requests, answer those in flight, and close sessions with a hint to resume. Running webhook calls
//!    finish; no new ones begin.
//! 2. Return the leases.
//! 3. Hand leadership over.
//! 4. Stop the leader's workers.
//! 5. Shut Raft down.
//! 6. Close the peer port.
//! 7. End the threads of Raft.
//! 8. Flush.
//!
//! When webhook calls are running, the deadline is longer by the time limit of a call, because an interrupted attempt
//! has an unknown outcome and is repeated.

pub mod bootstrap;
pub mod client_port;
pub mod dev;
mod parts;
pub mod quarantine;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use agentpost_proto::peer::peer_server::PeerServer;
use agentpost_raft_store::disk::state::StateHandle;
use anyhow::Context as _;
use axum::Router;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Server;

use self::bootstrap::Bootstrap;
use self::client_port::ClientPort;
use self::parts::{Disk, Ground, Group};
use self::quarantine::{Quarantine, Quarantined};
use crate::base::clock::{Clock, IdSource};
use crate::base::config::Config;
use crate::base::lifetime::Lifetime;
use crate::base::raft_threads::RaftThreads;
use crate::base::secrets::Secrets;
use crate::base::task_watch::TaskWatch;
use crate::cluster::leases::Leases;
use crate::cluster::presence::Presence;
use crate::cluster::status::ClusterHandle;
use crate::leader::LeaderHandles;
use crate::leader::fanout::Fanout;
use crate::leader::sweeper::Sweeper;
use crate::leader::ticker::Ticker;
use crate::net::dial::{CONNECTION_WINDOW_BYTES, Dialer, KEEPALIVE, MESSAGE_BYTES_MAX, STREAM_WINDOW_BYTES};
use crate::net::handshake::Identity;
use crate::server::burst::Bursts;
use crate::server::http;
use crate::server::http::app_state::HttpHandles;
use crate::server::peer::admission::Admission;
use crate::server::peer::listener::{self, PeerPort, PeerStream};
use crate::server::peer::service::PeerService;
use crate::server::services::Services;
use crate::server::ws;
use crate::server::ws::ws_state::WsHandles;
use crate::shard::drain::DrainGuard;
use crate::shard::leader_loss::LeaderLoss;
use crate::shard::leadership::Leadership;
use crate::shard::quorum::Quorum;
use crate::shard::this_node::DRAIN_DEADLINE;
use crate::shard::timekeeper::Timekeeper;
use crate::webhooks::caller::Caller;
use crate::webhooks::calls::{CallParts, Calls};
use crate::webhooks::egress::Egress;
use crate::webhooks::handles::WebhookHandles;
use crate::webhooks::open::OpenAttempts;
use crate::webhooks::reporter::{Recorder, Reporter};
use crate::webhooks::workers;

/// Time limit for the whole stop. Running webhook calls extend it by [`DRAIN_DEADLINE`].
const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// The part of that limit for requests in flight and sessions.
const CLIENTS_DEADLINE: Duration = Duration::from_secs(4);
/// The most concurrent calls on one connection of a peer: a few long streams, votes, and requests of operators.
const PEER_STREAMS_MAX: u32 = 64;

/// A node that serves. Dropping it does not stop it; [`RunningNode::stop`] does.
pub struct RunningNode {
    /// The address of the client port.
    pub client_addr: SocketAddr,
    /// The address of the peer port.
    pub peer_addr: SocketAddr,
    /// The services that the handlers use.
    pub services: Services,
    /// The operator's view of the cluster.
    pub cluster: ClusterHandle,
    /// The shutdown of the process.
    pub lifetime: Lifetime,
    /// The client for webhook calls.
    pub egress: Egress,
    parts: Parts,
    tasks: Tasks,
}

/// The parts that the handles are made of.
struct Parts {
    threads: RaftThreads,
    ground: Ground,
    disk: Disk,
    group: Group,
    leases: Leases,
    egress: Egress,
}

/// The background tasks, in the order in which a stop ends them.
struct Tasks {
    calls: Calls,
    leading: JoinHandle<()>,
    ends: Ends,
}

/// The handles that end background tasks.
#[derive(Clone, Default)]
struct Ends {
    /// Cancels the leader's workers and the keeper.
    workers: CancellationToken,
    /// Breaks peer connections.
    peers: CancellationToken,
    background: TaskTracker,
    /// Ends the node when a background task dies.
    watch: TaskWatch,
}

impl Ends {
    /// Starts a task that runs until the leader's workers are cancelled.
    fn run<F>(&self, name: &'static str, task: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let running = task(self.workers.clone());
        self.background.spawn(self.watch.until(&self.workers, name, running));
    }

    /// Starts a task that ends when it is done, or when Raft has ended.
    fn run_to_end(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.background.spawn(self.watch.may_end(name, task));
    }
}

/// The result of a start.
pub enum Started {
    /// A node that serves.
    Serving(Box<RunningNode>),
    /// A node that must not take part.
    Quarantined(Quarantined),
}

/// Starts a node with this configuration; returns when its ports are open.
pub async fn start(config: Config) -> anyhow::Result<Started> {
    let bind = |key: &'static str, address| async move {
        TcpListener::bind(address)
            .await
            .with_context(|| format!("{key} = {address}"))
    };
    let client = bind("node.client_addr", config.node.client_addr).await?;
    let peer = bind("node.peer_addr", config.node.peer_addr).await?;
    let port = ClientPort::open(client)?;
    match start_behind(&port, Clock::system(), config, peer).await {
        Ok(node) => {
            port.keep();
            Ok(Started::Serving(Box::new(node)))
        }
        Err(error) => {
            let reason = error.downcast::<Quarantine>()?;
            Ok(Started::Quarantined(Quarantined { port, reason }))
        }
    }
}

/// Like [`start`], with listeners that are already bound.
pub async fn start_with(config: Config, client: TcpListener, peer: TcpListener) -> anyhow::Result<RunningNode> {
    start_at(Clock::system(), config, client, peer).await
}

/// Like [`start_with`], with a clock other than the machine's. For tests.
pub async fn start_at(
    clock: Clock,
    config: Config,
    client: TcpListener,
    peer: TcpListener,
) -> anyhow::Result<RunningNode> {
    let port = ClientPort::open(client)?;
    let node = start_behind(&port, clock, config, peer).await?;
    port.keep();
    Ok(node)
}

/// Starts a node whose client port answers already.
async fn start_behind(
    port: &ClientPort,
    clock: Clock,
    config: Config,
    peer: TcpListener,
) -> anyhow::Result<RunningNode> {
    let (client_addr, peer_addr) = (port.addr, peer.local_addr()?);
    let lifetime = port.lifetime.clone();
    let secrets = Arc::new(Secrets::load(&config.cluster.secret_file)?);
    let ids = IdSource::new(clock.clone());
    let threads = RaftThreads::start()?;
    let (disk, stores) = Disk::open(config.clone(), &secrets, &ids, port.doing.clone()).await?;
    port.doing.now("the state catches up with the log");
    let ground = Ground::new(clock, config, (secrets, ids), &disk, lifetime.watch.clone());
    let egress = Egress::new(&ground.config, &[client_addr, peer_addr])?;
    let identity = Identity::new(
        &ground.secrets,
        ground.config.node.id,
        disk.lives.clone(),
        ground.ids.clone(),
    );
    let dialer = Dialer::new(identity.clone(), threads.handle().clone());
    let group = Group::start(&ground, &disk, stores, &dialer, &threads).await?;
    let services = Services {
        replica: group.replica.clone(),
        wall_time: ground.wall_time.clone(),
        ids: ground.ids.clone(),
        secrets: Arc::clone(&ground.secrets),
        bursts: Arc::new(Bursts::new(&ground.config.limits)),
        metrics: ground.metrics.clone(),
    };
    let cluster = ClusterHandle {
        cluster_id: ground.secrets.cluster_id,
        this_node: group.this_node.clone(),
        members: group.members.clone(),
        dialer,
        reader: group.replica.reader.clone(),
        presence: Presence::default(),
        apply: group.apply.clone(),
    };
    let leases = Leases::new(
        &group.replica,
        group.this_node.clone(),
        ground.wall_time.clone(),
        ground.ids.clone(),
        lifetime.tasks.clone(),
    );
    tracing::info!(node = ground.config.node.id, %client_addr, %peer_addr, "ports open");
    let parts = Parts {
        threads,
        ground,
        disk,
        group,
        leases,
        egress,
    };
    let ends = Ends {
        watch: lifetime.watch.clone(),
        background: port.background.clone(),
        ..Ends::default()
    };
    let calls = parts.start_calls(&ends);
    parts.serve_peers(peer.into_std()?, identity, &cluster, &calls, &ends)?;
    let leading = parts.leadership(&calls, &cluster.dialer).run(ends.workers.clone());
    let leading = tokio::spawn(ends.watch.may_end("leadership", leading));
    parts.start_background(&cluster.dialer, &ends);
    port.serve(parts.routes(&services, &cluster, &lifetime));
    Ok(RunningNode {
        client_addr,
        peer_addr,
        services,
        cluster,
        lifetime,
        egress: parts.egress.clone(),
        parts,
        tasks: Tasks { calls, leading, ends },
    })
}

impl Parts {
    /// Starts the peer port and the check of the nodes that may connect to it, on the threads of Raft.
    fn serve_peers(
        &self,
        listener: std::net::TcpListener,
        identity: Identity,
        cluster: &ClusterHandle,
        calls: &Calls,
        ends: &Ends,
    ) -> std::io::Result<()> {
        let _threads = self.threads.enter();
        let (ground, group) = (&self.ground, &self.group);
        let admission = Admission::new(
            Arc::clone(&ground.config),
            group.this_node.clone(),
            Quorum::new(&group.raft),
            ends.peers.clone(),
        );
        let following = admission.clone().run(self.egress.clone(), cluster.dialer.clone());
        ends.run_to_end("admission of peers", following);
        let metrics = ground.metrics.clone();
        let leader_loss = LeaderLoss::new(
            group.raft.clone(),
            group.this_node.clone(),
            cluster.dialer.clone(),
            metrics.clone(),
        );
        let (hints, watching) = leader_loss.watch(ends.workers.clone());
        ends.run_to_end("watch of the leader's process", watching);
        let port = PeerPort {
            listener: TcpListener::from_std(listener)?,
            identity,
            admission: admission.clone(),
            metrics: metrics.clone(),
            hints,
            shutdown: ends.peers.clone(),
        };
        let incoming = listener::listen(port, &ends.watch);
        let service = PeerService {
            raft: group.raft.clone(),
            proposer: group.replica.proposer.clone(),
            cluster: cluster.clone(),
            leader_loss,
            caller: Caller::new(ground.config.node.id, calls.clone(), Arc::clone(&ground.secrets)),
            snapshots: Arc::clone(&self.disk.snapshots),
            lives: self.disk.lives.clone(),
            admission,
            metrics,
        };
        let serving = serve_peers(incoming, service, ends.peers.clone());
        ends.background
            .spawn(ends.watch.until(&ends.peers, "peer port", serving));
        Ok(())
    }

    /// Starts the webhook calls of this node and the task that records their outcomes.
    fn start_calls(&self, ends: &Ends) -> Calls {
        let (ground, group) = (&self.ground, &self.group);
        let open = OpenAttempts::new(group.drain.clone());
        let (reporter, reports) = Reporter::new(Recorder {
            open: open.clone(),
            proposer: group.replica.proposer.clone(),
            metrics: ground.metrics.clone(),
            ids: ground.ids.clone(),
        });
        ends.run("reporter", |stop| reporter.run(stop));
        Calls::new(CallParts {
            open,
            egress: self.egress.clone(),
            wall_time: ground.wall_time.clone(),
            quorum: Quorum::new(&group.raft),
            metrics: ground.metrics.clone(),
            reports,
            watch: ground.watch.clone(),
        })
    }

    /// Starts the tasks that run while this node leads.
    fn leadership(&self, calls: &Calls, dialer: &Dialer) -> Leadership {
        let (ground, group, state) = (&self.ground, &self.group, &self.disk.state);
        let proposer = &group.replica.proposer;
        let leader = LeaderHandles {
            state: state.clone(),
            reader: group.replica.reader.clone(),
            proposer: proposer.clone(),
            cluster_time: group.cluster_time.clone(),
            wakeups: group.replica.wakeups.clone(),
            metrics: ground.metrics.clone(),
        };
        let sweeper = Sweeper {
            leader: leader.clone(),
            wall_time: ground.wall_time.clone(),
        };
        let mut workers = vec![
            Ticker(leader.clone()).worker(),
            sweeper.worker(),
            Fanout(leader.clone()).worker(),
            group.members.finisher(),
        ];
        workers.extend(workers::workers(WebhookHandles {
            leader,
            calls: calls.clone(),
            secrets: Arc::clone(&ground.secrets),
            this_node: group.this_node.clone(),
            dialer: dialer.clone(),
        }));
        Leadership {
            raft: group.raft.clone(),
            state: state.clone(),
            proposer: proposer.clone(),
            cluster_time: group.cluster_time.clone(),
            workers,
            watch: ground.watch.clone(),
        }
    }

    /// Starts all other background tasks.
    fn start_background(&self, dialer: &Dialer, ends: &Ends) {
        let Parts {
            ground, disk, group, ..
        } = self;
        let timekeeper = Timekeeper::new(
            ground.wall_time.clone(),
            group.this_node.clone(),
            dialer.clone(),
            ground.metrics.clone(),
        );
        let bootstrap = Bootstrap {
            config: Arc::clone(&ground.config),
            replica: group.replica.clone(),
            this_node: group.this_node.clone(),
            dialer: dialer.clone(),
            ids: ground.ids.clone(),
            secrets: Arc::clone(&ground.secrets),
        };
        let stop = || ends.workers.clone();
        ends.run_to_end("keeper", group.keeper(ground, disk).run(stop()));
        ends.run_to_end("bootstrap", bootstrap.run(stop()));
        ends.run("timekeeper", |stop| timekeeper.run(stop));
        ends.run("measurement of the disk", |stop| {
            disk.space.clone().run(ground.metrics.clone(), stop)
        });
        ends.run("watch over apply", |stop| {
            group.apply.clone().run(group.this_node.clone(), stop)
        });
        ends.run("scrubber", |stop| disk.scrubber(&ground.config).run(stop));
        ends.run("leases", |stop| self.leases.clone().run(stop));
    }

    /// The routes of the client port.
    fn routes(&self, services: &Services, cluster: &ClusterHandle, lifetime: &Lifetime) -> Router {
        let config = &self.ground.config;
        let ws = WsHandles {
            presence: cluster.presence.clone(),
            lifetime: lifetime.clone(),
            source_prefix: config.kite.source_prefix.clone(),
        };
        let http = HttpHandles {
            leases: self.leases.clone(),
            cluster: cluster.clone(),
            egress: self.egress.clone(),
            lifetime: lifetime.clone(),
            public_url: config.node.public_url.clone(),
        };
        http::router::router(services.clone(), http, ws::route::route(services.clone(), ws))
    }
}

impl RunningNode {
    /// The replicated state, for tests. Everything else reads it through `services`.
    pub fn state(&self) -> &StateHandle {
        &self.parts.disk.state
    }

    /// Waits until this node cannot continue and returns the reason; the process must then exit. A node whose id has
    /// joined again with another data directory is quarantined before this returns.
    pub async fn failed(&self) -> String {
        let disk = &self.parts.disk;
        tokio::select! {
            reason = self.cluster.this_node.failed() => format!("Raft failed: {reason}"),
            reason = disk.failed() => reason,
            reason = self.lifetime.watch.failed() => reason,
            reason = self.cluster.apply.failed() => reason,
            why = disk.lives.until_replaced() => {
                quarantine::note(&self.parts.ground.config, &why);
                format!("quarantined: {why}")
            }
        }
    }

    /// Stops the node in order. At the deadline the remaining steps are skipped, which loses no acknowledged write.
    pub async fn stop(self) {
        let this_node = self.cluster.this_node.clone();
        let held = this_node.hold();
        let calls = match this_node.unfinished() {
            0 => Duration::ZERO,
            _ => DRAIN_DEADLINE,
        };
        let deadline = STOP_DEADLINE + calls;
        if tokio::time::timeout(deadline, self.stop_in_order(&held)).await.is_err() {
            tracing::warn!("the stop took longer than {deadline:?}; exiting anyway, no acknowledged write is lost");
        }
    }

    async fn stop_in_order(mut self, held: &DrainGuard) {
        let Lifetime { shutdown, tasks, .. } = &self.lifetime;
        shutdown.cancel();
        tasks.close();
        if tokio::time::timeout(CLIENTS_DEADLINE, tasks.wait()).await.is_err() {
            tracing::warn!(
                left = tasks.len(),
                "client connections did not end in time; closing them"
            );
        }
        self.parts.leases.close().await;
        // The log may still need ticks while leadership is handed over, so the workers end afterwards.
        self.cluster.this_node.resign(held).await;
        self.tasks.ends.workers.cancel();
        let _ = (&mut self.tasks.leading).await;
        self.end(true).await;
    }

    /// Ends the node at once, like a crash: nothing is handed over or flushed. Call it when the node has failed, and in
    /// tests.
    pub async fn abort(self) {
        self.lifetime.shutdown.cancel();
        self.tasks.ends.workers.cancel();
        self.tasks.calls.abort();
        self.tasks.leading.abort();
        self.end(false).await;
    }

    async fn end(self, flush: bool) {
        let ends = &self.tasks.ends;
        ends.peers.cancel();
        self.tasks.calls.abort();
        if let Err(error) = self.parts.group.raft.shutdown().await {
            tracing::warn!(%error, "shutting Raft down failed; exiting anyway");
        }
        self.cluster.dialer.close();
        ends.background.close();
        ends.background.wait().await;
        self.parts.threads.end().await;
        if flush {
            let state = self.parts.disk.state.clone();
            match tokio::task::spawn_blocking(move || state.flush()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the last flush failed; the next start replays more of the log")
                }
                Err(error) => {
                    tracing::warn!(%error, "the last flush failed; the next start replays more of the log")
                }
            }
        }
    }
}

fn serve_peers(
    incoming: ReceiverStream<std::io::Result<PeerStream>>,
    service: PeerService,
    shutdown: CancellationToken,
) -> impl Future<Output = ()> {
    let service = PeerServer::new(service)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let serving = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .max_concurrent_streams(PEER_STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .add_service(service)
        .serve_with_incoming(incoming);
    async move {
        // An error of a single connection ends only that connection and does not arrive here.
        if let Some(Err(error)) = shutdown.run_until_cancelled_owned(serving).await {
            tracing::error!(%error, "the peer port failed, so this node ends; start it again");
        }
    }
}
