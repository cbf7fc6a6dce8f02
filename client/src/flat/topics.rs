//! Calls of the Abba Baba face around topics and webhooks, as an agent: subscribe, publish, have mail delivered to a
//! URL, and the receipt of what was sent.

use serde::Serialize;
use serde_json::json;
use serde_json::value::to_raw_value;

use crate::api::abbababa::{
    Receipt, ReceiptResponse, SendRequest, SendResponse, SigningKeys, Subscription, SubscriptionResponse,
    SubscriptionsResponse, Webhook, WebhookRequest, WebhookResponse,
};
use crate::http::{Request, segment, with_query};
use crate::retry::Repeat;
use crate::{Client, Error};

/// What a subscription does with its own URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SubscriptionUrl<'a> {
    /// Keeps the one it has; a new subscription has none.
    Keep,
    /// Has topic messages delivered there too.
    Set(&'a str),
    /// Has none any more.
    Remove,
}

impl Client {
    /// Publishes a message to a topic: everybody who is subscribed now gets it, except the publisher. With an
    /// idempotency key of its own, like [`Client::send`]. The answer's `fanout` is `pending` when it came before the
    /// last inbox had the message.
    pub async fn publish(&self, topic: &str, kind: &str, body: &impl Serialize) -> Result<SendResponse, Error> {
        let body = to_raw_value(body).map_err(|e| Error::Invalid(e.to_string()))?;
        self.send(SendRequest {
            topic: Some(topic.to_owned()),
            kind: Some(kind.to_owned()),
            body: Some(body),
            ..SendRequest::default()
        })
        .await
    }

    /// Subscribes the caller to a topic, or changes the URL of its subscription.
    pub async fn subscribe(&self, topic: &str, url: SubscriptionUrl<'_>) -> Result<Subscription, Error> {
        let body = match url {
            SubscriptionUrl::Keep => json!({ "topic": topic }),
            SubscriptionUrl::Set(url) => json!({ "topic": topic, "webhookUrl": url }),
            SubscriptionUrl::Remove => json!({ "topic": topic, "webhookUrl": null }),
        };
        let request = Request::post("/v1/messages/subscribe")
            .json(&body)?
            .repeat(Repeat::Safely);
        let reply: SubscriptionResponse = self.call(request).await?;
        Ok(reply.subscription)
    }

    /// Ends the caller's subscription; one that is not there is no error.
    pub async fn unsubscribe(&self, topic: &str) -> Result<(), Error> {
        let path = with_query("/v1/messages/subscribe", &[("topic", topic.to_owned())]);
        self.request(&Request::delete(path)).await.map(|_| ())
    }

    /// The caller's subscriptions.
    pub async fn subscriptions(&self) -> Result<Vec<Subscription>, Error> {
        let reply: SubscriptionsResponse = self.call(Request::get("/v1/messages/subscribe")).await?;
        Ok(reply.subscriptions)
    }

    /// Has the caller's mail delivered to a URL, in the place of the one before. `events` are
    /// `message.received` and `message.topic`. The webhook's `secret` verifies its calls: [`crate::verify`].
    pub async fn register_webhook(&self, url: &str, events: &[&str]) -> Result<Webhook, Error> {
        let wanted = WebhookRequest {
            url: url.to_owned(),
            events: events.iter().map(|&event| event.to_owned()).collect(),
        };
        // Registering the same again changes nothing.
        let request = Request::post("/v1/messages/webhook")
            .json(&wanted)?
            .repeat(Repeat::Safely);
        let reply: WebhookResponse = self.call(request).await?;
        let missing = || Error::Malformed("a registration was answered without its webhook".to_owned());
        reply.webhook.ok_or_else(missing)
    }

    /// The caller's webhook, if it has one.
    pub async fn webhook(&self) -> Result<Option<Webhook>, Error> {
        let reply: WebhookResponse = self.call(Request::get("/v1/messages/webhook")).await?;
        Ok(reply.webhook)
    }

    /// Removes the caller's webhook and cancels what it still had to deliver.
    pub async fn delete_webhook(&self) -> Result<(), Error> {
        self.request(&Request::delete("/v1/messages/webhook")).await.map(|_| ())
    }

    /// What became of a message that the caller sent.
    pub async fn receipt(&self, message_id: &str) -> Result<Receipt, Error> {
        let path = format!("/v1/messages/{}/receipt", segment(message_id));
        let reply: ReceiptResponse = self.call(Request::get(path)).await?;
        Ok(reply.receipt)
    }

    /// The signing keys of the key's team, for [`crate::verify::Verifier::signing_keys`].
    pub async fn signing_keys(&self) -> Result<SigningKeys, Error> {
        self.call(Request::get("/v2/keys")).await
    }

    /// Makes the next signing key of the key's team the current one; needs the permission `admin`. Not repeated when its
    /// outcome is unknown: receivers know two keys, so a second rotation would lock them out.
    pub async fn rotate_signing_keys(&self) -> Result<SigningKeys, Error> {
        self.call(Request::post("/v2/keys/rotate")).await
    }
}
