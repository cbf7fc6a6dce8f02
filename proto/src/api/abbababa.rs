//! The Abba Baba Messaging API. Two published dialects share its URLs: the flat one of the documentation
//! and the enveloped one of the vendor's SDK. Requests accept the union of their fields, replies carry the
//! union of their keys.

mod delivery;
mod subscription;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

pub use self::delivery::{
    Attempt, DeliveriesResponse, Delivery, DeliveryDetail, DeliveryResponse, DeliveryRow, Receipt, ReceiptCounts,
    ReceiptDelivery, ReceiptReader, ReceiptResponse, RedriveResponse,
};
pub use self::subscription::{
    SigningKeys, SubscribeRequest, Subscription, SubscriptionResponse, SubscriptionsResponse, Webhook, WebhookRequest,
    WebhookResponse,
};

/// `POST /messages`; also an item of `POST /messages/batch`.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SendRequest {
    /// The receiver of a direct message. Exactly one of this and `topic`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to_agent_id: Option<String>,
    /// The topic to publish to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// The message type. This or `message_type` is required.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The SDK's name of `type`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_type: Option<String>,
    /// An object or a string.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<Box<RawValue>>,
    /// Groups messages into a conversation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thread_id: Option<String>,
    /// The message that this one answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_to_id: Option<String>,
    /// SDK dialect: a title.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// SDK dialect: `low`, `normal`, `high` or `urgent`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<String>,
    /// SDK dialect: stored and shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub callback_url: Option<String>,
    /// RFC 3339; the message is removed after it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
    /// SDK dialect: an object, stored and shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Box<RawValue>>,
    /// In a batch only; elsewhere the header of that name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
}

/// `POST /messages/batch`.
#[derive(Debug, Serialize, Deserialize)]
pub struct BatchRequest {
    /// At most `limits::BATCH_ITEMS_MAX`.
    pub messages: Vec<SendRequest>,
}

/// The reply to a send.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SendResponse {
    /// Always true.
    pub success: bool,
    /// `msg_<32 hex>`.
    pub message_id: String,
    /// `pending` when a publish was answered before the last inbox had it; else absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fanout: Option<String>,
    /// The message, as the SDK wants it; absent in the client library's view.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Message>,
}

/// The reply to a batch: one result for each message, in order.
#[derive(Debug, Serialize, Deserialize)]
pub struct BatchResponse {
    /// In the order of the request.
    pub results: Vec<BatchResult>,
}

/// What became of one message of a batch.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BatchResult {
    /// The HTTP status that a single send would have had.
    pub status: u16,
    /// Whether it was stored.
    pub success: bool,
    /// When it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_id: Option<String>,
    /// `pending` while inboxes of a publish follow; else absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fanout: Option<String>,
    /// When it was not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A message in an inbox: the union of both dialects.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Message {
    pub id: String,
    pub from_agent_id: String,
    pub to_agent_id: Option<String>,
    pub topic: Option<String>,
    #[serde(rename = "type")]
    pub kind: String,
    pub message_type: String,
    pub body: Box<RawValue>,
    pub read_at: Option<String>,
    pub created_at: String,
    #[serde(default)]
    pub thread_id: Option<String>,
    #[serde(default)]
    pub reply_to_id: Option<String>,
    /// `read` once read, else `pending`.
    pub status: String,
    /// Always `inbox`: webhooks come on top, and `/deliveries` tells about them.
    pub delivery_method: String,
    #[serde(default)]
    pub expires_at: Option<String>,
    #[serde(flatten)]
    pub extras: Extras,
}

/// What the SDK dialect lets a sender attach; stored as one JSON object.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Extras {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub callback_url: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<serde_json::Map<String, serde_json::Value>>,
}

impl Extras {
    /// Whether there is nothing to store.
    pub fn is_empty(&self) -> bool {
        self.subject.is_none() && self.priority.is_none() && self.callback_url.is_none() && self.metadata.is_none()
    }
}

/// The reply to `GET /messages`.
#[derive(Debug, Serialize, Deserialize)]
pub struct ListResponse {
    /// Always true.
    pub success: bool,
    /// The page.
    pub messages: Vec<Message>,
    /// The same page under the SDK's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Vec<Message>>,
    /// Continues after this page, also when nothing more is there yet.
    pub cursor: String,
}

/// The reply to `GET /messages/:id`.
#[derive(Debug, Serialize, Deserialize)]
pub struct GetResponse {
    /// Always true.
    pub success: bool,
    /// The message.
    pub message: Message,
    /// The same under the SDK's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Message>,
}

/// The body of `PATCH /messages/:id`; no body means `{"read": true}`.
#[derive(Debug, Serialize, Deserialize)]
pub struct MarkReadRequest {
    /// False makes it unread again.
    pub read: bool,
}

/// An error of this face.
#[derive(Debug, Serialize, Deserialize)]
pub struct ErrorBody {
    /// Always false.
    pub success: bool,
    /// A sentence for people.
    pub error: String,
    /// A stable name for programs.
    pub code: String,
    /// Which field, for an invalid request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<ErrorDetail>,
}

/// The field that an error speaks of.
#[derive(Debug, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// The path that the SDK joins.
    pub path: Vec<String>,
    /// The same for readers of the documentation.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
}

/// The body of the notice that tells a sender of a dead letter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeliveryFailed {
    /// `msg_…`.
    pub message_id: String,
    /// Who should have received it.
    pub to_agent_id: String,
    /// Of a topic message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// Where it was to go.
    pub url: String,
    /// How many calls were granted.
    pub attempts: u32,
    /// Of the last failed attempt; null without a response.
    pub last_status: Option<u32>,
    /// A class: dns, connect, tls, timeout, status and so on.
    pub last_error: String,
    /// `dlv_…`.
    pub delivery_id: String,
}

impl DeliveryFailed {
    /// The notice's type.
    pub const TYPE: &'static str = "delivery.failed";
}
