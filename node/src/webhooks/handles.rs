//! What the workers of webhooks share.

use std::sync::Arc;

use super::calls::Calls;
use crate::base::secrets::Secrets;
use crate::leader::LeaderHandles;

/// What the workers of webhooks share. Cheap to clone.
#[derive(Clone)]
pub struct WebhookHandles {
    /// What every worker of the leader uses.
    pub leader: LeaderHandles,
    /// The calls of this node.
    pub calls: Calls,
    /// What calls are signed with.
    pub secrets: Arc<Secrets>,
}
