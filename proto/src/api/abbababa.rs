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
    /// The time in RFC 3339 after which the message is removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
    /// SDK dialect: an object, stored and shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Box<RawValue>>,
    /// The idempotency key of an item of a batch. Other requests use the header of that name.
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
    /// `pending` if a publish was answered before every inbox had it; otherwise absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fanout: Option<String>,
    /// The message, as the SDK expects it; absent in the client library's view.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Message>,
}

/// The reply to a batch: one result for each message, in order.
#[derive(Debug, Serialize, Deserialize)]
pub struct BatchResponse {
    /// In the order of the request.
    pub results: Vec<BatchResult>,
}

/// The result of one message of a batch.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BatchResult {
    /// The HTTP status that a single send would have had.
    pub status: u16,
    /// Whether it was stored.
    pub success: bool,
    /// The id of the stored message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_id: Option<String>,
    /// `pending` if some inboxes do not have the publish yet; otherwise absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fanout: Option<String>,
    /// The error, if the message was not stored.
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
    /// Always `inbox`. A webhook gets the message in addition, which `/deliveries` shows.
    pub delivery_method: String,
    #[serde(default)]
    pub expires_at: Option<String>,
    #[serde(flatten)]
    pub extras: Extras,
}

/// The optional fields of the SDK dialect, stored as one JSON object.
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
    /// The cursor after this page. It is valid even if there are no more messages yet.
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

/// The body of an error.
#[derive(Debug, Serialize, Deserialize)]
pub struct ErrorBody {
    /// Always false.
    pub success: bool,
    /// A sentence for people.
    pub error: String,
    /// A stable name for programs.
    pub code: String,
    /// The faulty field of an invalid request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<ErrorDetail>,
}

/// The field that caused an error.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// The path of the field, whose parts the SDK joins.
    pub path: Vec<String>,
    /// The same path under the name that the documentation uses.
    pub field: String,
    /// The fault of the field.
    pub message: String,
}

/// The body of the notice that tells a sender of a dead letter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeliveryFailed {
    /// `msg_…`.
    pub message_id: String,
    /// The agent that should have received the message.
    pub to_agent_id: String,
    /// The topic of a topic message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// The URL that was called.
    pub url: String,
    /// The number of attempts that were granted.
    pub attempts: u32,
    /// The HTTP status of the last failed attempt; `null` if there was no response.
    pub last_status: Option<u32>,
    /// The class of the last error, such as `dns`, `connect`, `tls`, `timeout` or `status`.
    pub last_error: String,
    /// `dlv_…`.
    pub delivery_id: String,
}

impl DeliveryFailed {
    /// The notice's type.
    pub const TYPE: &'static str = "delivery.failed";
}
