//! The parts that the handles of a node use: the shared services, the open files and databases, and the Raft group.

use std::sync::Arc;
use std::time::Duration;

use agentpost_raft_store::core::effect::Effect;
use agentpost_raft_store::disk::log_store::{LogMetrics, LogSpan, LogStore};
use agentpost_raft_store::disk::open::{self, Stores};
use agentpost_raft_store::disk::progress::Progress;
use agentpost_raft_store::disk::scrub::Scrub;
use agentpost_raft_store::disk::snapshot::Snapshots;
use agentpost_raft_store::disk::state::StateHandle;
use agentpost_raft_store::disk::state_machine::StateMachine;

use super::client_port::Doing;
use super::quarantine;
use crate::base::clock::{Clock, IdSource};
use crate::base::config::Config;
use crate::base::metrics::Metrics;
use crate::base::owner::{self, Owned};
use crate::base::raft_threads::RaftThreads;
use crate::base::secrets::Secrets;
use crate::base::space::Space;
use crate::base::task_watch::TaskWatch;
use crate::net::dial::Dialer;
use crate::net::forward::Forwarder;
use crate::net::lives::Lives;
use crate::net::network::Network;
use crate::net::snapshot::SendOptions;
use crate::net::transfers::Transfers;
use crate::shard::apply_watch::ApplyWatch;
use crate::shard::cluster_time::ClusterTime;
use crate::shard::disk_watch::DiskWatch;
use crate::shard::drain::Drain;
use crate::shard::keeper::{Keeper, Policy};
use crate::shard::members::Members;
use crate::shard::proposer::{Proposer, ProposerHandles};
use crate::shard::reader::Reader;
use crate::shard::replica::Replica;
use crate::shard::retention::{Ages, Held, LogRetention, Retention};
use crate::shard::scrubber::Scrubber;
use crate::shard::this_node::ThisNode;
use crate::shard::wakeups::Wakeups;
use crate::shard::wall_time::WallTime;
use crate::shard::{self, Lead, Raft};
use crate::webhooks::failpoint::{self, Place};

/// The services that every part uses.
pub(super) struct Ground {
    pub(super) config: Arc<Config>,
    pub(super) secrets: Arc<Secrets>,
    pub(super) ids: IdSource,
    pub(super) wall_time: WallTime,
    pub(super) metrics: Metrics,
    pub(super) watch: TaskWatch,
}

/// The open files and databases of the data directory.
pub(super) struct Disk {
    pub(super) state: StateHandle,
    pub(super) snapshots: Arc<Snapshots>,
    pub(super) space: Space,
    pub(super) lives: Lives,
    log: Arc<LogMetrics>,
    log_span: LogSpan,
    scrub: Scrub,
    _owned: Owned,
}

/// The stores that openraft owns.
type RaftStores = (LogStore, StateMachine);

impl Disk {
    /// Opens the data directory. The free space is measured before the databases are opened, because they may need the
    /// space of the ballast.
    pub(super) async fn open(
        config: Config,
        secrets: &Secrets,
        ids: &IdSource,
        doing: Doing,
    ) -> anyhow::Result<(Self, RaftStores)> {
        let mut options = quarantine::look(&config, secrets)?;
        options.progress = Progress::new(move |step| {
            doing.now(step);
            failpoint::pass(Place::Opening);
        });
        let owned = owner::claim(&config, secrets, ids)?;
        let lives = Lives::open(&config.node.data_dir, owned.life())?;
        let opening = tokio::task::spawn_blocking(move || {
            let space = Space::open(&config);
            let stores =
                open::shard(&config.node.data_dir, options).map_err(|error| quarantine::enter(&config, error))?;
            anyhow::Ok((space, stores))
        });
        let (space, stores) = opening.await??;
        let Stores {
            log,
            machine,
            state,
            snapshots,
            scrub,
        } = stores;
        let disk = Disk {
            state,
            snapshots,
            space,
            lives,
            log: log.metrics(),
            log_span: log.span(),
            scrub,
            _owned: owned,
        };
        Ok((disk, (log, machine)))
    }

    /// Waits until the disk fails; returns the reason.
    pub(super) async fn failed(&self) -> String {
        let watch = DiskWatch {
            log: Arc::clone(&self.log),
            state: self.state.clone(),
        };
        tokio::select! {
            reason = watch.failed() => reason,
            reason = self.state.damaged() => reason,
        }
    }

    pub(super) fn scrubber(&self, config: &Config) -> Scrubber {
        Scrubber {
            scrub: self.scrub.clone(),
            interval: Duration::from_secs(config.storage.scrub_interval_s),
        }
    }
}

