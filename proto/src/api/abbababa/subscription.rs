//! Subscriptions to topics, and the webhook of an agent.

use serde::{Deserialize, Serialize};

use crate::command::WebhookEvent;
use crate::secret::Secret;

impl WebhookEvent {
    /// As it is written in an event list and in the body of a delivery. Never changes.
    pub fn name(self) -> &'static str {
        match self {
            WebhookEvent::Unspecified => "none",
            WebhookEvent::MessageReceived => "message.received",
            WebhookEvent::MessageTopic => "message.topic",
        }
    }

    /// The event of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "message.received" => Some(WebhookEvent::MessageReceived),
            "message.topic" => Some(WebhookEvent::MessageTopic),
            _ => None,
        }
    }
}

/// `POST /messages/subscribe`.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SubscribeRequest {
    /// What to subscribe to.
    pub topic: String,
    /// Where topic messages are delivered too. Absent keeps what there is; on the wire `null` removes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook_url: Option<String>,
}

/// A subscription: the union of both dialects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Subscription {
    /// `sub_<32 hex>`.
    pub id: String,
    pub agent_id: String,
    pub topic: String,
    pub webhook_url: Option<String>,
    /// The SDK's name of `webhook_url`.
    pub callback_url: Option<String>,
    /// Always true: one that has ended is not shown.
    pub is_active: bool,
    /// A 410 disabled the URL; registering it again enables it.
    #[serde(default)]
    pub disabled: bool,
    pub created_at: String,
    pub updated_at: String,
    /// `whsec_…`, with a URL: what its deliveries are signed with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Secret>,
}

/// The reply to a subscribe.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SubscriptionResponse {
    /// Always true.
    pub success: bool,
    /// As it is now.
    pub subscription: Subscription,
    /// The same under the SDK's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Subscription>,
}

/// The reply to `GET /messages/subscribe`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SubscriptionsResponse {
    /// Always true.
    pub success: bool,
    /// By topic.
    pub subscriptions: Vec<Subscription>,
    /// The same under the SDK's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Vec<Subscription>>,
}

/// `POST /messages/webhook`.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub struct WebhookRequest {
    /// Where to deliver.
    pub url: String,
    /// Names of events, at least one.
    pub events: Vec<String>,
}

/// The global webhook of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Webhook {
    /// `whk_<32 hex>`.
    pub id: String,
    pub agent_id: String,
    pub url: String,
    pub events: Vec<String>,
    /// False once a 410 disabled the URL.
    pub is_active: bool,
    /// The other way round, as for a subscription.
    #[serde(default)]
    pub disabled: bool,
    pub created_at: String,
    /// `whsec_…`: what its deliveries are signed with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Secret>,
}

/// The reply to `POST` and `GET /messages/webhook`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WebhookResponse {
    /// Always true.
    pub success: bool,
    /// None while the agent has none.
    pub webhook: Option<Webhook>,
    /// The same under the SDK's name.
    #[serde(default)]
    pub data: Option<Webhook>,
}

/// The signing keys of a team: `GET /v2/keys` and the operator's `signing-keys`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SigningKeys {
    /// What deliveries are signed with.
    pub current: Secret,
    /// What they will be signed with after the next rotation.
    pub next: Secret,
}
