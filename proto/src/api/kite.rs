//! The JSON bodies of Kite's HTTP API: `POST /api/v1/agents/messages?team_id=` of the vendor's guide, and the device
//! login of the vendor's command line. [`rpc`] contains the bodies of WebSocket requests.

pub mod rpc;

use serde::{Deserialize, Serialize};

use crate::secret::Secret;

/// The `events_limit` that stands for "unlimited": the largest integer that JavaScript represents exactly.
pub const EVENTS_LIMIT_UNLIMITED: u64 = 9_007_199_254_740_991;

/// A message to send. Absent fields are omitted; `null` counts as absent.
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
    /// The sending agent.
    pub from: String,
    /// The receiving agent.
    pub to: String,
    /// The team's usage of the month.
    pub usage: Usage,
}

/// The team's usage of its quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// The events of this month, including this one.
    pub events_used: u64,
    /// The limit of the month; [`EVENTS_LIMIT_UNLIMITED`] if unlimited.
    pub events_limit: u64,
    /// The price of this event over the limit, in atomic units.
    pub amount_charged_atomic: u64,
}

/// The body of an error.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorBody {
    /// A sentence for people.
    pub error: String,
    /// The seconds to wait; only with status 429.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_secs: Option<u64>,
}

/// `POST /api/auth/device-code`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeviceCode {
    /// The secret with which the device polls. Whoever has it gets the key.
    pub device_code: Secret,
    /// The code that a person types, such as `BCDF-GHJK`.
    pub user_code: String,
    /// The page on which the person types the code.
    pub verification_url: String,
    /// The same page with the code filled in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification_url_complete: Option<String>,
    /// The WebSocket URL for the configuration of the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ws_url: Option<String>,
    /// The seconds between two polls; 5 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<u64>,
    /// The seconds until the code expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in: Option<u64>,
}

/// The optional body of a request for a code.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct StartLogin {
    /// The name that the device gives itself; if absent, its `User-Agent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
}

/// `POST /api/auth/device-token`. Until the device gets its key, the error is [`LOGIN_PENDING`] (400),
/// [`LOGIN_SLOW_DOWN`] (400), [`LOGIN_EXPIRED`] (400) or [`LOGIN_DENIED`] (403).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeviceToken {
    /// The secret from [`DeviceCode`].
    pub device_code: Secret,
}

/// The login is not decided yet; the device polls again.
pub const LOGIN_PENDING: &str = "authorization_pending";
/// The device polled too soon; it must wait 5 s longer from now on.
pub const LOGIN_SLOW_DOWN: &str = "slow_down";
/// The code is unknown, expired or used. This is final.
pub const LOGIN_EXPIRED: &str = "expired_token";
/// The login was denied. This is final.
pub const LOGIN_DENIED: &str = "access_denied";

/// The key of an approved device.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeviceKey {
    /// The key, which is shown only once.
    pub api_key: Secret,
    /// The id of the key's team.
    pub team_id: String,
}

/// `GET /api/v1/agents?after=&limit=`: the agents of the team, sorted by id.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Agents {
    /// The page, of at most `limit` agents.
    pub agents: Vec<Agent>,
    /// The parameter `after` of the next page; `None` on the last page.
    pub next: Option<String>,
    /// The nodes that did not answer, so their sessions are not counted.
    pub unreachable_nodes: Vec<u64>,
}

/// An agent of the team.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agent {
    /// The address of the agent's mail.
    pub id: String,
    /// The display name.
    pub name: Option<String>,
    /// Whether it is registered. An agent that is not registered is listed because it got mail.
    pub registered: bool,
    /// The time of its registration in RFC 3339.
    pub registered_at: Option<String>,
    /// The number of sessions that listen to it, on all nodes that answered.
    pub sessions: u64,
}

/// `POST /api/v1/agents`: registers an agent, or changes its name. The request is idempotent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RegisterAgent {
    /// Its id.
    pub id: String,
    /// The display name; if absent, the agent has no display name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}
