//! Brings a cluster into being, once, on the one node that is configured to.
//!
//! The admin key is on that node's disk before the cluster exists, so no cluster is ever without somebody who
//! may administer it; the state gets only its hash. As long as the state has no admin key the node keeps
//! proposing it; apply takes the first and no other.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use agentpost_proto::command::{BootstrapAdmin, Operation, operation};
use agentpost_proto::peer::StatusRequest;
use agentpost_raft_store::query;
use agentpost_raft_store::types::Member;
use anyhow::Context as _;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::base::secrets::{self, NewKey};
use crate::net::dial::Purpose;
use crate::net::shard_id::SHARD;
use crate::server::services::Services;

/// Between two attempts.
const RETRY: Duration = Duration::from_millis(100);
/// What another node is given to say whether the cluster exists already.
const ASK_DEADLINE: Duration = Duration::from_millis(200);

/// The first steps of a cluster.
pub struct Bootstrap {
    services: Services,
}

impl Bootstrap {
    /// Acts only if the configuration names an admin key file.
    pub fn new(services: Services) -> Self {
        Bootstrap { services }
    }

    /// Runs until the cluster has an admin key, or `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let Some(file) = self.services.config.bootstrap.admin_key_file.clone() else {
            return;
        };
        let working = async {
            while let Err(error) = self.attempt(&file).await {
                tracing::warn!(error = format!("{error:#}"), "bootstrap not done yet");
                sleep(RETRY).await;
            }
        };
        shutdown.run_until_cancelled(working).await;
    }

    async fn attempt(&self, file: &Path) -> anyhow::Result<()> {
        let api_key = self.admin_key(file)?;
        if !self.services.cluster.local.is_initialized().await? && !self.exists_elsewhere().await {
            self.initialize().await?;
        }
        loop {
            match self.services.reader.linearizable().await {
                Ok(state) if query::has_admin(&*state)? => return Ok(()),
                Ok(_) => self.propose(&api_key).await?,
                // The others are not here yet.
                Err(error) => tracing::debug!(%error, "waiting for a quorum"),
            }
        }
    }

    /// The key in the file; a new one, durable before this returns, if there is no file.
    fn admin_key(&self, file: &Path) -> anyhow::Result<String> {
        match std::fs::read_to_string(file) {
            Ok(text) => Ok(text.trim().to_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let key = NewKey::team(&self.services.ids);
                secrets::write_private(file, format!("{}\n", key.api_key).as_bytes())?;
                tracing::info!(file = %file.display(), "admin key written");
                Ok(key.api_key)
            }
            Err(error) => Err(error).with_context(|| format!("bootstrap.admin_key_file {}", file.display())),
        }
    }

    /// Whether another node knows the cluster already: then this one lost its disk, and must not found it again.
    async fn exists_elsewhere(&self) -> bool {
        let config = &self.services.config;
        let others = config.cluster.nodes.iter().filter(|member| member.id != config.node.id);
        let asked = others.map(|member| async {
            let mut client = self
                .services
                .cluster
                .dialer
                .client(member.id, &member.peer_addr, Purpose::Control);
            match timeout(ASK_DEADLINE, client.status(StatusRequest { shard: SHARD })).await {
                Ok(Ok(status)) => status.into_inner().last_log_index > 0,
                _ => false,
            }
        });
        futures::future::join_all(asked).await.contains(&true)
    }

    async fn initialize(&self) -> anyhow::Result<()> {
        let nodes = self.services.config.cluster.nodes.iter();
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
        self.services.cluster.local.initialize(members).await
    }

    async fn propose(&self, api_key: &str) -> anyhow::Result<()> {
        let services = &self.services;
        let op = BootstrapAdmin {
            key_id: NewKey::team(&services.ids).id.to_bytes(),
            key_hash: services.secrets.key_hash(api_key).to_vec().into(),
            key_prefix: secrets::prefix_of(api_key),
        };
        let operation = Operation {
            principal: None,
            op: Some(operation::Op::BootstrapAdmin(op)),
        };
        services.proposer.propose(operation).await?;
        Ok(())
    }
}
