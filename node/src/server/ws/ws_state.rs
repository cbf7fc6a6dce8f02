//! The state that all sessions of a node share, and the timeouts of sessions.

use std::sync::Arc;
use std::time::Duration;

use agentpost_proto::limits;
use tokio::sync::watch;

use super::ack::Acks;
use super::admission::Admission;
use crate::base::lifetime::Lifetime;
use crate::cluster::presence::Presence;
use crate::server::services::Services;

/// The timeouts of a session. The defaults are the documented values; tests shorten them.
#[derive(Debug, Clone)]
pub struct SessionOptions {
    /// Time limit for the `connect` frame, counted from the upgrade.
    pub handshake_within: Duration,
    /// Interval between pings.
    pub ping_every: Duration,
    /// A client that has sent nothing for this long, with pings unanswered, is disconnected. A client does not read its
    /// socket while it runs a long handler.
    pub silent_max: Duration,
    /// Time limit for a write that waits for the reader.
    pub stalled_max: Duration,
    /// The age from which an event counts as acked by an answered ping.
    pub implied_after: Duration,
    /// Interval at which an open session reports the use of its cursor.
    pub touch_every: Duration,
    /// Longest interval between two reads of the state without a hint; the shortest is half of it.
    pub look_every: Duration,
    /// Interval between two ack operations of this node.
    pub ack_every: Duration,
    /// A node without a leader for this long closes its sessions, because it would not learn of revoked keys.
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

/// The handles that only the WebSocket sessions use.
#[derive(Clone)]
pub struct WsHandles {
    /// Counts the open sessions of agents.
    pub presence: Presence,
    /// The shutdown of the process.
    pub lifetime: Lifetime,
    /// The prefix of the `source` of every event.
    pub source_prefix: String,
}

/// The state that all sessions of a node share. Cheap to clone.
#[derive(Clone)]
pub struct WsState {
    pub(super) services: Services,
    pub(super) lifetime: Lifetime,
    pub(super) source_prefix: String,
    pub(super) options: Arc<SessionOptions>,
    pub(super) acks: Acks,
    pub(super) admission: Admission,
    /// True while this node has no contact with the leader.
    pub(super) isolated: watch::Receiver<bool>,
}
