//! The composition root: what runs, in which order it starts and stops. No logic.
//!
//! **Start**: listeners are bound before anything else, so that clients wait instead of being refused; then
//! the databases, the Raft group, the peer port, the client port. Until the group has recovered, reads and
//! writes find no quorum and answer 503, while health and metrics answer.
//!
//! **Stop**, under one deadline: refuse new requests and answer those in flight, sessions closing with a
//! resume hint, while calls to webhooks that run are finished and no new ones begin; return leases; hand
//! leadership over; stop the leader's workers; shut Raft down; close the peer port; flush. The deadline is longer
//! by the length of a call when calls run: an attempt that is broken off has an unknown outcome and is repeated.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use agentpost_proto::limits::PEER_MESSAGE_BYTES_MAX;
use agentpost_proto::peer::peer_server::PeerServer;
use agentpost_raft_store::db::{self, StateHandle, Stores};
use agentpost_raft_store::effect::Effect;
use agentpost_raft_store::log_store::LogMetrics;
use agentpost_raft_store::scrub::Scrub;
use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Server;

pub mod bootstrap;
pub mod dev;
pub mod quarantine;

use crate::base::clock::{Clock, IdSource};
use crate::base::config::Config;
use crate::base::metrics::Metrics;
use crate::base::owner::{self, Owned};
use crate::base::secrets::Secrets;
use crate::base::space::Space;
use crate::cluster::leases::Leases;
use crate::cluster::presence::Presence;
use crate::cluster::status::ClusterHandle;
use crate::leader::fanout::Fanout;
use crate::leader::sweeper::Sweeper;
use crate::leader::ticker::Ticker;
use crate::net::dial::{CONNECTION_WINDOW_BYTES, Dialer, KEEPALIVE, STREAM_WINDOW_BYTES};
use crate::net::forward::Forwarder;
use crate::net::handshake::Identity;
use crate::net::lives::Lives;
use crate::net::network::Network;
use crate::net::snapshot::SendOptions;
use crate::node::bootstrap::Bootstrap;
use crate::node::quarantine::{Quarantine, Quarantined};
use crate::server::burst::Bursts;
use crate::server::http;
use crate::server::peer::admission::{Admission, Contact};
use crate::server::peer::listener::{self, PeerStream};
use crate::server::peer::service::PeerService;
use crate::server::services::Services;
use crate::server::ws;
use crate::shard::cluster_time::ClusterTime;
use crate::shard::disk_watch::DiskWatch;
use crate::shard::drain::{Drain, Hold};
use crate::shard::keeper::{Keeper, Policy};
use crate::shard::leadership::Leadership;
use crate::shard::local::{DRAIN_DEADLINE, Local};
use crate::shard::members::Members;
use crate::shard::proposer::Proposer;
use crate::shard::quorum::Quorum;
use crate::shard::reader::Reader;
use crate::shard::scrubber::Scrubber;
use crate::shard::timekeeper::Timekeeper;
use crate::shard::wakeups::Wakeups;
use crate::shard::wall_time::WallTime;
use crate::shard::{self, Lead, Raft};
use crate::webhooks::calls::{CallParts, Calls};
use crate::webhooks::egress::Egress;
use crate::webhooks::handles::Handles;
use crate::webhooks::open::OpenAttempts;
use crate::webhooks::reporter::{Recorder, Reporter};
use crate::webhooks::workers;

/// Everything of the stop together, but for calls to webhooks: they add [`DRAIN_DEADLINE`].
///
/// [`DRAIN_DEADLINE`]: crate::shard::local::DRAIN_DEADLINE
const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// Of that, for requests in flight and sessions.
const DOORS_DEADLINE: Duration = Duration::from_secs(4);
/// Calls under way on one connection of a peer: a few long streams, votes, and questions of operators.
const PEER_STREAMS_MAX: u32 = 64;

/// A node that serves. Dropping it does not stop it; [`RunningNode::stop`] does.
pub struct RunningNode {
    /// Where the client port listens.
    pub client_addr: SocketAddr,
    /// Where the peer port listens.
    pub peer_addr: SocketAddr,
    /// The handles of the doors.
    pub services: Services,
    raft: Raft,
    local: Local,
    state: StateHandle,
    disk: DiskWatch,
    dialer: Dialer,
    lives: Lives,
    _data_dir: Owned,
    calls: Calls,
    /// Cancels the leader's workers and the keeper.
    workers: CancellationToken,
    leading: JoinHandle<()>,
    /// Breaks peer connections.
    peers: CancellationToken,
    background: TaskTracker,
}

/// What a start came to.
pub enum Started {
    /// A node that serves.
    Serving(Box<RunningNode>),
    /// A node that must not take part.
    Quarantined(Quarantined),
}

