//! Kite's WebSocket frames: JSON text, tagged by `type`. Both directions must stay exchangeable with the
//! vendor's crate `kite-protocol`; `node/tests` proves it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cloudevent::CloudEvent;
use crate::secret::Secret;

/// The key is invalid or revoked, belongs to another team, or allows none of the scopes. Clients must not reconnect.
pub const ERR_AUTH_FAILED: u32 = 4001;
/// A frame or scope that cannot be read.
pub const ERR_INVALID_MESSAGE: u32 = 4002;
/// Too many requests.
pub const ERR_RATE_LIMITED: u32 = 4003;
/// The reader does not keep up; reconnecting resumes without loss.
pub const ERR_SLOW_CONSUMER: u32 = 4004;
/// The team's quota is used up.
pub const ERR_QUOTA_BLOCKED: u32 = 4005;

/// A frame from the client. Unknown keys are ignored. A frame with an unknown `type` does not parse, and the session
/// ignores it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum ClientFrame {
    Connect {
        version: u32,
        token: Secret,
        team_id: String,
        #[serde(default)]
        scopes: Vec<String>,
        #[serde(default)]
        client_id: Option<String>,
    },
    Ack {
        seq: u64,
    },
    Request {
        id: String,
        method: String,
        #[serde(default)]
        params: Value,
    },
}

/// A frame from the server, with the event as an `E`. A reader accepts more than the server sends: an unknown `type` is
/// [`ServerFrame::Other`], and texts that only people read may be absent.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum ServerFrame<E = CloudEvent> {
    Connected {
        last_seq: u64,
        client_id: String,
    },
    QuotaSnapshot {
        provider: String,
        events_used: i64,
        events_limit: i64,
        current_period_end: String,
    },
    Event {
        seq: u64,
        event: E,
    },
    Response {
        id: String,
        ok: bool,
        #[serde(default)]
        payload: Value,
    },
    CursorExpired {
        oldest_available_seq: u64,
        #[serde(default)]
        message: String,
    },
    /// The team can send nothing for now; what it has received can still be read.
    BillingBlock {
        #[serde(default)]
        provider: String,
        #[serde(default)]
        reason: String,
        #[serde(default)]
        retryable: bool,
        #[serde(default)]
        action: Value,
    },
    Error {
        code: u32,
        message: String,
    },
    /// A frame that this version does not know. It is only read, never sent.
    #[serde(other, skip_serializing)]
    Other,
}
