//! Sending: messages to one agent, to a topic, as a reply, and many at once.

use serde::Serialize;
use serde_json::value::to_raw_value;

use crate::Error;
use crate::agent::Agent;
use crate::api::abbababa::{BatchRequest, BatchResponse, BatchResult, SendRequest, SendResponse};
use crate::call::awaitable;
use crate::http::{Repeat, Request};
use crate::words::{Fanout, Priority};

/// The type of a message whose sender names none.
const DEFAULT_KIND: &str = "message";

/// A message that is sent by `.await`, which returns [`Sent`]. [`Agent::send`], [`Agent::publish`] and
/// [`crate::Mail::reply`] make one.
///
/// Every message carries an idempotency key, a fresh one for each `.await` unless [`Draft::idempotency_key`] sets it. So an
/// attempt of unknown outcome is repeated safely, and the message is stored once.
///
/// # Errors
/// - [`Error::Refused`]: 400 for a field that the server does not accept, 403 if the key may not act as the sender, 413
///   for a body over 256 KiB, 422 if the idempotency key was used for another message, 429 if a quota is used up.
/// - [`Error::Unavailable`] and [`Error::OutcomeUnknown`], when all attempts of the [`crate::retry::RetryPolicy`] failed.
/// - [`Error::Invalid`]: the body or the metadata cannot be written as JSON.
#[derive(Clone)]
#[must_use = "a draft is sent when it is awaited"]
pub struct Draft {
    agent: Agent,
    request: SendRequest,
    /// Why the body or the metadata cannot be written as JSON.
    fault: Option<String>,
}

/// An accepted message: it is on disk at a majority of the nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sent {
    /// `msg_<32 hex digits>`, for [`Agent::receipt`] and [`Draft::reply_to`].
    pub id: String,
    /// [`Fanout::Pending`] if a published message was accepted before the last subscriber's inbox had it. A direct
    /// message is always [`Fanout::Complete`].
    pub fanout: Fanout,
}

/// One message of a batch that was not stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({status})")]
#[non_exhaustive]
pub struct BatchError {
    /// The HTTP status that a single send would have had.
    pub status: u16,
    /// The server's sentence.
    pub message: String,
}

impl Agent {
    /// A message to an agent of the same team. The body is a text or whatever serialises to a JSON object.
    ///
    /// ```no_run
    /// # async fn example(beta: agentpost::Agent) -> Result<(), agentpost::Error> {
    /// let sent = beta.send("agent-alpha", "Here are the results.").thread("t-1").await?;
    /// println!("{}", sent.id);
    /// # Ok(())
    /// # }
    /// ```
    pub fn send(&self, to: impl Into<String>, body: impl Serialize) -> Draft {
        let request = SendRequest {
            to_agent_id: Some(to.into()),
            ..SendRequest::default()
        };
        self.draft(request).body(body)
    }

    /// A message to a topic: every agent that is subscribed when the server takes it gets it, except the publisher.
    ///
    /// ```no_run
    /// # async fn example(beta: agentpost::Agent) -> Result<(), agentpost::Error> {
    /// use serde_json::json;
    ///
    /// beta.publish("market.updates", json!({ "usdc": 4 })).kind("price.change").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn publish(&self, topic: impl Into<String>, body: impl Serialize) -> Draft {
        let request = SendRequest {
            topic: Some(topic.into()),
            ..SendRequest::default()
        };
        self.draft(request).body(body)
    }

    /// A draft from the JSON body of `POST /v1/messages`, for programs that have it already.
    pub fn draft(&self, request: SendRequest) -> Draft {
        Draft {
            agent: self.clone(),
            request,
            fault: None,
        }
    }

    /// Sends up to 100 messages in one request. Each is decided alone; the results are in the order of the drafts. All
    /// are sent as this agent, whichever made them.
    ///
    /// # Errors
    /// The request as a whole fails as a single [`Draft`] does. What became of one message is in its own result.
    pub async fn send_all(
        &self,
        drafts: impl IntoIterator<Item = Draft>,
    ) -> Result<Vec<Result<Sent, BatchError>>, Error> {
        let messages: Result<Vec<SendRequest>, Error> = drafts.into_iter().map(Draft::into_request).collect();
        let body = BatchRequest { messages: messages? };
        // Every message has an idempotency key of its own.
        let request = Request::post("/v1/messages/batch").json(&body)?.repeat(Repeat::Safely);
        let reply: BatchResponse = self.call(request).await?;
        reply.results.into_iter().map(result).collect()
    }
}

