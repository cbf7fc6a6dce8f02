//! An agent's subscriptions to topics.

use serde_json::{Value, json};

use crate::Error;
use crate::agent::Agent;
use crate::api::abbababa::{Subscription, SubscriptionResponse, SubscriptionsResponse};
use crate::call::awaitable;
use crate::http::{Repeat, Request};

const PATH: &str = "/v1/messages/subscribe";

/// A subscription to be made or changed. `.await` does it and returns the subscription as it is then.
///
/// # Errors
/// [`Error::Refused`] with 400 for a topic or URL that the server does not accept, and with 429 if the webhook
/// registrations of the day are used up; [`Error::Unavailable`] or [`Error::OutcomeUnknown`] if no node decided it.
#[derive(Clone)]
#[must_use = "the subscription is made when it is awaited"]
pub struct Subscribe {
    agent: Agent,
    body: Value,
}

impl Agent {
    /// Subscribes to a topic: what is published to it from now on comes to this agent's inbox. A subscription that exists
    /// keeps its URL, unless [`Subscribe::webhook_url`] or [`Subscribe::without_webhook_url`] changes it.
    pub fn subscribe(&self, topic: impl Into<String>) -> Subscribe {
        Subscribe {
            agent: self.clone(),
            body: json!({ "topic": topic.into() }),
        }
    }

    /// Ends a subscription. One that does not exist is no error.
    ///
    /// # Errors
    /// See [`crate::http::Http::request`].
    pub async fn unsubscribe(&self, topic: &str) -> Result<(), Error> {
        self.request(&Request::delete(PATH).query("topic", topic))
            .await
            .map(drop)
    }

    /// This agent's subscriptions, by topic.
    ///
    /// # Errors
    /// See [`crate::http::Http::call`].
    pub async fn subscriptions(&self) -> Result<Vec<Subscription>, Error> {
        let reply: SubscriptionsResponse = self.call(Request::get(PATH)).await?;
        Ok(reply.subscriptions)
    }
}

impl Subscribe {
    /// Has messages of the topic delivered to this URL, too.
    pub fn webhook_url(mut self, url: impl Into<String>) -> Self {
        self.body["webhookUrl"] = Value::String(url.into());
        self
    }

    /// Removes the subscription's URL.
    pub fn without_webhook_url(mut self) -> Self {
        self.body["webhookUrl"] = Value::Null;
        self
    }

    async fn run(self) -> Result<Subscription, Error> {
        // Subscribing again changes nothing.
        let request = Request::post(PATH).json(&self.body)?.repeat(Repeat::Safely);
        let reply: SubscriptionResponse = self.agent.call(request).await?;
        Ok(reply.subscription)
    }
}

awaitable!(Subscribe => Subscription);
