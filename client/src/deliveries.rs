//! Deliveries of messages to webhooks, and the receipt of a message. An agent sees the deliveries of the mail that it
//! sent or received; an operator sees all of a team.

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::agent::Agent;
use crate::call::awaitable;
use crate::http::{Http, Repeat, Request, segment};
use crate::words::{AttemptEnd, DeliveryEnd, DeliveryState, Fanout, Order};

/// A delivery: one message, one receiving agent, one URL. In a list `attempts` is their number; alone it is what became
/// of each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Delivery<A> {
    /// `dlv_<32 hex digits>`.
    pub id: String,
    /// Its state.
    pub state: DeliveryState,
    /// Why it is dead or cancelled; `None` otherwise.
    pub end: Option<DeliveryEnd>,
    /// The message, `msg_…`.
    pub message_id: String,
    /// The sender.
    pub from_agent_id: String,
    /// The receiver.
    pub to_agent_id: String,
    /// The topic that the message was published to.
    pub topic: Option<String>,
    /// The subscription whose own URL is called; `None` if it is the agent's webhook.
    pub subscription_id: Option<String>,
    /// The attempts, or their number.
    pub attempts: A,
    /// How many attempts were granted so far.
    pub attempt_count: u32,
    /// The number of waits between attempts that have ended, 0 to 3.
    pub step: u32,
    /// About when the next attempt is due, in RFC 3339; `None` unless it waits for one.
    pub due: Option<String>,
    /// Milliseconds until the next attempt is due; 0 if it is due now.
    pub due_in_ms: Option<u64>,
    /// The URL. The sender does not see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// When it was created, in RFC 3339.
    pub created_at: String,
    /// When it ended, in RFC 3339.
    pub ended_at: Option<String>,
    /// The delivery that it was redriven as.
    pub redriven_as: Option<String>,
    /// The dead delivery that it is a redrive of.
    pub redrive_of: Option<String>,
}

/// One attempt of a delivery that is over. The server keeps the failure of each step, the success, and the last few
/// others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Attempt {
    /// The number of the call, from 1.
    pub number: u32,
    /// The step that it belonged to.
    pub step: u32,
    /// How it ended.
    pub end: AttemptEnd,
    /// The HTTP status; `None` without an answer. The sender does not see it, nor what follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u32>,
    /// The class of a failure: dns, connect, tls, timeout, status and so on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The start of the answer's body, with control characters escaped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response: Option<String>,
    /// When it began, in RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// How long it took, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_ms: Option<u64>,
}

/// A page of deliveries.
#[derive(Debug, Clone, Deserialize)]
#[non_exhaustive]
pub struct DeliveryPage {
    /// In the order that was asked for.
    pub deliveries: Vec<Delivery<u32>>,
    /// Where the next page begins, for [`DeliveriesQuery::cursor`].
    pub cursor: String,
}

/// The receipt of a message, for its sender.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Receipt {
    /// The message.
    pub message_id: String,
    /// The receiver of a direct message.
    pub to_agent_id: Option<String>,
    /// The topic of a published message.
    pub topic: Option<String>,
    /// When the server accepted it, in RFC 3339.
    pub accepted_at: String,
    /// Whether every inbox has it.
    pub fanout: Fanout,
    /// Its deliveries to webhooks, the first 200.
    pub delivered: Vec<ReceiptDelivery>,
    /// Its receivers, the first 200.
    pub read: Vec<ReceiptReader>,
    /// How many there are.
    pub counts: ReceiptCounts,
}

/// A delivery in a receipt.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct ReceiptDelivery {
    /// `dlv_…`.
    pub id: String,
    /// The receiver.
    pub to_agent_id: String,
    /// Its state.
    pub state: DeliveryState,
    /// Attempts so far.
    pub attempts: u32,
    /// The URL: only for an administrator of the team, and for an agent that sent to itself.
    #[serde(default)]
    pub url: Option<String>,
}

/// A receiver in a receipt.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct ReceiptReader {
    /// The agent.
    pub agent_id: String,
    /// When it marked the message read, in RFC 3339. `None` while it is unread, and when its inbox has let it go.
    pub read_at: Option<String>,
}

/// The sums of a receipt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct ReceiptCounts {
    /// Inboxes that have the message so far.
    pub receivers: u64,
    /// How many of the first 2,000 receivers have read it.
    pub read: u64,
}

