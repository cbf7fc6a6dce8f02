//! The parameters and payloads of WebSocket requests, as the vendor's command line reads them. Optional fields that the
//! vendor does not know are additions of this project.

use serde::{Deserialize, Serialize};

pub use crate::api::admin::CreatedKey;
use crate::api::admin::Key;
use crate::cloudevent::CloudEvent;

/// The maximal number of events of one `events.recent`.
pub const RECENT_EVENTS_MAX: u64 = 1_000;
/// Events of an `events.recent` without a limit.
pub const RECENT_EVENTS_DEFAULT: u64 = 100;

/// The error in the payload of a refused request.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Refused {
    /// A sentence for people.
    pub error: String,
}

/// The start of the error text of a request that may or may not have been carried out. The vendor's payload has no
/// field for this, and a client that does not know the prefix shows the text as it is.
pub const OUTCOME_UNKNOWN: &str = "outcome unknown: ";
/// The start of the error text of a request that was not carried out and may succeed later or at another node.
pub const NOT_CARRIED_OUT: &str = "not carried out: ";

/// `events.recent`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RecentParams {
    /// The maximal number of events; [`RECENT_EVENTS_DEFAULT`] if absent. A number outside the range from 1
    /// to [`RECENT_EVENTS_MAX`] counts as the nearest one inside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// Only events before this seq.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before_seq: Option<u64>,
    /// Only events of this thread.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thread_id: Option<String>,
}

/// The events that the session's scopes show, newest first.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Recent<E = RecentEvent> {
    /// At most `limit` events; fewer if they are large or few match.
    pub events: Vec<E>,
    /// The parameter `before_seq` of the next page; `None` on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_before_seq: Option<u64>,
}

/// An event of [`Recent`].
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
    /// The team of the session's key.
    pub team_id: String,
    /// The events of all kinds that were accepted today (UTC). The name is the vendor's.
    pub webhooks_today: u64,
    /// The number of webhook URLs.
    pub active_endpoints: u64,
    /// The number of keys that are neither revoked nor expired.
    pub active_api_keys: u64,
    /// The permissions of the session's key.
    pub current_key_permissions: Vec<String>,
    /// Always `self-hosted`, because Agentpost has no plans.
    pub plan_name: String,
    /// The maximal number of topics of a team.
    pub active_sources_limit: u64,
}

/// `keys.list`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct KeyList {
    pub team_id: String,
    /// The keys, oldest first. If the list would not fit into a frame, keys with many scopes show some of them and then
    /// `… and N more`.
    pub keys: Vec<Key>,
}

/// The parameters of `keys.create`, whose payload is a [`CreatedKey`]. `null` counts as absent.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct CreateKeyParams {
    /// The display name. The vendor's command line may leave it out.
    #[serde(default)]
    pub name: Option<String>,
    /// The scopes; `["*"]` if absent.
    #[serde(default)]
    pub scopes: Option<Vec<String>>,
    /// The permissions; `["read"]` if absent. `*` means `admin`.
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
