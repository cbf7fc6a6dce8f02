//! One Raft group with its stores and handles.
//!
//! Code above this room reaches the group through the three handles of [`replica`]: [`proposer`] changes the state,
//! [`reader`] reads it, [`wakeups`] announces changes. A node hosts one group today and may host many later, so only
//! this room and `net/` name a shard. [`leadership`] runs the workers of a leader, [`keeper`], [`retention`] and
//! `leftovers` bound the disk and the time of a restart, [`leader_loss`] begins an election when the leader's process has ended, [`this_node`]
//! reports this node's status and hands leadership over, [`drain`] tracks the work that a hand-over waits for, [`members`]
//! changes the membership, [`timekeeper`] reads the voters' clocks for [`wall_time`], [`cluster_time`] measures ages,
//! [`budget`] bounds the operations under way and [`append_queue`] what is handed to Raft at a time, `edge` answers what
//! would change nothing, [`disk_watch`] notices disk failures that Raft does not report, and [`apply_watch`] an apply that
//! hangs.

pub mod append_queue;
pub mod apply_watch;
pub mod budget;
pub mod cluster_time;
pub mod disk_watch;
pub mod drain;
mod edge;
pub mod keeper;
pub mod leader_loss;
pub mod leadership;
mod leftovers;
pub mod local_state;

pub mod members;
pub mod proposer;
pub mod quorum;
pub mod read_pool;
pub mod reader;
pub mod replica;
pub mod retention;
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

/// Pause between two attempts at an operation that needs a leader, in milliseconds.
const RETRY_MS: (u64, u64) = (20, 60);

/// Time that a deposed leader gets to answer the requests it had accepted.
const DEPOSED_GRACE: Duration = Duration::from_millis(500);

/// Commits that wait to be applied before RaftCore itself waits and sends no more heartbeats. Ten seconds of the fastest
/// commits, about 10,000 a second, fit; [`apply_watch`] reports an apply that hangs for as long. The queue holds ranges
/// of indexes and no entries, so a full one takes some 25 MiB. On a leader it holds less, because every commit in it has
/// a caller that waits, and [`proposer`] bounds those.
const COMMITS_TO_APPLY_MAX: u64 = 128 * 1024;

/// openraft with our types.
pub type Raft = openraft::Raft<TypeConfig, StateMachine>;

/// The leader, as this node knows it. Reading it is cheap.
#[derive(Clone)]
pub struct Lead {
    here: u64,
    metrics: WatchReceiverOf<TypeConfig, RaftServerMetrics<TypeConfig>>,
}

/// The current leader, as this node knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leader {
    /// This node.
    Here,
    /// Another node: its id and its peer address.
    There(u64, String),
    /// This node knows no leader.
    Nobody,
}

impl Lead {
    /// Reads the leader from `raft`'s metrics.
    pub fn new(raft: &Raft) -> Self {
        Lead {
            here: *raft.node_id(),
            metrics: raft.server_metrics(),
        }
    }

    /// The current leader.
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

    /// The leader's id, if this node knows one.
    pub fn id(&self) -> Option<u64> {
        self.metrics.borrow_watched().current_leader
    }

    /// The current term.
    pub fn term(&self) -> u64 {
        self.metrics.borrow_watched().vote.leader_id.term
    }

    /// Waits until the leader differs from `known`.
    pub async fn moved_from(&mut self, known: &Leader) {
        while self.now() == *known && self.changed().await.is_ok() {}
    }

    /// Waits before another attempt: until the leader changes, or for a short random time. The jitter keeps waiting
    /// tasks from retrying at the same moment.
    pub(crate) async fn pause(&self, known: &Leader, ids: &IdSource) {
        let pause = Duration::from_millis(ids.jitter_ms(RETRY_MS.0, RETRY_MS.1));
        let _ = timeout(pause, self.clone().moved_from(known)).await;
    }

    /// Waits for a change of leader, term or members. An error means that Raft has ended.
    pub async fn changed(&mut self) -> Result<(), Ended> {
        self.metrics.changed().await.map_err(|_| Ended)
    }
}

/// Closes the streams to former leaders. A deposed leader gets [`DEPOSED_GRACE`] to answer the requests it had
/// accepted. Without this, a paused or unreachable one would hold its callers until the connection times out.
pub async fn hang_up_on_deposed(mut lead: Lead, forwarder: Forwarder) {
    while lead.changed().await.is_ok() {
        let Some(leader) = lead.id() else { continue };
        sleep(DEPOSED_GRACE).await;
        if lead.id() == Some(leader) {
            forwarder.hang_up_on_others(leader);
        }
    }
}

/// Raft has ended.
#[derive(Debug, thiserror::Error)]
#[error("Raft has ended")]
pub struct Ended;

/// openraft's settings. They differ from its defaults in these points: timeouts are longer, because fsync takes time; a
/// pre-vote keeps a node that cannot win from forcing elections; [`keeper`] decides when to take a snapshot and
/// what to purge; more commits may wait for apply; and a leader that restarts must be elected again, because its state may
/// be older than reads that it has already served.
pub fn raft_config(settings: &crate::base::config::Raft) -> Result<openraft::Config, openraft::ConfigError> {
    let config = openraft::Config {
        cluster_name: "agentpost".to_owned(),
        heartbeat_interval: settings.heartbeat_ms,
        election_timeout_min: settings.election_min_ms,
        election_timeout_max: settings.election_max_ms,
        enable_pre_vote: Some(true),
        enable_leader_restore: Some(false),
        snapshot_policy: openraft::SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        replication_lag_threshold: 200_000,
        install_snapshot_timeout: 600_000,
        state_machine_channel_size: Some(COMMITS_TO_APPLY_MAX),
        ..openraft::Config::default()
    };
    config.validate()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::config::Config;

    /// While RaftCore waits for a place in that queue, it sends no heartbeats.
    #[test]
    fn ten_seconds_of_commits_may_wait_for_apply() {
        let config = Config::from_parts("test", "", []);
        let settings = raft_config(&config.unwrap().raft).unwrap();
        assert!(settings.state_machine_channel_size >= Some(10 * 10_000));
    }
}
