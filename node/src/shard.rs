//! One Raft group with its stores and handles.
//!
//! Everything above reaches the group through the three handles of [`replica`]: [`proposer`] changes it, [`reader`] reads
//! it, [`wakeups`] tells that something changed. A node hosts one group today and may host many: nothing outside
//! this folder and `net/` names a shard. [`leadership`] runs what only the leader may do, [`keeper`] bounds
//! the log and the time a restart takes, [`this_node`] speaks for this node, [`drain`] is what it finishes before
//! another may lead, [`members`] changes who is in the group, [`timekeeper`] reads the voters' clocks for [`wall_time`], [`cluster_time`] measures ages, [`disk_watch`]
//! sees what Raft is not told of its disk.

pub mod cluster_time;
pub mod disk_watch;
pub mod drain;
pub mod keeper;
pub mod leadership;

pub mod members;
pub mod proposer;
pub mod quorum;
pub mod reader;
pub mod replica;
pub mod scrubber;
pub mod this_node;
pub mod timekeeper;
pub mod wakeups;
pub mod wall_time;

use std::time::Duration;

use agentpost_raft_store::disk::state_machine::StateMachine;
use agentpost_raft_store::disk::types::TypeConfig;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::metrics::RaftServerMetrics;
use openraft::type_config::alias::WatchReceiverOf;
use tokio::time::{sleep, timeout};

use crate::base::clock::IdSource;
use crate::net::forward::Forwarder;

/// Between two attempts at something that needs a leader.
const RETRY_MS: (u64, u64) = (20, 60);

/// What a deposed leader still answers, it answers within this time.
const DEPOSED_GRACE: Duration = Duration::from_millis(500);

/// openraft with our types.
pub type Raft = openraft::Raft<TypeConfig, StateMachine>;

/// Who leads, as this node knows it. Cheap to read.
#[derive(Clone)]
pub struct Lead {
    here: u64,
    metrics: WatchReceiverOf<TypeConfig, RaftServerMetrics<TypeConfig>>,
}

/// Where the leader is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leader {
    /// This node.
    Here,
    /// That node, at that peer address.
    There(u64, String),
    /// Nobody, as far as this node knows.
    Nobody,
}

impl Lead {
    /// Follows `raft`.
    pub fn new(raft: &Raft) -> Self {
        Lead {
            here: *raft.node_id(),
            metrics: raft.server_metrics(),
        }
    }

    /// Who leads now.
    pub fn now(&self) -> Leader {
        let metrics = self.metrics.borrow_watched();
        match metrics.current_leader {
            None => Leader::Nobody,
            Some(id) if id == self.here => Leader::Here,
            Some(id) => match metrics.membership_config.membership().get_node(&id) {
                Some(member) => Leader::There(id, member.peer_addr.clone()),
                None => Leader::Nobody,
            },
        }
    }

    /// The leader's id.
    pub fn id(&self) -> Option<u64> {
        self.metrics.borrow_watched().current_leader
    }

    /// The term.
    pub fn term(&self) -> u64 {
        self.metrics.borrow_watched().vote.leader_id.term
    }

    /// Waits until the leader is another one than `known`, or nobody any more.
    pub async fn moved_from(&mut self, known: &Leader) {
        while self.now() == *known && self.changed().await.is_ok() {}
    }

    /// Before another attempt at what had no leader: a new one is the likeliest cure. The jitter keeps those
    /// who wait out of step.
    pub(crate) async fn pause(&self, known: &Leader, ids: &IdSource) {
        let pause = Duration::from_millis(ids.jitter_ms(RETRY_MS.0, RETRY_MS.1));
        let _ = timeout(pause, self.clone().moved_from(known)).await;
    }

    /// Waits for news about leader, term or members. An error means that Raft has ended.
    pub async fn changed(&mut self) -> Result<(), Ended> {
        self.metrics.changed().await.map_err(|_| Ended)
    }
}

/// Ends the streams to leaders of the past. A deposed leader is given [`DEPOSED_GRACE`] to answer what it had
/// taken; one that was paused or cut off would keep its callers until the connection is found dead.
pub async fn hang_up_on_deposed(mut lead: Lead, forwarder: Forwarder) {
    while lead.changed().await.is_ok() {
        let Some(leader) = lead.id() else { continue };
        sleep(DEPOSED_GRACE).await;
        if lead.id() == Some(leader) {
            forwarder.hang_up_on_others(leader);
        }
    }
}

/// Raft runs no more.
#[derive(Debug, thiserror::Error)]
#[error("Raft has ended")]
pub struct Ended;

/// openraft's settings. Where they differ from its defaults: disks need longer timeouts; a pre-vote keeps a
/// node that cannot win from disturbing; snapshots are [`keeper`]'s decision; the log behind a snapshot stays
/// long enough for restarted nodes; and a node that led before a restart must be elected again, because its
/// state may be older than what it had shown.
pub fn raft_config(settings: &crate::base::config::Raft) -> Result<openraft::Config, openraft::ConfigError> {
    let config = openraft::Config {
        cluster_name: "agentpost".to_owned(),
        heartbeat_interval: settings.heartbeat_ms,
        election_timeout_min: settings.election_min_ms,
        election_timeout_max: settings.election_max_ms,
        enable_pre_vote: Some(true),
        enable_leader_restore: Some(false),
        snapshot_policy: openraft::SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: settings.log_entries_kept,
        replication_lag_threshold: settings.log_entries_kept.saturating_mul(2).max(5_000),
        purge_batch_size: settings.log_entries_kept.clamp(1, 1_024),
        install_snapshot_timeout: 600_000,
        ..openraft::Config::default()
    };
    config.validate()
}
