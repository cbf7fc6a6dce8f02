//! The keys that clients try, and the agents that the keys act as.

use std::sync::Arc;

use agentpost::Secret;
use agentpost::api::abbababa::SendRequest;
use anyhow::Result;
use parking_lot::Mutex;
use rand::RngExt;
use rand::rngs::StdRng;

use crate::workload::ask::{self, NodeClients};

/// The receiver of the messages that the keys write.
pub const SINK: &str = "sink";
/// The agent that keys are bound to, and that unbound keys act as.
pub const WRITER: &str = "writer";

/// The keys that users may try now.
#[derive(Clone, Default)]
pub struct ActiveKeys(Arc<Mutex<Vec<Arc<SharedKey>>>>);

/// A key that users may try.
pub struct SharedKey {
    /// Its name in the history.
    pub name: String,
    pub team: String,
    pub secret: Secret,
    pub nodes: NodeClients,
    pub writes: bool,
}

impl ActiveKeys {
    pub fn change(&self, change: impl FnOnce(&mut Vec<Arc<SharedKey>>)) {
        change(&mut self.0.lock());
    }

    pub fn any(&self, random: &mut StdRng) -> Option<Arc<SharedKey>> {
        let keys = self.0.lock();
        (!keys.is_empty()).then(|| keys[random.random_range(0..keys.len())].clone())
    }
}

/// A message to an agent.
pub fn to(agent: &str, key: &str) -> Result<SendRequest> {
    Ok(SendRequest {
        to_agent_id: Some(agent.to_owned()),
        ..ask::note(key)?
    })
}
