//! The handles of a running node, as tests use them.

use std::sync::Arc;

use agentpost_node::base::clock::{Clock, IdSource};
use agentpost_node::base::lifetime::Lifetime;
use agentpost_node::base::secrets::Secrets;
use agentpost_node::cluster::status::ClusterHandle;
use agentpost_node::node::RunningNode;
use agentpost_node::server::services::Services;
use agentpost_node::server::ws::ws_state::WsHandles;
use agentpost_node::shard::proposer::Proposer;
use agentpost_node::shard::reader::Reader;
use agentpost_node::webhooks::egress::Egress;
use agentpost_raft_store::disk::state::{StateDb, StateHandle};
use agentpost_testkit::eventually;

/// The handles of a running node. Clones are cheap.
#[derive(Clone)]
pub struct NodeHandles {
    pub reader: Reader,
    /// The database, which a node reads only on the pool of reads.
    pub state: StateHandle,
    pub proposer: Proposer,
    pub clock: Clock,
    pub ids: IdSource,
    pub secrets: Arc<Secrets>,
    pub cluster: ClusterHandle,
    pub lifetime: Lifetime,
    pub egress: Egress,
    pub services: Services,
}

impl NodeHandles {
    pub fn of(node: &RunningNode) -> Self {
        let services = node.services.clone();
        NodeHandles {
            reader: services.replica.reader.clone(),
            state: node.state().clone(),
            proposer: services.replica.proposer.clone(),
            clock: services.wall_time.clock().clone(),
            ids: services.ids.clone(),
            secrets: Arc::clone(&services.secrets),
            cluster: node.cluster.clone(),
            lifetime: node.lifetime.clone(),
            egress: node.egress.clone(),
            services,
        }
    }

    /// The state of a linearizable read, if a quorum confirms a leader now.
    pub async fn fresh_state(&self) -> Option<Arc<StateDb>> {
        self.reader.linearizable().await.ok()?;
        Some(self.state.current())
    }

    /// What `/metrics` shows.
    pub fn metrics_text(&self) -> String {
        self.cluster.metrics_text(&self.services.metrics)
    }

    /// The handles for serving `/ws` on another port.
    pub fn ws(&self) -> WsHandles {
        WsHandles {
            presence: self.cluster.presence.clone(),
            lifetime: self.lifetime.clone(),
            source_prefix: "https://getkite.sh/agents/".to_owned(),
        }
    }
}

/// The state of a linearizable read. The read is repeated while no quorum confirms a leader, as a client would.
pub async fn read_state(node: &NodeHandles) -> Arc<StateDb> {
    eventually("a linearizable read", async || node.fresh_state().await).await
}
