//! Quarantine: a node whose disk lost data that its cluster relies on keeps running only to report the reason.
//!
//! A majority counts on what each of its nodes has written. If a node's log ends below the durability floor, or if its
//! data cannot be read or replaced, it must not vote, append or serve, or an acknowledged write could be lost. If the
//! process exited instead, the reason would be hidden in a log file and a supervisor would restart it for ever. So
//! `agentpostd` serves health and metrics, answers everything else with 503 and the reason, and keeps the peer port
//! closed.
//!
//! The file `QUARANTINE` in the data directory preserves the quarantine over restarts. In a cluster `agentpost node
//! rejoin` ends it: the node joins again, empty and under a new id. A single node must be restored from its backup.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;

use agentpost_raft_store::disk::damage;
use agentpost_raft_store::disk::error::OpenError;
use agentpost_raft_store::disk::floor::Identity;
use agentpost_raft_store::disk::memory_budget::MemoryBudget;
use agentpost_raft_store::disk::open;
use agentpost_raft_store::disk::options::Options;
use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

use super::client_port::ClientPort;
use crate::base::config::Config;
use crate::base::metrics::Metrics;
use crate::base::owner::{self, Found, OWNER};
use crate::base::secrets::Secrets;
use crate::net::shard_id::SHARD;
use crate::server::http::refusing;

/// The reason why this node is quarantined.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Quarantine(pub String);

/// A node in quarantine whose client port is open.
pub struct Quarantined {
    /// The client port.
    pub port: ClientPort,
    /// The reason of the quarantine.
    pub reason: Quarantine,
}

/// Checks the data directory before anything in it is opened or written. Returns the options for opening its databases,
/// or a [`Quarantine`] error. In a new directory this writes the first file, before the one that marks the directory as
/// used: an interrupted first start must not look like lost data.
pub fn look(config: &Config, secrets: &Secrets) -> anyhow::Result<Options> {
    let dir = &config.node.data_dir;
    if let Some(reason) = damage::quarantined(dir).with_context(|| dir.display().to_string())? {
        return Err(Quarantine(reason).into());
    }
    let identity = Identity {
        cluster_id: secrets.cluster_id,
        node: config.node.id,
    };
    let found = open::identity(dir, SHARD);
    let used = match owner::look(config, secrets)? {
        Found::Missing => {
            if let Some(other) = found.filter(|found| *found != identity) {
                anyhow::bail!(
                    "{} belongs to node {}; check node.id and node.data_dir",
                    dir.display(),
                    other.node
                );
            }
            let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
            made.with_context(|| format!("node.data_dir {}", dir.display()))?;
            open::begin(dir, SHARD, identity).map_err(|error| enter(config, error))?;
            false
        }
        Found::This(_) => true,
        // [`owner::claim`] refuses this later and names the owner.
        Found::Other(_) if found != Some(identity) => true,
        Found::Other(_) | Found::Unreadable => {
            let error = OpenError::quarantine(
                &dir.join(OWNER),
                "it is unreadable, or names another node than FLOOR does",
            );
            return Err(enter(config, error));
        }
    };
    Ok(Options {
        identity: Some(identity),
        used,
        state_memory: MemoryBudget::new(config.storage.memory_bytes),
        ..Options::default()
    })
}

/// Records a quarantine if it is the reason why the databases could not be opened.
pub fn enter(config: &Config, error: OpenError) -> anyhow::Error {
    if !matches!(error, OpenError::Quarantine { .. }) {
        return error.into();
    }
    let reason = error.to_string();
    note(config, &reason);
    Quarantine(reason).into()
}

/// Writes the file `QUARANTINE`, which keeps this node out of the cluster over restarts until it joins again.
pub fn note(config: &Config, reason: &str) {
    if let Err(error) = damage::quarantine(&config.node.data_dir, reason) {
        tracing::error!(%error, "writing the file QUARANTINE failed; do not restart this node, it might serve again");
    }
}

/// The remedy for the operator.
fn advice(config: &Config) -> String {
    if config.cluster.nodes.len() > 1 {
        "this node is quarantined: stop it and run `agentpost node rejoin --config FILE` on its machine, with \
         AGENTPOST_URLS naming the other nodes; it joins again empty and under a new id, and they send it all data"
            .to_owned()
    } else {
        format!(
            "this node is quarantined, and no other node has its data: stop it, move {} away and restore it from a backup",
            config.node.data_dir.display()
        )
    }
}

/// Serves health, metrics and refusals until `shutdown` is cancelled.
pub async fn serve(config: &Config, quarantined: Quarantined, shutdown: CancellationToken) {
    let Quarantined { port, reason } = quarantined;
    let (Quarantine(reason), advice) = (reason, advice(config));
    tracing::error!(
        node = config.node.id,
        reason,
        advice,
        "node quarantined; follow the advice"
    );
    let health = serde_json::json!({ "status": "quarantined", "reason": reason });
    let metrics = Metrics::new();
    metrics.storage.quarantined.set(1);
    port.serve(refusing::router(&health, metrics, move || {
        format!("{advice}. Reason: {reason}")
    }));
    shutdown.cancelled().await;
    port.close().await;
}
