//! Kite's REST bodies. Facts: `POST /api/v1/agents/messages?team_id=` of the published guide; the device login of its
//! command line. [`rpc`] holds what goes over the socket.

pub mod rpc;

use serde::{Deserialize, Serialize};

use crate::secret::Secret;

/// A message to send. Absent options are omitted, `null` is taken as absent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SendRequest {
    /// The sending agent.
    pub from: String,
    /// The receiving agent.
    pub to: String,
    /// Plain text.
    pub body: String,
    /// Groups messages into a conversation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thread_id: Option<String>,
    /// The event that this one answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_to_id: Option<String>,
}

/// The accepted message.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SendResponse {
    /// A UUIDv7.
    pub id: String,
    /// RFC 3339 with `Z`.
    pub created_at: String,
    /// As sent.
    pub from: String,
    /// As sent.
    pub to: String,
    /// The team's month.
    pub usage: Usage,
}

/// Where the team's quota stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Events of this month, this one included.
    pub events_used: u64,
    /// `limits::UNLIMITED_EVENTS_SHOWN` when unlimited.
    pub events_limit: u64,
    /// The price of this event over the limit, in atomic units.
    pub amount_charged_atomic: u64,
}

/// An error of this face.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorBody {
    /// A sentence for people.
    pub error: String,
    /// With 429.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_secs: Option<u64>,
}

/// `POST /api/auth/device-code`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeviceCode {
    /// What the device asks with. Whoever has it gets the key.
    pub device_code: Secret,
    /// What a person types, `BCDF-GHJK`.
    pub user_code: String,
    /// Where they type it.
    pub verification_url: String,
    /// The same with the code filled in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification_url_complete: Option<String>,
    /// For the configuration of the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ws_url: Option<String>,
    /// Seconds between two questions; 5 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<u64>,
    /// Seconds that the code lives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in: Option<u64>,
}

/// Asks for a code. All of it may be missing.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct StartLogin {
    /// What the device calls itself; the `User-Agent` when missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
}

/// `POST /api/auth/device-token`. Until there is an answer, the error is one of [`LOGIN_PENDING`] (400),
/// [`LOGIN_SLOW_DOWN`] (400), [`LOGIN_EXPIRED`] (400) and [`LOGIN_DENIED`] (403).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeviceToken {
    /// Of [`DeviceCode`].
    pub device_code: Secret,
}

/// Nobody has decided yet: ask again.
pub const LOGIN_PENDING: &str = "authorization_pending";
/// Asked too soon: wait 5 s longer from now on.
pub const LOGIN_SLOW_DOWN: &str = "slow_down";
/// Unknown, expired or used: final.
pub const LOGIN_EXPIRED: &str = "expired_token";
/// Turned away: final.
pub const LOGIN_DENIED: &str = "access_denied";

/// The key of an approved device.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeviceKey {
    /// Shown once.
    pub api_key: Secret,
    /// Its team.
    pub team_id: String,
}

/// `GET /api/v1/agents?after=&limit=`: who is there, by id.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Agents {
    /// At most `limit`.
    pub agents: Vec<Agent>,
    /// `after` of the next page; none at the end.
    pub next: Option<String>,
    /// Nodes whose sessions are not counted, because they did not answer.
    pub unreachable_nodes: Vec<u64>,
}

/// An agent of the team.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agent {
    /// What mail is sent to.
    pub id: String,
    /// For people.
    pub name: Option<String>,
    /// Whether it is in the directory, or only got mail.
    pub registered: bool,
    /// When it was registered, RFC 3339.
    pub registered_at: Option<String>,
    /// Open sessions that listen to it, on all nodes that answered.
    pub sessions: u64,
}

/// `POST /api/v1/agents`: puts an agent into the directory, or gives it another name. Idempotent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RegisterAgent {
    /// Its id.
    pub id: String,
    /// For people; missing = none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}
