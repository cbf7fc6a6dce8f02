//! Creates a cluster, once, on the one node that is configured to do so.
//!
//! The admin key is on that node's disk before the cluster exists, so every cluster has an administrator; the state
//! stores only the hash of the key. The node proposes the key until the state has an admin key; apply accepts only the
//! first one.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use agentpost_proto::command::{BootstrapAdmin, Operation};
use agentpost_proto::peer::StatusRequest;
use agentpost_raft_store::core::query;
use agentpost_raft_store::disk::types::Member;
use anyhow::Context as _;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::base::clock::IdSource;
use crate::base::config::Config;
use crate::base::repeats::Repeats;
use crate::base::secrets::{self, NewKey, Secrets};
use crate::net::dial::{Dialer, Purpose};
use crate::net::shard_id::SHARD;
use crate::shard::replica::Replica;
use crate::shard::this_node::ThisNode;

/// The pause between two attempts.
const RETRY: Duration = Duration::from_millis(100);
/// Time limit for another node to answer whether the cluster exists already.
const ASK_DEADLINE: Duration = Duration::from_millis(200);

/// The first steps of a cluster.
pub struct Bootstrap {
    /// The configuration: the list of nodes and the file of the admin key.
    pub config: Arc<Config>,
    /// Reads the state, and proposes the admin key.
    pub replica: Replica,
    /// Initialises the Raft group.
    pub this_node: ThisNode,
    /// Connections to the other nodes.
    pub dialer: Dialer,
    /// The source of new ids.
    pub ids: IdSource,
    /// The secrets, for hashing keys.
    pub secrets: Arc<Secrets>,
}

impl Bootstrap {
    /// Runs until the cluster has an admin key or `shutdown` is cancelled. Does nothing unless the configuration names
    /// an admin key file.
    pub async fn run(self, shutdown: CancellationToken) {
        let Some(file) = self.config.bootstrap.admin_key_file.clone() else {
            return;
        };
        let working = async {
            let failures = Repeats::default();
            while let Err(error) = self.attempt(&file).await {
                if let Some(left_out) = failures.due(()) {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        left_out,
                        "a bootstrap attempt failed; retrying; the error says why"
                    );
                }
                sleep(RETRY).await;
            }
        };
        shutdown.run_until_cancelled(working).await;
    }

    async fn attempt(&self, file: &Path) -> anyhow::Result<()> {
        let api_key = self.admin_key(file)?;
        if !self.this_node.is_initialized().await? && !self.exists_elsewhere().await {
            self.initialize().await?;
        }
        loop {
            match self.replica.reader.linearizable().await {
                Ok(state) if query::key::has_admin(&state)? => return Ok(()),
                Ok(_) => self.propose(&api_key).await?,
                // The other nodes have not started yet.
                Err(error) => tracing::debug!(%error, "proposing the admin key failed: no quorum; retrying"),
            }
        }
    }

    /// Reads the key from the file. If there is no file, creates a key that is durable before this returns.
    fn admin_key(&self, file: &Path) -> anyhow::Result<String> {
        match std::fs::read_to_string(file) {
            Ok(text) => Ok(text.trim().to_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let key = NewKey::team(&self.ids);
                secrets::write_private(file, format!("{}\n", key.api_key).as_bytes())?;
                tracing::info!(file = %file.display(), "admin key written; keep this file secret");
                Ok(key.api_key)
            }
            Err(error) => Err(error).with_context(|| format!("bootstrap.admin_key_file {}", file.display())),
        }
    }

    /// Whether another node is part of the cluster already. If so, this node has lost its disk and must not create the
    /// cluster again.
    async fn exists_elsewhere(&self) -> bool {
        let config = &self.config;
        let others = config.cluster.nodes.iter().filter(|member| member.id != config.node.id);
        let asked = others.map(|member| async {
            let mut client = self.dialer.client(member.id, &member.peer_addr, Purpose::Control);
            match timeout(ASK_DEADLINE, client.status(StatusRequest { shard: SHARD })).await {
                Ok(Ok(status)) => status.into_inner().last_log_index > 0,
                _ => false,
            }
        });
        futures::future::join_all(asked).await.contains(&true)
    }

    async fn initialize(&self) -> anyhow::Result<()> {
        let nodes = self.config.cluster.nodes.iter();
        let members: BTreeMap<u64, Member> = nodes
            .map(|node| {
                (
                    node.id,
                    Member {
                        peer_addr: node.peer_addr.clone(),
                        url: node.url.clone(),
                    },
                )
            })
            .collect();
        self.this_node.initialize(members).await
    }

    async fn propose(&self, api_key: &str) -> anyhow::Result<()> {
        let op = BootstrapAdmin {
            key_id: NewKey::team(&self.ids).id.to_bytes(),
            key_hash: self.secrets.key_hash(api_key).to_vec().into(),
            key_prefix: secrets::prefix_of(api_key),
        };
        self.replica.proposer.propose(Operation::internal(op)).await?;
        Ok(())
    }
}
