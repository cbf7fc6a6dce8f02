//! The handles that the webhook workers share.

use std::sync::Arc;

use super::calls::Calls;
use crate::base::secrets::Secrets;
use crate::leader::LeaderHandles;
use crate::net::dial::Dialer;
use crate::shard::this_node::ThisNode;

/// The handles that the webhook workers share. Clones are cheap.
#[derive(Clone)]
pub struct WebhookHandles {
    /// The handles that every worker of the leader uses.
    pub leader: LeaderHandles,
    /// The calls of this node.
    pub calls: Calls,
    /// The secrets that sign calls.
    pub secrets: Arc<Secrets>,
    /// Knows the other members.
    pub this_node: ThisNode,
    /// Connects to them.
    pub dialer: Dialer,
}
