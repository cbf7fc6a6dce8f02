//! Deliveries to webhooks, and the receipt of a message.

use serde::{Deserialize, Serialize};

use crate::record::{AttemptEnd, DeliveryEnd, DeliveryState};

impl DeliveryState {
    /// As it is written in JSON and in a filter. Never changes.
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

    /// The state of a name.
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
    /// As it is written in JSON; none while the delivery is open, and for a delivered one.
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
        }
    }
}

impl AttemptEnd {
    /// As it is written in JSON.
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

/// A delivery. In a list `attempts` is their number, alone it is what became of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Delivery<A> {
    /// `dlv_<32 hex>`.
    pub id: String,
    /// `scheduled`, `claimed`, `delivered`, `dead` or `cancelled`.
    pub state: String,
    /// Why it is dead or cancelled: `exhausted`, `non_retryable`, `gone`, `disabled`, `outcome_unknown`,
    /// `deleted` or `cancelled`.
    pub end: Option<String>,
    pub message_id: String,
    pub from_agent_id: String,
    pub to_agent_id: String,
    pub topic: Option<String>,
    /// When that subscription's own URL is called.
    pub subscription_id: Option<String>,
    pub attempts: A,
    /// How many attempts were granted so far.
    pub attempt_count: u32,
    /// The place on the retry ladder, 0 to 3.
    pub step: u32,
    /// About when the next attempt is due; null unless it waits for one.
    pub due: Option<String>,
    /// The same as a wait; 0 when it is due already.
    pub due_in_ms: Option<u64>,
    /// Not for the sender.
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

/// One attempt, when it is over. Kept are the failure of each step, the success, the last few others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Attempt {
    /// The serial of calls.
    pub number: u32,
    pub step: u32,
    /// `delivered`, `failed`, `unknown` or `not_sent`.
    pub end: String,
    /// Of the answer; null without one. This and the rest are not for the sender.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u32>,
    /// A class: dns, connect, tls, timeout, status and so on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The start of the answer's body; control characters are escaped.
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
    /// Continues after this page.
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
    /// The new delivery; the same one again for a repeat.
    pub delivery_id: String,
}

/// What became of a message, for its sender. One that is found is accepted and stored.
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
    /// `complete`, or `pending` while inboxes of a topic message follow.
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
    /// Only for an admin of the team and for whoever sent to itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// A receiver in a receipt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReceiptReader {
    /// Who.
    pub agent_id: String,
    /// Null while unread, and when the inbox has let it go.
    pub read_at: Option<String>,
}

/// The sums of a receipt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReceiptCounts {
    /// Inboxes that got it so far.
    pub receivers: u64,
    /// Of the first `limits::PAGE_EXAMINED_MAX` of them, how many read it.
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