/// A query for deliveries. `.await` reads a page of them.
///
/// # Errors
/// [`Error::Refused`] with 400 for a cursor of another list; see [`crate::http::Http::call`].
#[derive(Clone)]
#[must_use = "the page is read when it is awaited"]
pub struct DeliveriesQuery {
    http: Http,
    request: Request,
}

impl DeliveriesQuery {
    pub(crate) fn new(http: Http, request: Request) -> Self {
        DeliveriesQuery { http, request }
    }

    /// Only deliveries in this state.
    pub fn state(self, state: DeliveryState) -> Self {
        self.with("state", state.as_str())
    }

    /// The direction; oldest first by default.
    pub fn order(self, order: Order) -> Self {
        self.with("order", order.name())
    }

    /// Begins where an earlier page ended: [`DeliveryPage::cursor`].
    pub fn cursor(self, cursor: impl AsRef<str>) -> Self {
        self.with("cursor", cursor.as_ref())
    }

    /// At most so many deliveries, from 1 to 200; 50 by default.
    pub fn limit(self, deliveries: usize) -> Self {
        self.with("limit", &deliveries.to_string())
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.request = self.request.query(name, value);
        self
    }

    async fn run(self) -> Result<DeliveryPage, Error> {
        self.http.call(self.request).await
    }
}

awaitable!(DeliveriesQuery => DeliveryPage);

/// The reply to `GET /deliveries/:id`.
#[derive(Deserialize)]
pub(crate) struct One {
    pub delivery: Delivery<Vec<Attempt>>,
}

/// The reply to a redrive.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Redriven {
    pub delivery_id: String,
}

impl Agent {
    /// The deliveries of this agent's mail, sent and received.
    pub fn deliveries(&self) -> DeliveriesQuery {
        DeliveriesQuery::new(
            self.post().http().clone(),
            Request::get("/v1/deliveries").agent(self.id()),
        )
    }

    /// One delivery with its attempts.
    ///
    /// # Errors
    /// [`Error::Refused`] with 404 if this agent's mail has no such delivery.
    pub async fn delivery(&self, id: &str) -> Result<Delivery<Vec<Attempt>>, Error> {
        let one: One = self
            .call(Request::get(format!("/v1/deliveries/{}", segment(id))))
            .await?;
        Ok(one.delivery)
    }

    /// Delivers a dead one again, and returns the id of the new delivery. A repeat returns the same id.
    ///
    /// # Errors
    /// [`Error::Refused`] with 409 if it is not dead, and with 410 if the message is gone.
    pub async fn redrive(&self, id: &str) -> Result<String, Error> {
        let request = Request::post(format!("/v1/deliveries/{}/redrive", segment(id))).repeat(Repeat::Safely);
        let reply: Redriven = self.call(request).await?;
        Ok(reply.delivery_id)
    }

    /// Gives up a delivery that has not ended. Its sender is not told. Not repeated when its outcome is unknown: a
    /// repeat could not tell who has ended it.
    ///
    /// # Errors
    /// [`Error::Refused`] with 404 for an unknown delivery, and with 409 if it has ended.
    pub async fn cancel_delivery(&self, id: &str) -> Result<(), Error> {
        let request = Request::delete(format!("/v1/deliveries/{}", segment(id))).repeat(Repeat::OnlyIfNotDone);
        self.request(&request).await.map(drop)
    }

    /// The receipt of a message that this agent sent: the webhooks and inboxes that have it, and who has read it.
    ///
    /// # Errors
    /// [`Error::Refused`] with 404 if this agent has sent no such message.
    pub async fn receipt(&self, message_id: &str) -> Result<Receipt, Error> {
        #[derive(Deserialize)]
        struct Reply {
            receipt: Receipt,
        }
        let path = format!("/v1/messages/{}/receipt", segment(message_id));
        let reply: Reply = self.call(Request::get(path)).await?;
        Ok(reply.receipt)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::Agentpost;

    #[test]
    fn a_query_names_only_what_was_asked() {
        let post = Agentpost::builder("http://127.0.0.1:1").key("k").build().unwrap();
        let query = post.agent("a").deliveries();
        assert_eq!(query.request.path(), "/v1/deliveries");
        let query = query
            .state(DeliveryState::Dead)
            .order(Order::Desc)
            .cursor("a-_")
            .limit(7);
        assert_eq!(
            query.request.path(),
            "/v1/deliveries?state=dead&order=desc&cursor=a-_&limit=7"
        );
        let query = post.operator().deliveries("team_1").state(DeliveryState::from("dead"));
        assert_eq!(query.request.path(), "/admin/v1/deliveries?team=team_1&state=dead");
    }
}