impl Draft {
    /// The body, in the place of the one before.
    fn body(mut self, body: impl Serialize) -> Self {
        match to_raw_value(&body) {
            Ok(body) => self.request.body = Some(body),
            Err(error) => self.fault = Some(format!("the body is no JSON: {error}")),
        }
        self
    }

    /// The message's type, 1 to 128 characters of `A-Z a-z 0-9 . _ : / -`; `message` by default.
    pub fn kind(mut self, kind: impl Into<String>) -> Self {
        self.request.kind = Some(kind.into());
        self
    }

    /// The conversation that it belongs to: any name of 1 to 128 printable characters.
    pub fn thread(mut self, thread: impl Into<String>) -> Self {
        self.request.thread_id = Some(thread.into());
        self
    }

    /// The id of the message that it answers. The server does not check that there is such a message.
    pub fn reply_to(mut self, id: impl Into<String>) -> Self {
        self.request.reply_to_id = Some(id.into());
        self
    }

    /// A title.
    pub fn subject(mut self, subject: impl Into<String>) -> Self {
        self.request.subject = Some(subject.into());
        self
    }

    /// How urgent it is for its readers. Delivery does not depend on it.
    pub fn priority(mut self, priority: Priority) -> Self {
        self.request.priority = Some(priority.as_str().to_owned());
        self
    }

    /// More about it: whatever serialises to a JSON object.
    pub fn metadata(mut self, metadata: impl Serialize) -> Self {
        match to_raw_value(&metadata) {
            Ok(metadata) => self.request.metadata = Some(metadata),
            Err(error) => self.fault = Some(format!("the metadata is no JSON: {error}")),
        }
        self
    }

    /// A URL for its readers. The server stores and shows it; nothing is delivered there.
    pub fn callback_url(mut self, url: impl Into<String>) -> Self {
        self.request.callback_url = Some(url.into());
        self
    }

    /// When it ends, in RFC 3339: nobody gets to see it from then on.
    pub fn expires_at(mut self, time: impl Into<String>) -> Self {
        self.request.expires_at = Some(time.into());
        self
    }

    /// The sender's own name of the message, 1 to 128 printable ASCII characters. Within 24 hours a second message of this
    /// agent under the same key is not stored: it gets the first one's answer.
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.request.idempotency_key = Some(key.into());
        self
    }

    /// With everything that a message needs.
    fn into_request(self) -> Result<SendRequest, Error> {
        if let Some(fault) = self.fault {
            return Err(Error::Invalid(fault));
        }
        let mut request = self.request;
        if request.kind.is_none() && request.message_type.is_none() {
            request.kind = Some(DEFAULT_KIND.to_owned());
        }
        request.idempotency_key.get_or_insert_with(crate::http::fresh_key);
        Ok(request)
    }

    async fn run(self) -> Result<Sent, Error> {
        let agent = self.agent.clone();
        let mut message = self.into_request()?;
        let key = message.idempotency_key.take().unwrap_or_default();
        let request = Request::post("/v1/messages").json(&message)?.idempotency_key(key);
        let reply: SendResponse = agent.call(request).await?;
        Ok(sent(reply.message_id, reply.fanout))
    }
}

awaitable!(Draft => Sent);

fn sent(id: String, fanout: Option<String>) -> Sent {
    let fanout = fanout.map_or(Fanout::Complete, Fanout::from);
    Sent { id, fanout }
}

fn result(result: BatchResult) -> Result<Result<Sent, BatchError>, Error> {
    if !result.success {
        return Ok(Err(BatchError {
            status: result.status,
            message: result.error.unwrap_or_default(),
        }));
    }
    let missing = || Error::Malformed("a stored message of a batch has no id".to_owned());
    let id = result.message_id.ok_or_else(missing)?;
    Ok(Ok(sent(id, result.fanout)))
}
