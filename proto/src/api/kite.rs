//! Kite's REST bodies. Facts: `POST /api/v1/agents/messages?team_id=` of the published guide.

use serde::{Deserialize, Serialize};

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