/// Starts a node as it is configured; returns when its ports are open.
pub async fn start(config: Config) -> anyhow::Result<Started> {
    let bind = |key: &'static str, address| async move {
        TcpListener::bind(address)
            .await
            .with_context(|| format!("{key} = {address}"))
    };
    let client = bind("node.client_addr", config.node.client_addr).await?.into_std()?;
    let peer = bind("node.peer_addr", config.node.peer_addr).await?;
    // Both accept from one queue: who connected meanwhile gets an answer in quarantine, too.
    let door = client.try_clone()?;
    match start_with(config, TcpListener::from_std(client)?, peer).await {
        Ok(node) => Ok(Started::Serving(Box::new(node))),
        Err(error) => {
            let reason = error.downcast::<Quarantine>()?;
            let door = TcpListener::from_std(door)?;
            Ok(Started::Quarantined(Quarantined { door, reason }))
        }
    }
}

/// The same with listeners that are bound already.
pub async fn start_with(config: Config, client: TcpListener, peer: TcpListener) -> anyhow::Result<RunningNode> {
    start_at(Clock::system(), config, client, peer).await
}

/// The same with another clock than the machine's. For tests.
pub async fn start_at(
    clock: Clock,
    config: Config,
    client: TcpListener,
    peer: TcpListener,
) -> anyhow::Result<RunningNode> {
    let (client_addr, peer_addr) = (client.local_addr()?, peer.local_addr()?);
    let secrets = Arc::new(Secrets::load(&config.cluster.secret_file)?);
    let ids = IdSource::new(clock.clone());
    let (owned, lives, stores, space) = open(&config, &secrets, &ids).await?;
    let (state, log) = (stores.state.clone(), stores.log.metrics());
    let scrub = stores.scrub.clone();
    let (wall_time, metrics) = (WallTime::new(clock.clone()), Metrics::of_log(Arc::clone(&log)));
    let config = Arc::new(config);
    let egress = Egress::new(&config, &[client_addr, peer_addr])?;

    let identity = Identity::new(&secrets, config.node.id, lives.clone(), ids.clone());
    let dialer = Dialer::new(identity.clone());
    let forwarder = Forwarder::new(dialer.clone(), metrics.clone());
    let wakeups = Wakeups::default();
    let raft = start_raft(&config, stores, (&dialer, &metrics), &wakeups).await?;

    tokio::spawn(shard::hang_up_on_deposed(Lead::new(&raft), forwarder.clone()));
    let cluster_time = ClusterTime::default();
    let proposer = Proposer::new(
        raft.clone(),
        state.clone(),
        forwarder.clone(),
        (cluster_time.clone(), wall_time.clone()),
        space.clone(),
        ids.clone(),
        metrics.clone(),
    );
    let reader = Reader::new(raft.clone(), state.clone(), forwarder, ids.clone(), metrics.clone());
    let drain = Drain::default();
    let local = Local::new(
        raft.clone(),
        state.clone(),
        proposer.clone(),
        drain.clone(),
        clock.clone(),
    );
    let presence = Presence::default();
    let members = Members::new(raft.clone(), local.clone(), reader.clone());
    let cluster = ClusterHandle::new(
        local.clone(),
        members,
        dialer.clone(),
        reader.clone(),
        presence.clone(),
        Arc::clone(&secrets),
        metrics.clone(),
    );
    let leases = Leases::new(proposer.clone(), wall_time.clone(), ids.clone(), &cluster);
    let bursts = Arc::new(Bursts::new(&config.limits));
    let services = Services {
        proposer,
        reader,
        wakeups,
        presence,
        leases,
        clock,
        wall_time,
        ids,
        secrets,
        config,
        metrics,
        cluster,
        egress,
        bursts,
    };
    let core = Core {
        raft,
        state,
        log,
        scrub,
        space,
        cluster_time,
        drain,
        local,
        dialer,
        lives,
        owned,
    };
    tracing::info!(node = services.config.node.id, %client_addr, %peer_addr, "ports open");
    Ok(core.run(services, identity, (client, client_addr), (peer, peer_addr)))
}

/// The parts of a node under its handles.
struct Core {
    raft: Raft,
    state: StateHandle,
    log: Arc<LogMetrics>,
    scrub: Scrub,
    space: Space,
    cluster_time: ClusterTime,
    drain: Drain,
    local: Local,
    dialer: Dialer,
    lives: Lives,
    owned: Owned,
}

