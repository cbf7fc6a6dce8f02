//! Parameters and payloads of the methods of the socket, as the vendor's command line reads them. Optional fields
//! beyond those are ours.

use serde::{Deserialize, Serialize};

pub use crate::api::admin::CreatedKey;
use crate::api::admin::Key;
use crate::cloudevent::CloudEvent;

/// The error in the payload of a refused request.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Refused {
    /// A sentence for people.
    pub error: String,
}

/// How the error of a request begins that may or may not have been carried out. The vendor's payload has no field for
/// it; a client that does not know these words shows them.
pub const OUTCOME_UNKNOWN: &str = "outcome unknown: ";
/// How it begins when nothing was done and another node, or a later time, may help.
pub const NOT_CARRIED_OUT: &str = "not carried out: ";

/// `events.recent`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RecentParams {
    /// Events at most; `limits::RECENT_EVENTS_DEFAULT` when missing, and from 1 to `limits::RECENT_EVENTS_MAX` whatever is
    /// asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// Only events before this seq.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before_seq: Option<u64>,
    /// Only events of this thread.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thread_id: Option<String>,
}

/// The events that the session's scopes show, the newest first.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Recent<E = RecentEvent> {
    /// At most `limit`; fewer when they are large, or few match.
    pub events: Vec<E>,
    /// `before_seq` of the next page; none when nothing is left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_before_seq: Option<u64>,
}

/// One of them.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct RecentEvent {
    pub seq: u64,
    pub created_at: String,
    pub event: CloudEvent,
}

/// `dashboard.stats`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Stats {
    /// Of the session's key.
    pub team_id: String,
    /// Events accepted today (UTC), of whatever kind; the name is the vendor's.
    pub webhooks_today: u64,
    /// URLs that webhooks go to.
    pub active_endpoints: u64,
    /// Keys that are neither revoked nor expired.
    pub active_api_keys: u64,
    /// Of the session's key.
    pub current_key_permissions: Vec<String>,
    /// There are no plans here: `self-hosted`.
    pub plan_name: String,
    /// Topics of a team at most.
    pub active_sources_limit: u64,
}

/// `keys.list`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct KeyList {
    pub team_id: String,
    /// By age. In a list that would not fit a frame, keys with many scopes show some, then `… and N more`.
    pub keys: Vec<Key>,
}

/// `keys.create`, which answers [`CreatedKey`]. `null` counts as missing.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct CreateKeyParams {
    /// For people; the vendor's command line may leave it out.
    #[serde(default)]
    pub name: Option<String>,
    /// `["*"]` when missing.
    #[serde(default)]
    pub scopes: Option<Vec<String>>,
    /// `["read"]` when missing; `*` is `admin`.
    #[serde(default)]
    pub permissions: Option<Vec<String>>,
    /// RFC 3339.
    #[serde(default)]
    pub expires_at: Option<String>,
}

/// Parameters and payload of `keys.revoke`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct KeyId {
    pub id: String,
}
