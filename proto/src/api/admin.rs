//! The operator API, `/admin/v1`.

use serde::{Deserialize, Deserializer, Serialize};

use crate::secret::Secret;

/// `POST /teams`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateTeam {
    /// Unique in the cluster.
    pub name: String,
    /// Missing ones take the plan's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<LimitsPatch>,
}

/// `PATCH /teams/{id}`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpdateTeam {
    /// Missing ones keep their value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<LimitsPatch>,
    /// Whether mail to an agent that nobody registered is a 404.
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
    /// Outer none: not named. Inner none: `null`.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "named")]
    pub overage_price_atomic: Option<Option<u64>>,
}

/// Tells `null` from an absent field.
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
    /// Any of `read`, `write`, `admin`; each includes the lower ones.
    pub permissions: Vec<String>,
    /// Binds the key to one agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<String>,
    /// WebSocket scopes; `["*"]` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scopes: Option<Vec<String>>,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
}

/// A new key; the only time that `api_key` is shown.
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

/// One node; what an unreachable node would have said is null.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Node {
    pub id: u64,
    pub url: String,
    pub peer_url: String,
    pub role: Option<String>,
    pub applied_index: Option<u64>,
    /// Entries behind the leader's last.
    pub lag: Option<u64>,
    /// 16 hex digits; equal on all nodes at equal `state_hash_index`.
    pub state_hash: Option<String>,
    pub state_hash_index: Option<u64>,
}

/// `POST /cluster/members`: a node that joins, as a learner.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddMember {
    /// An id that no node ever had; the next such id when missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// `host:port` where the other nodes reach it.
    pub peer_addr: String,
    /// Where clients reach it.
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
    /// The voter that shall lead.
    pub node: u64,
}

/// The reply of actions that return nothing else.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ok {
    /// Always true.
    pub success: bool,
}

/// `POST /login/lookup`: which device waits with this code, and what this key may let it into.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserCode {
    /// With or without the dash, in either case.
    pub user_code: String,
}

/// A device that waits.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WaitingLogin {
    /// `BCDF-GHJK`.
    pub user_code: String,
    /// What the device calls itself; may be empty, and anything may be written there.
    pub client: String,
    /// RFC 3339.
    pub requested_at: String,
    /// Seconds.
    pub expires_in: u64,
    /// The teams that the asking key can let it into, by name.
    pub teams: Vec<LoginTeam>,
}

/// A team to choose.
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
    /// Id or name; that of the asking key when missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team: Option<String>,
    /// `["write"]` when missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permissions: Option<Vec<String>>,
}

/// The reply: where the device was let in.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ApprovedLogin {
    pub user_code: String,
    pub team: LoginTeam,
    pub permissions: Vec<String>,
}