impl Ground {
    /// Creates the services of a node whose log is open.
    pub(super) fn new(
        clock: Clock,
        config: Config,
        (secrets, ids): (Arc<Secrets>, IdSource),
        disk: &Disk,
        watch: TaskWatch,
    ) -> Self {
        Ground {
            config: Arc::new(config),
            secrets,
            ids,
            wall_time: WallTime::new(clock),
            metrics: Metrics::of_log(Arc::clone(&disk.log)),
            watch,
        }
    }
}

/// This node's part of the Raft group.
pub(super) struct Group {
    pub(super) raft: Raft,
    pub(super) transfers: Transfers,
    pub(super) replica: Replica,
    pub(super) this_node: ThisNode,
    pub(super) members: Members,
    pub(super) cluster_time: ClusterTime,
    pub(super) drain: Drain,
    pub(super) apply: ApplyWatch,
}

impl Group {
    /// Starts Raft on the stores, and on its own threads.
    pub(super) async fn start(
        ground: &Ground,
        disk: &Disk,
        stores: RaftStores,
        dialer: &Dialer,
        threads: &RaftThreads,
    ) -> anyhow::Result<Self> {
        let (ids, metrics, watch) = (&ground.ids, &ground.metrics, &ground.watch);
        let forwarder = Forwarder::new(dialer.clone(), metrics.clone());
        let wakeups = Wakeups::default();
        let (raft, transfers) = start_raft(ground, stores, dialer, &wakeups, threads).await?;
        let hanging_up = shard::hang_up_on_deposed(Lead::new(&raft), forwarder.clone());
        tokio::spawn(watch.may_end("watch over the leader", hanging_up));
        let (cluster_time, drain) = (ClusterTime::default(), Drain::default());
        let reader = Reader::new(
            raft.clone(),
            disk.state.clone(),
            forwarder.clone(),
            ids.clone(),
            metrics.clone(),
            watch,
        );
        let (proposer, hands_over) = Proposer::new(ProposerHandles {
            raft: raft.clone(),
            state: disk.state.clone(),
            reader: reader.clone(),
            forwarder,
            cluster_time: cluster_time.clone(),
            wall_time: ground.wall_time.clone(),
            space: disk.space.clone(),
            ids: ids.clone(),
            metrics: metrics.clone(),
        });
        threads.handle().spawn(watch.may_end("append queue", hands_over));
        let this_node = ThisNode::new(
            raft.clone(),
            disk.state.clone(),
            proposer.clone(),
            drain.clone(),
            ground.wall_time.clock().clone(),
        );
        Ok(Group {
            members: Members::new(raft.clone(), this_node.clone(), reader.clone()),
            apply: ApplyWatch::new(&raft, disk.state.clone()),
            raft,
            transfers,
            replica: Replica {
                reader,
                proposer,
                wakeups,
            },
            this_node,
            cluster_time,
            drain,
        })
    }

    pub(super) fn keeper(&self, ground: &Ground, disk: &Disk) -> Keeper {
        let settings = &ground.config.raft;
        let policy = Policy {
            log_bytes: settings.snapshot_log_bytes,
            interval: Duration::from_secs(settings.snapshot_interval_s),
        };
        Keeper {
            raft: self.raft.clone(),
            state: disk.state.clone(),
            snapshots: Arc::clone(&disk.snapshots),
            log: Arc::clone(&disk.log),
            policy,
            retention: Retention {
                span: disk.log_span.clone(),
                kept: LogRetention {
                    bytes: settings.log_bytes_kept,
                    time: Duration::from_secs(settings.log_time_kept_s),
                },
                transfers: self.transfers.clone(),
                space: disk.space.clone(),
                metrics: ground.metrics.retention.clone(),
                ages: Ages::default(),
                held: Held::default(),
            },
            ids: ground.ids.clone(),
        }
    }
}

async fn start_raft(
    ground: &Ground,
    (log, mut machine): RaftStores,
    dialer: &Dialer,
    wakeups: &Wakeups,
    threads: &RaftThreads,
) -> anyhow::Result<(Raft, Transfers)> {
    let config = &ground.config;
    let sending = SendOptions {
        bytes_per_s: config.raft.snapshot_send_bytes_per_s,
    };
    let network = Network::new(dialer.clone(), sending, ground.metrics.clone());
    let transfers = network.transfers();
    let (effects, installed) = (wakeups.clone(), wakeups.clone());
    machine.set_effects(Arc::new(move |batch: &[Effect]| {
        failpoint::pass(Place::Applied);
        effects.publish(batch);
    }));
    machine.set_installed(Arc::new(move || installed.publish_all()));
    let settings = shard::raft_config(&config.raft)?;
    let starting = Raft::new(config.node.id, Arc::new(settings), network, log, machine);
    Ok((threads.handle().spawn(starting).await??, transfers))
}
