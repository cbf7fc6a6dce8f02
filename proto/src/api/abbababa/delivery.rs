//! Deliveries to webhooks, and the receipt of a message.

use serde::{Deserialize, Serialize};

use crate::record::{AttemptEnd, DeliveryEnd, DeliveryState};

impl DeliveryState {
    /// The name in JSON and in filters. It never changes.
    pub fn name(self) -> &'static str {
        match self {
            DeliveryState::Unspecified => "none",
            DeliveryState::Scheduled => "scheduled",
            DeliveryState::Claimed => "claimed",
            DeliveryState::Delivered => "delivered",
            DeliveryState::Dead => "dead",
            DeliveryState::Cancelled => "cancelled",
        }
    }

    /// The state with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "scheduled" => Some(DeliveryState::Scheduled),
            "claimed" => Some(DeliveryState::Claimed),
            "delivered" => Some(DeliveryState::Delivered),
            "dead" => Some(DeliveryState::Dead),
            "cancelled" => Some(DeliveryState::Cancelled),
            _ => None,
        }
    }
}

impl DeliveryEnd {
    /// The name in JSON; `None` for a delivery that is open or was delivered.
    pub fn name(self) -> Option<&'static str> {
        match self {
            DeliveryEnd::Unspecified => None,
            DeliveryEnd::Exhausted => Some("exhausted"),
            DeliveryEnd::NonRetryable => Some("non_retryable"),
            DeliveryEnd::Gone => Some("gone"),
            DeliveryEnd::Disabled => Some("disabled"),
            DeliveryEnd::OutcomeUnknown => Some("outcome_unknown"),
            DeliveryEnd::Deleted => Some("deleted"),
            DeliveryEnd::Cancelled => Some("cancelled"),
            DeliveryEnd::Expired => Some("expired"),
        }
    }
}

impl AttemptEnd {
    /// The name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            AttemptEnd::Unspecified => "none",
            AttemptEnd::Delivered => "delivered",
            AttemptEnd::Failed => "failed",
            AttemptEnd::Unknown => "unknown",
            AttemptEnd::NotSent => "not_sent",
        }
    }
}

/// A delivery. `attempts` is their number in a list, and their details in the answer for one delivery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Delivery<A> {
    /// `dlv_<32 hex>`.
    pub id: String,
    /// `scheduled`, `claimed`, `delivered`, `dead` or `cancelled`.
    pub state: String,
    /// The reason why it is dead or cancelled: `exhausted`, `non_retryable`, `gone`, `disabled`, `outcome_unknown`,
    /// `deleted` or `cancelled`.
    pub end: Option<String>,
    pub message_id: String,
    pub from_agent_id: String,
    pub to_agent_id: String,
    pub topic: Option<String>,
    /// The subscription whose own URL is called; absent for the agent's webhook.
    pub subscription_id: Option<String>,
    pub attempts: A,
    /// The number of attempts that were granted so far.
    pub attempt_count: u32,
    /// The retry step, 0 to 3.
    pub step: u32,
    /// The approximate time of the next attempt; `null` unless one is scheduled.
    pub due: Option<String>,
    /// The milliseconds until then; 0 if the attempt is due already.
    pub due_in_ms: Option<u64>,
    /// The called URL. The sender does not see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    pub created_at: String,
    pub ended_at: Option<String>,
    /// The delivery that it was redriven as.
    pub redriven_as: Option<String>,
    /// The dead delivery that it is a redrive of.
    pub redrive_of: Option<String>,
}

/// A delivery in a list.
pub type DeliveryRow = Delivery<u32>;
/// A delivery with its attempts.
pub type DeliveryDetail = Delivery<Vec<Attempt>>;

/// An attempt that has ended. A delivery keeps the failure of each step, the success, and the last few of the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Attempt {
    /// The number of the attempt, which is never used again.
    pub number: u32,
    pub step: u32,
    /// `delivered`, `failed`, `unknown` or `not_sent`.
    pub end: String,
    /// The HTTP status; `null` if there was no response. The sender sees neither this field nor the following ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u32>,
    /// The class of the error, such as `dns`, `connect`, `tls`, `timeout` or `status`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The start of the response's body; control characters are escaped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_ms: Option<u64>,
}

/// The reply to `GET /deliveries`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeliveriesResponse {
    /// Always true.
    pub success: bool,
    /// The page.
    pub deliveries: Vec<DeliveryRow>,
    /// The same under the SDK's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Vec<DeliveryRow>>,
    /// The cursor after this page.
    pub cursor: String,
}

/// The reply to `GET /deliveries/:id`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeliveryResponse {
    /// Always true.
    pub success: bool,
    /// The delivery.
    pub delivery: DeliveryDetail,
    /// The same under the SDK's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<DeliveryDetail>,
}

/// The reply to `POST /deliveries/:id/redrive`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RedriveResponse {
    /// Always true.
    pub success: bool,
    /// The new delivery. A repeated request returns the same one.
    pub delivery_id: String,
}

/// The receipt of a message, for its sender. It exists only for a message that was accepted and stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Receipt {
    pub message_id: String,
    pub to_agent_id: Option<String>,
    pub topic: Option<String>,
    pub accepted: bool,
    pub accepted_at: String,
    pub stored: bool,
    /// `complete`, or `pending` while some inboxes do not have the topic message yet.
    pub fanout: String,
    /// Its deliveries to webhooks, the first `limits::PAGE_MAX`.
    pub delivered: Vec<ReceiptDelivery>,
    /// Its receivers, the first `limits::PAGE_MAX`.
    pub read: Vec<ReceiptReader>,
    pub counts: ReceiptCounts,
}

/// A delivery in a receipt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct ReceiptDelivery {
    pub id: String,
    pub to_agent_id: String,
    pub state: String,
    pub attempts: u32,
    /// The called URL, shown only to an admin of the team and to a sender that is also the receiver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// A receiver in a receipt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReceiptReader {
    /// The receiving agent.
    pub agent_id: String,
    /// The time at which it was read; `null` if it is unread or was removed from the inbox.
    pub read_at: Option<String>,
}

/// The totals of a receipt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReceiptCounts {
    /// The number of inboxes that have got it so far.
    pub receivers: u64,
    /// The number of readers among the first `limits::PAGE_EXAMINED_MAX` receivers.
    pub read: u64,
}

/// The reply to `GET /messages/:id/receipt`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReceiptResponse {
    /// Always true.
    pub success: bool,
    /// The receipt.
    pub receipt: Receipt,
    /// The same under the SDK's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Receipt>,
}
