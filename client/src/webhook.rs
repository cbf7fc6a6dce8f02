//! An agent's webhook: the URL that its mail is delivered to, and the keys that sign the calls.

use agentpost_proto::secret::Secret;
use serde::Deserialize;

use crate::agent::Agent;
use crate::api::abbababa::{SigningKeys, WebhookRequest};
use crate::call::awaitable;
use crate::http::{Repeat, Request};
use crate::words::WebhookEvent;
use crate::{Agentpost, Error};

const PATH: &str = "/v1/messages/webhook";

/// The webhook of an agent. [`Agent::webhook`] makes this handle.
#[derive(Clone)]
pub struct AgentWebhook {
    agent: Agent,
}

/// A registered webhook.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Webhook {
    /// `whk_<32 hex digits>`.
    pub id: String,
    /// Where mail is delivered.
    pub url: String,
    /// The events for which the URL is called.
    pub events: Vec<WebhookEvent>,
    /// Whether an answer 410 has disabled the URL. Registering it again enables it.
    #[serde(default)]
    pub disabled: bool,
    /// When it was registered, in RFC 3339.
    pub created_at: String,
    /// `whsec_…`: what its calls are signed with, for [`crate::verify::Verifier::secret`].
    #[serde(default)]
    pub secret: Secret,
}

#[derive(Deserialize)]
struct Reply {
    webhook: Option<Webhook>,
}

/// A webhook to be registered. `.await` registers it and returns it with its `secret`, which verifies its calls:
/// [`crate::verify`].
///
/// # Errors
/// [`Error::Refused`] with 400 for a URL that the server does not call, and with 429 if the registrations of the day are
/// used up; [`Error::Unavailable`] or [`Error::OutcomeUnknown`] if no node decided it.
#[derive(Clone)]
#[must_use = "the webhook is registered when it is awaited"]
pub struct SetWebhook {
    agent: Agent,
    url: String,
    events: Vec<WebhookEvent>,
}

impl Agent {
    /// This agent's webhook.
    ///
    /// ```no_run
    /// # async fn example(alpha: agentpost::Agent) -> Result<(), agentpost::Error> {
    /// let webhook = alpha.webhook().set("https://example.org/hook").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn webhook(&self) -> AgentWebhook {
        AgentWebhook { agent: self.clone() }
    }
}

impl AgentWebhook {
    /// Has the agent's mail delivered to a URL, in the place of the URL before.
    pub fn set(&self, url: impl Into<String>) -> SetWebhook {
        SetWebhook {
            agent: self.agent.clone(),
            url: url.into(),
            events: vec![WebhookEvent::MessageReceived, WebhookEvent::MessageTopic],
        }
    }

    /// The webhook; `None` if there is none.
    ///
    /// # Errors
    /// See [`crate::http::Http::call`].
    pub async fn get(&self) -> Result<Option<Webhook>, Error> {
        let reply: Reply = self.agent.call(Request::get(PATH)).await?;
        Ok(reply.webhook)
    }

    /// Removes the webhook and cancels what was still to be delivered. It is no error if there is none.
    ///
    /// # Errors
    /// See [`crate::http::Http::request`].
    pub async fn remove(&self) -> Result<(), Error> {
        self.agent.request(&Request::delete(PATH)).await.map(drop)
    }
}

impl SetWebhook {
    /// The events for which the URL is called; direct and topic messages by default.
    pub fn events(mut self, events: impl IntoIterator<Item = WebhookEvent>) -> Self {
        self.events = events.into_iter().collect();
        self
    }

    async fn run(self) -> Result<Webhook, Error> {
        let body = WebhookRequest {
            url: self.url,
            events: self.events.into_iter().map(String::from).collect(),
        };
        // Registering the same again changes nothing.
        let request = Request::post(PATH).json(&body)?.repeat(Repeat::Safely);
        let reply: Reply = self.agent.call(request).await?;
        let missing = || Error::Malformed("a registration was answered without its webhook".to_owned());
        reply.webhook.ok_or_else(missing)
    }
}

awaitable!(SetWebhook => Webhook);

impl Agentpost {
    /// The signing keys of the key's team, for [`crate::verify::Verifier::signing_keys`].
    ///
    /// # Errors
    /// See [`crate::http::Http::call`].
    pub async fn signing_keys(&self) -> Result<SigningKeys, Error> {
        self.http().call(Request::get("/v2/keys")).await
    }

    /// Makes the next signing key of the key's team the current one. Not repeated when its outcome is unknown:
    /// receivers know two keys, so a second rotation would lock them out.
    ///
    /// # Errors
    /// [`Error::Refused`] with 403 if the key lacks the permission `admin`; see [`crate::http::Http::call`].
    pub async fn rotate_signing_keys(&self) -> Result<SigningKeys, Error> {
        self.http().call(Request::post("/v2/keys/rotate")).await
    }
}
