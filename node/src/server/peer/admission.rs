//! Decides which nodes may connect to this node, and ends the connections of removed ones.
//!
//! | what this node knows | nodes that are admitted |
//! |---|---|
//! | no membership that contains it: it is new, or still reads old log entries | its configured list, and that membership |
//! | a membership that contains it | that membership, learners included |
//! | the same, but it has heard no leader for [`SILENCE_MAX`] | also ids that were never used as far as it knows |
//!
//! The last row serves a node that was away while all others were replaced: only the new nodes can tell it about them.
//! A former member is never admitted, and its connections end as soon as its removal is known. Every node has proven
//! that it holds the cluster secret before these rules apply.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use agentpost_raft_store::core::query;
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::base::config::Config;
use crate::net::dial::Dialer;
use crate::shard::quorum::Quorum;
use crate::shard::this_node::ThisNode;
use crate::webhooks::egress::Egress;

/// After this time without a leader, a node no longer trusts its list of members.
const SILENCE_MAX: Duration = Duration::from_secs(3);

/// The time at which a leader was last heard. Clones share it.
#[derive(Clone)]
struct Contact {
    began: Instant,
    /// Milliseconds since `began`, plus one; 0 = never.
    last: Arc<AtomicU64>,
}

impl Default for Contact {
    fn default() -> Self {
        Contact {
            began: Instant::now(),
            last: Arc::default(),
        }
    }
}

impl Contact {
    /// Records that a leader sent a message.
    fn note(&self) {
        let ms = self.began.elapsed().as_millis() as u64 + 1;
        self.last.store(ms, Ordering::Relaxed);
    }

    fn is_silent(&self) -> bool {
        let now = self.began.elapsed().as_millis() as u64 + 1;
        match self.last.load(Ordering::Relaxed) {
            0 => true,
            last => now.saturating_sub(last) > SILENCE_MAX.as_millis() as u64,
        }
    }
}

/// Admits and removes nodes. Clones are cheap and share the connections.
#[derive(Clone)]
pub struct Admission {
    shared: Arc<Shared>,
}

struct Shared {
    config: Arc<Config>,
    this_node: ThisNode,
    quorum: Quorum,
    contact: Contact,
    /// Cancelled when the node stops.
    shutdown: CancellationToken,
    /// A token per admitted node; cancelling it ends the node's connections.
    inside: Mutex<HashMap<u64, CancellationToken>>,
}

impl Admission {
    /// Creates the rules of this node. `shutdown` ends all connections.
    pub fn new(config: Arc<Config>, this_node: ThisNode, quorum: Quorum, shutdown: CancellationToken) -> Self {
        let shared = Shared {
            config,
            this_node,
            quorum,
            contact: Contact::default(),
            shutdown,
            inside: Mutex::default(),
        };
        Admission {
            shared: Arc::new(shared),
        }
    }

    /// Records that a leader was heard.
    pub fn heard_leader(&self) {
        self.shared.contact.note();
    }

    /// The token that ends all connections.
    pub fn shutdown(&self) -> &CancellationToken {
        &self.shared.shutdown
    }

    /// Whether a node that has proven its id is admitted.
    pub fn admits(&self, id: u64) -> bool {
        let Shared { config, this_node, .. } = &*self.shared;
        if this_node.is_member(id) {
            return true;
        }
        if self.was_removed(id) {
            return false;
        }
        if !this_node.is_member(this_node.id()) && config.member(id).is_some() {
            return true;
        }
        self.is_out_of_touch() || self.inside().contains_key(&id)
    }

    /// Registers an admitted node. The token is cancelled when the node is removed; `None` if it was removed since
    /// `admits` returned true.
    pub fn enter(&self, id: u64) -> Option<CancellationToken> {
        let token = self
            .inside()
            .entry(id)
            .or_insert_with(|| self.shared.shutdown.child_token())
            .clone();
        (!self.was_removed(id)).then_some(token)
    }

    /// Follows the membership until `shutdown`: ends the connections of removed nodes, and closes the members' ports
    /// for webhooks.
    pub async fn run(self, egress: Egress, dialer: Dialer) {
        let this_node = &self.shared.this_node;
        let mut lead = this_node.lead();
        let following = async {
            loop {
                egress.set_members(this_node.members().values());
                let removed: Vec<u64> = self
                    .inside()
                    .keys()
                    .copied()
                    .filter(|id| self.was_removed(*id))
                    .collect();
                for id in removed {
                    tracing::info!(
                        node = id,
                        "a node was removed from the cluster; its connections were closed"
                    );
                    if let Some(token) = self.inside().remove(&id) {
                        token.cancel();
                    }
                }
                dialer.forget(|id| self.was_removed(id));
                if lead.changed().await.is_err() {
                    return;
                }
            }
        };
        self.shared.shutdown.run_until_cancelled(following).await;
    }

    fn inside(&self) -> MutexGuard<'_, HashMap<u64, CancellationToken>> {
        self.shared.inside.lock()
    }

    /// Whether a node is a former member. This is final, because ids are never used again.
    fn was_removed(&self, id: u64) -> bool {
        let this_node = &self.shared.this_node;
        if this_node.is_member(id) {
            return false;
        }
        match query::node_ids(&*this_node.state().current()) {
            Ok(used) => used.contains(&id),
            Err(error) => {
                tracing::error!(%error, "reading the ids of former members failed; the node is refused; check the disk");
                true
            }
        }
    }

    fn is_out_of_touch(&self) -> bool {
        self.shared.contact.is_silent() && !self.shared.quorum.is_fresh()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_leader_is_heard_for_a_while() {
        let contact = Contact::default();
        assert!(contact.is_silent(), "never heard");
        contact.note();
        assert!(!contact.is_silent());
        tokio::time::advance(SILENCE_MAX).await;
        assert!(!contact.is_silent());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(contact.is_silent());
    }
}