impl Core {
    /// Starts everything that runs beside Raft.
    fn run(
        self,
        services: Services,
        identity: Identity,
        (client, client_addr): (TcpListener, SocketAddr),
        (peer, peer_addr): (TcpListener, SocketAddr),
    ) -> RunningNode {
        let (workers, peers, background) = (CancellationToken::new(), CancellationToken::new(), TaskTracker::new());
        let contact = Contact::default();
        let admission = self.admission(&services, contact.clone(), &peers);
        background.spawn(admission.clone().run(services.egress.clone(), self.dialer.clone()));
        let incoming = listener::listen(peer, identity, admission, services.metrics.clone(), peers.clone());
        background.spawn(serve_peers(
            incoming,
            (contact, self.lives.clone()),
            &services,
            &self.raft,
            &peers,
        ));
        let open = OpenAttempts::new(self.drain.clone());
        let (reporter, reports) = Reporter::new(Recorder {
            open: open.clone(),
            proposer: services.proposer.clone(),
            metrics: services.metrics.clone(),
            ids: services.ids.clone(),
        });
        background.spawn(reporter.run(workers.clone()));
        let calls = Calls::new(CallParts {
            open,
            egress: services.egress.clone(),
            wall_time: services.wall_time.clone(),
            quorum: Quorum::new(&self.raft),
            metrics: services.metrics.clone(),
            reports,
        });
        let leading = tokio::spawn(self.lead(&services, &calls).run(workers.clone()));
        background.spawn(self.timekeeper(&services).run(workers.clone()));
        background.spawn(self.keep(&services).run(workers.clone()));
        background.spawn(self.space.clone().run(services.metrics.clone(), workers.clone()));
        let scrubber = Scrubber {
            scrub: self.scrub.clone(),
            interval: Duration::from_secs(services.config.storage.scrub_interval_s),
        };
        background.spawn(scrubber.run(workers.clone()));
        background.spawn(services.leases.clone().run(workers.clone()));
        background.spawn(Bootstrap::new(services.clone()).run(workers.clone()));
        background.spawn(http::serve::serve(
            client,
            http::router::router(services.clone(), ws::route::route(services.clone())),
            services.cluster.shutdown.clone(),
            services.cluster.tasks.clone(),
        ));
        RunningNode {
            client_addr,
            peer_addr,
            services,
            disk: DiskWatch {
                log: self.log,
                state: self.state.clone(),
            },
            raft: self.raft,
            local: self.local,
            state: self.state,
            dialer: self.dialer,
            lives: self.lives,
            _data_dir: self.owned,
            calls,
            workers,
            leading,
            peers,
            background,
        }
    }

    fn admission(&self, services: &Services, contact: Contact, peers: &CancellationToken) -> Admission {
        let (config, quorum) = (Arc::clone(&services.config), Quorum::new(&self.raft));
        Admission::new(config, self.local.clone(), quorum, contact, peers.clone())
    }

    /// What runs while this node leads.
    fn lead(&self, services: &Services, calls: &Calls) -> Leadership {
        let (state, proposer) = (&self.state, &services.proposer);
        let ticker = Ticker {
            state: state.clone(),
            proposer: proposer.clone(),
            cluster_time: self.cluster_time.clone(),
        };
        let sweeper = Sweeper {
            state: state.clone(),
            proposer: proposer.clone(),
            cluster_time: self.cluster_time.clone(),
            wall_time: services.wall_time.clone(),
        };
        let dispatching = Handles {
            state: state.clone(),
            proposer: proposer.clone(),
            cluster_time: self.cluster_time.clone(),
            wakeups: services.wakeups.clone(),
            calls: calls.clone(),
            secrets: Arc::clone(&services.secrets),
            metrics: services.metrics.clone(),
        };
        let fanout = Fanout {
            state: state.clone(),
            proposer: proposer.clone(),
            cluster_time: self.cluster_time.clone(),
            wakeups: services.wakeups.clone(),
            metrics: services.metrics.clone(),
        };
        let finisher = services.cluster.members.finisher();
        let mut workers = vec![ticker.worker(), sweeper.worker(), fanout.worker(), finisher];
        workers.extend(workers::workers(&dispatching));
        Leadership {
            raft: self.raft.clone(),
            state: state.clone(),
            proposer: proposer.clone(),
            cluster_time: self.cluster_time.clone(),
            workers,
        }
    }

    fn timekeeper(&self, services: &Services) -> Timekeeper {
        let (wall_time, metrics) = (services.wall_time.clone(), services.metrics.clone());
        Timekeeper::new(wall_time, self.local.clone(), self.dialer.clone(), metrics)
    }

    fn keep(&self, services: &Services) -> Keeper {
        let settings = &services.config.raft;
        let policy = Policy {
            log_bytes: settings.snapshot_log_bytes,
            interval: Duration::from_secs(settings.snapshot_interval_s),
        };
        Keeper {
            raft: self.raft.clone(),
            state: self.state.clone(),
            log: Arc::clone(&self.log),
            policy,
            ids: services.ids.clone(),
        }
    }
}

