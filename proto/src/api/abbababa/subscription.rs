//! Subscriptions to topics, and the webhook of an agent.

use serde::{Deserialize, Serialize};

use crate::command::WebhookEvent;
use crate::secret::Secret;

impl WebhookEvent {
    /// The name in event lists and in the body of a delivery. It never changes.
    pub fn name(self) -> &'static str {
        match self {
            WebhookEvent::Unspecified => "none",
            WebhookEvent::MessageReceived => "message.received",
            WebhookEvent::MessageTopic => "message.topic",
        }
    }

    /// The event with this name.
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
    /// The topic to subscribe to.
    pub topic: String,
    /// A URL to which messages of the topic are delivered as well. If absent, the URL stays as it is; on the wire,
    /// `null` removes it.
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
    /// Always true, because a subscription that has ended is not shown.
    pub is_active: bool,
    /// Whether a 410 disabled the URL. Registering the URL again enables it.
    #[serde(default)]
    pub disabled: bool,
    pub created_at: String,
    pub updated_at: String,
    /// `whsec_…`: the secret that signs deliveries; present if there is a URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Secret>,
}

/// The reply to a subscribe.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SubscriptionResponse {
    /// Always true.
    pub success: bool,
    /// The subscription after the request.
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
    /// The subscriptions, sorted by topic.
    pub subscriptions: Vec<Subscription>,
    /// The same under the SDK's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Vec<Subscription>>,
}

/// `POST /messages/webhook`.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub struct WebhookRequest {
    /// The URL to deliver to.
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
    /// False after a 410 has disabled the URL.
    pub is_active: bool,
    /// The opposite of `is_active`, as for a subscription.
    #[serde(default)]
    pub disabled: bool,
    pub created_at: String,
    /// `whsec_…`: the secret that signs deliveries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Secret>,
}

/// The reply to `POST` and `GET /messages/webhook`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WebhookResponse {
    /// Always true.
    pub success: bool,
    /// The webhook; `None` if the agent has no webhook.
    pub webhook: Option<Webhook>,
    /// The same under the SDK's name.
    #[serde(default)]
    pub data: Option<Webhook>,
}

/// The signing keys of a team: `GET /v2/keys` and the operator's `signing-keys`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SigningKeys {
    /// The key that signs deliveries.
    pub current: Secret,
    /// The key that will sign deliveries after the next rotation.
    pub next: Secret,
}
