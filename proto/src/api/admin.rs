//! The operator API, `/admin/v1`.

use serde::{Deserialize, Deserializer, Serialize};

use crate::secret::Secret;

/// `POST /teams`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateTeam {
    /// The name of the team, unique in the cluster.
    pub name: String,
    /// The limits. A limit that is absent gets the default of the plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<LimitsPatch>,
}

/// `PATCH /teams/{id}`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpdateTeam {
    /// The limits to change. A limit that is absent keeps its value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<LimitsPatch>,
    /// Whether mail to an unregistered agent is refused with 404.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strict_recipients: Option<bool>,
}

/// Limits to set. 0 is unlimited; `overage_price_atomic: null` removes the price.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct LimitsPatch {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub daily_sends: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub daily_reads: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub daily_webhook_registrations: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monthly_events: Option<u64>,
    /// `None` if the field is absent, `Some(None)` if it is `null`.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "named")]
    pub overage_price_atomic: Option<Option<u64>>,
}

/// Distinguishes `null` from an absent field.
fn named<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Option<u64>>, D::Error> {
    Option::deserialize(input).map(Some)
}

/// A team.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Team {
    pub id: String,
    pub name: String,
    pub limits: Limits,
    pub strict_recipients: bool,
}

/// The limits of a team; 0 is unlimited.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Limits {
    pub daily_sends: u64,
    pub daily_reads: u64,
    pub daily_webhook_registrations: u64,
    pub monthly_events: u64,
    pub overage_price_atomic: Option<u64>,
}

/// `GET /teams`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Teams {
    /// By id.
    pub teams: Vec<Team>,
}

/// `POST /teams/{id}/keys`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateKey {
    /// For people.
    pub name: String,
    /// Some of `read`, `write` and `admin`; each includes the ones before it.
    pub permissions: Vec<String>,
    /// Binds the key to one agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<String>,
    /// The WebSocket scopes; `["*"]` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scopes: Option<Vec<String>>,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
}

/// A new key. No other answer shows `api_key`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct CreatedKey {
    pub id: String,
    pub key_prefix: String,
    pub api_key: Secret,
}

/// A key without its secret.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Key {
    pub id: String,
    pub name: String,
    pub key_prefix: String,
    pub permissions: Vec<String>,
    pub scopes: Vec<String>,
    pub agent_id: Option<String>,
    pub expires_at: Option<String>,
    pub revoked: bool,
    pub created_at: String,
}

/// `GET /teams/{id}/keys`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Keys {
    /// By id.
    pub keys: Vec<Key>,
}

/// `GET /cluster`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Cluster {
    pub cluster_id: String,
    pub leader: Option<u64>,
    pub term: u64,
    pub nodes: Vec<Node>,
}

/// One node. Fields that only the node itself can report are `null` if it is unreachable.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Node {
    pub id: u64,
    pub url: String,
    pub peer_url: String,
    pub role: Option<String>,
    pub applied_index: Option<u64>,
    /// The number of log entries that it lacks compared with the leader.
    pub lag: Option<u64>,
    /// The hash of the state in 16 hex digits; equal on all nodes at equal `state_hash_index`.
    pub state_hash: Option<String>,
    pub state_hash_index: Option<u64>,
}

/// `POST /cluster/members`: adds a node as a learner.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddMember {
    /// An id that no node has ever had; if absent, the next such id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// The `host:port` at which other nodes reach it.
    pub peer_addr: String,
    /// The URL at which clients reach it.
    pub url: String,
}

/// A member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Member {
    pub id: u64,
    pub peer_addr: String,
    pub url: String,
}

/// `POST /cluster/transfer`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transfer {
    /// The id of the voter that is to lead.
    pub node: u64,
}

/// The reply of actions that return nothing else.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ok {
    /// Always true.
    pub success: bool,
}

/// `POST /login/lookup`: shows the device that waits with this code, and the teams that this key may approve it for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserCode {
    /// The code, with or without the dash, in upper or lower case.
    pub user_code: String,
}

/// A device that waits for a decision.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WaitingLogin {
    /// The code in the form `BCDF-GHJK`.
    pub user_code: String,
    /// The name that the device gave itself: untrusted text, which may be empty.
    pub client: String,
    /// RFC 3339.
    pub requested_at: String,
    /// The seconds until the code expires.
    pub expires_in: u64,
    /// The teams that this key may approve the device for, sorted by name.
    pub teams: Vec<LoginTeam>,
}

/// A team that the device may be approved for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct LoginTeam {
    pub id: String,
    pub name: String,
}

/// `POST /login/approve`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApproveLogin {
    /// See [`UserCode`].
    pub user_code: String,
    /// The id or the name of the team; if absent, the team of the key that approves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team: Option<String>,
    /// The permissions of the new key; `["write"]` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permissions: Option<Vec<String>>,
}

/// The reply to an approval: the team and the permissions that the device got.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ApprovedLogin {
    pub user_code: String,
    pub team: LoginTeam,
    pub permissions: Vec<String>,
}