impl RunningNode {
    /// Waits until this node cannot go on; the process must then end. Tells why. A node that has lost its data to
    /// another life of its id is quarantined before.
    pub async fn failed(&self) -> String {
        tokio::select! {
            reason = self.local.failed() => format!("Raft failed: {reason}"),
            reason = self.disk.failed() => reason,
            reason = self.state.damaged() => reason,
            why = self.lives.until_replaced() => {
                quarantine::note(&self.services.config, &why);
                format!("quarantined: {why}")
            }
        }
    }

    /// Stops in order; after a deadline whatever is left is abandoned, which costs nothing that was
    /// acknowledged.
    pub async fn stop(self) {
        let held = self.local.hold();
        let calls = match self.local.unfinished() {
            0 => Duration::ZERO,
            _ => DRAIN_DEADLINE,
        };
        let deadline = STOP_DEADLINE + calls;
        if tokio::time::timeout(deadline, self.stop_in_order(&held)).await.is_err() {
            tracing::warn!("not everything stopped in {deadline:?}");
        }
    }

    async fn stop_in_order(mut self, held: &Hold) {
        let cluster = &self.services.cluster;
        cluster.shutdown.cancel();
        cluster.tasks.close();
        if tokio::time::timeout(DOORS_DEADLINE, cluster.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!(left = cluster.tasks.len(), "connections did not end in time");
        }
        self.services.leases.close().await;
        // The state may still be ticked while leadership is handed over: workers end after the order.
        self.local.resign(held).await;
        self.workers.cancel();
        let _ = (&mut self.leading).await;
        self.end(true).await;
    }

    /// Ends at once, as a crash would, as far as that is possible within a process. For tests.
    pub async fn abort(self) {
        self.services.cluster.shutdown.cancel();
        self.workers.cancel();
        self.calls.abort();
        self.leading.abort();
        self.end(false).await;
    }

    async fn end(self, flush: bool) {
        self.peers.cancel();
        self.calls.abort();
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "Raft did not end in order");
        }
        self.dialer.close();
        self.background.close();
        self.background.wait().await;
        if flush {
            let state = self.state.clone();
            match tokio::task::spawn_blocking(move || state.flush()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "last flush"),
                Err(error) => tracing::warn!(%error, "last flush"),
            }
        }
    }
}

/// Opens everything that is on the disk. How much room there is is looked at before the databases are opened: they may
/// need that of the ballast.
async fn open(config: &Config, secrets: &Secrets, ids: &IdSource) -> anyhow::Result<(Owned, Lives, Stores, Space)> {
    let options = quarantine::look(config, secrets)?;
    let owned = owner::claim(config, secrets, ids)?;
    let lives = Lives::open(&config.node.data_dir, owned.life())?;
    let config = config.clone();
    let opening = tokio::task::spawn_blocking(move || {
        let space = Space::open(&config);
        let stores = db::open(&config.node.data_dir, options).map_err(|error| quarantine::enter(&config, error))?;
        Ok((owned, lives, stores, space))
    });
    opening.await?
}

async fn start_raft(
    config: &Config,
    stores: Stores,
    (dialer, metrics): (&Dialer, &Metrics),
    wakeups: &Wakeups,
) -> anyhow::Result<Raft> {
    let sending = SendOptions {
        bytes_per_s: config.raft.snapshot_send_bytes_per_s,
    };
    let network = Network::new(dialer.clone(), sending, metrics.clone());
    let Stores { log, mut machine, .. } = stores;
    let (effects, installed) = (wakeups.clone(), wakeups.clone());
    machine.set_effects(Arc::new(move |batch: &[Effect]| effects.publish(batch)));
    machine.set_installed(Arc::new(move || installed.publish_all()));
    let settings = shard::raft_config(&config.raft)?;
    Ok(Raft::new(config.node.id, Arc::new(settings), network, log, machine).await?)
}

fn serve_peers(
    incoming: ReceiverStream<std::io::Result<PeerStream>>,
    (contact, lives): (Contact, Lives),
    services: &Services,
    raft: &Raft,
    shutdown: &CancellationToken,
) -> impl Future<Output = ()> + use<> {
    let service = PeerService {
        raft: raft.clone(),
        proposer: services.proposer.clone(),
        reader: services.reader.clone(),
        local: services.cluster.local.clone(),
        lives,
        presence: services.presence.clone(),
        contact,
        members: services.cluster.members.clone(),
        metrics: services.metrics.clone(),
        shutdown: shutdown.clone(),
    };
    let service = PeerServer::new(service)
        .max_decoding_message_size(PEER_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(PEER_MESSAGE_BYTES_MAX);
    let serving = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .max_concurrent_streams(PEER_STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .add_service(service)
        .serve_with_incoming(incoming);
    let shutdown = shutdown.clone();
    async move {
        // Errors are those of single connections, and end those only.
        if let Some(Err(error)) = shutdown.run_until_cancelled_owned(serving).await {
            tracing::error!(%error, "the peer port failed");
        }
    }
}
