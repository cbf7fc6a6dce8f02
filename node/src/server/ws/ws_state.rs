//! What all sessions of a node share, and their timeouts.

use std::sync::Arc;
use std::time::Duration;

use agentpost_proto::limits;
use tokio::sync::watch;

use super::ack::Acks;
use super::admission::Admission;
use crate::base::lifetime::Lifetime;
use crate::cluster::presence::Presence;
use crate::server::services::Services;

/// The times of a session. The defaults are the documented ones; tests shorten them.
#[derive(Debug, Clone)]
pub struct SessionOptions {
    /// For the `connect` frame, from the upgrade on.
    pub handshake_within: Duration,
    /// Between pings.
    pub ping_every: Duration,
    /// Silence, with pings unanswered, after which a client is given up. A client that runs a long handler
    /// does not read its socket meanwhile.
    pub silent_max: Duration,
    /// How long a write may wait for the reader.
    pub stalled_max: Duration,
    /// How old an event must be before an answered ping counts as its ack.
    pub implied_after: Duration,
    /// How often an open session tells its cursor that it is used.
    pub touch_every: Duration,
    /// Between looks at the state without a hint, at most; at least half of it.
    pub look_every: Duration,
    /// Between two ack operations of this node.
    pub ack_every: Duration,
    /// Without a leader for this long a node closes its sessions: it would not hear of a revoked key.
    pub isolated_max: Duration,
}

impl Default for SessionOptions {
    fn default() -> Self {
        SessionOptions {
            handshake_within: Duration::from_secs(10),
            ping_every: Duration::from_secs(30),
            silent_max: Duration::from_secs(600),
            stalled_max: Duration::from_secs(30),
            implied_after: Duration::from_secs(60),
            touch_every: Duration::from_millis(limits::CURSOR_TOUCH_MS),
            look_every: Duration::from_secs(5),
            ack_every: Duration::from_millis(50),
            isolated_max: Duration::from_secs(3),
        }
    }
}

/// What only the WebSocket needs.
#[derive(Clone)]
pub struct WsHandles {
    /// Counts the open sessions of agents.
    pub presence: Presence,
    /// The life of the process.
    pub lifetime: Lifetime,
    /// What the sources of events begin with.
    pub source_prefix: String,
}

/// What all sessions of a node share. Cheap to clone.
#[derive(Clone)]
pub struct WsState {
    pub(super) services: Services,
    pub(super) lifetime: Lifetime,
    pub(super) source_prefix: String,
    pub(super) options: Arc<SessionOptions>,
    pub(super) acks: Acks,
    pub(super) admission: Admission,
    /// True while this node is cut off from the leader.
    pub(super) isolated: watch::Receiver<bool>,
}
