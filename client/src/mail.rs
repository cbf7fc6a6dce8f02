//! A message as its receiver sees it.

use agentpost_proto::cloudevent::EVENT_TYPE;
use agentpost_proto::id::MessageId;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::Error;
use crate::agent::Agent;
use crate::api::abbababa::Message;
use crate::draft::Draft;
use crate::kite::Event;
use crate::listen::Acknowledge;
use crate::words::Priority;

/// A message that an agent has received. [`Agent::listen`], [`Agent::inbox`] and [`Agent::message`] return it.
#[derive(Clone)]
#[non_exhaustive]
pub struct Mail {
    /// `msg_<32 hex digits>`.
    pub id: String,
    /// The sender.
    pub from: String,
    /// The receiver: the agent whose inbox it is in.
    pub to: String,
    /// The topic that it was published to; `None` for a direct message.
    pub topic: Option<String>,
    /// The type that its sender gave it. Mail of the Kite API is `com.kite.agent.message`.
    pub kind: String,
    /// The conversation that it belongs to.
    pub thread: Option<String>,
    /// The id of the message that it answers, as its sender wrote it.
    pub reply_to: Option<String>,
    /// When the server accepted it, in RFC 3339.
    pub created_at: String,
    /// The details that only the REST API carries. `None` when the mail came over a WebSocket; [`Agent::message`] reads
    /// it.
    pub details: Option<Details>,
    text: String,
    agent: Agent,
    acknowledge: Acknowledge,
}

/// The details of a message that the REST API carries and a WebSocket does not.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Details {
    /// A title.
    pub subject: Option<String>,
    /// How urgent its sender calls it.
    pub priority: Option<Priority>,
    /// More about it.
    pub metadata: Option<Map<String, Value>>,
    /// A URL that its sender names.
    pub callback_url: Option<String>,
    /// When it ends, in RFC 3339.
    pub expires_at: Option<String>,
    /// When the receiver marked it read, in RFC 3339; `None` while it is unread.
    pub read_at: Option<String>,
}

impl Mail {
    /// Mail of the REST API.
    pub(crate) fn of_message(agent: &Agent, message: Message, acknowledge: Acknowledge) -> Self {
        let details = Details {
            subject: message.extras.subject,
            priority: message.extras.priority.map(Priority::from),
            metadata: message.extras.metadata,
            callback_url: message.extras.callback_url,
            expires_at: message.expires_at,
            read_at: message.read_at,
        };
        Mail {
            id: message.id,
            from: message.from_agent_id,
            to: message.to_agent_id.unwrap_or_else(|| agent.id().to_owned()),
            topic: message.topic,
            kind: message.kind,
            thread: message.thread_id,
            reply_to: message.reply_to_id,
            created_at: message.created_at,
            details: Some(details),
            text: text_of(message.body.get()),
            agent: agent.clone(),
            acknowledge,
        }
    }

    /// Mail of a WebSocket; `None` if the event is something else.
    pub(crate) fn of_event(agent: &Agent, event: &Event, acknowledge: Acknowledge) -> Option<Self> {
        let mail = event.mail()?;
        let owned = |text: Option<&str>| text.map(str::to_owned);
        // The two faces print the same id in two ways.
        let id = event
            .id()
            .parse()
            .map_or_else(|_| event.id().to_owned(), MessageId::abbababa);
        Some(Mail {
            id,
            from: mail.from.to_owned(),
            to: mail.to.to_owned(),
            topic: owned(event.topic()),
            kind: mail.kind.unwrap_or(EVENT_TYPE).to_owned(),
            thread: owned(mail.thread_id),
            reply_to: owned(mail.reply_to_id),
            created_at: event.time().to_owned(),
            details: None,
            text: text_of(mail.body),
            agent: agent.clone(),
            acknowledge,
        })
    }

    /// The body as text: a text as it was sent, anything else as its JSON.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The body as a value. A body that is a plain text is read as the object `{"text": …}`, which is how the REST API
    /// shows it.
    ///
    /// # Errors
    /// [`Error::Malformed`] if the body is not such a value.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        let value = match serde_json::from_str::<Value>(&self.text) {
            Ok(object @ Value::Object(_)) => object,
            _ => json!({ "text": self.text }),
        };
        T::deserialize(value).map_err(|e| Error::Malformed(format!("the body of {}: {e}", self.id)))
    }

    /// A message to the sender, from the agent that received this one, in the same thread and with
    /// [`Draft::reply_to`] set. If this message has no thread, its id becomes the thread's name.
    ///
    /// ```no_run
    /// # async fn example(mail: agentpost::Mail) -> Result<(), agentpost::Error> {
    /// mail.reply("Thanks, got it.").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn reply(&self, body: impl Serialize) -> Draft {
        let thread = self.thread.as_ref().unwrap_or(&self.id);
        self.agent.send(&self.from, body).thread(thread).reply_to(&self.id)
    }

    /// Tells the server that this mail was dealt with, so that it does not come again.
    ///
    /// | mail of | `ack` |
    /// |---|---|
    /// | [`Agent::listen`] | is cumulative: it covers every earlier mail of the same listener, too |
    /// | [`Agent::inbox`], [`Agent::message`] | marks this one read |
    ///
    /// Over a WebSocket it returns when the acknowledgement was handed to a node. The node stores it within a moment;
    /// if the node dies before that, the listener acknowledges it at the next node. So only a program that ends at the
    /// same time sees the mail again.
    ///
    /// # Errors
    /// - [`Error::Unavailable`]: the listener has ended, or no node took it. The mail comes again with the next
    ///   listener.
    /// - [`Error::OutcomeUnknown`]: nobody knows. It is safe to call `ack` again.
    /// - [`Error::Refused`]: the key may not mark the mail any more.
    pub async fn ack(&self) -> Result<(), Error> {
        self.acknowledge.acknowledge(&self.agent, &self.id).await
    }
}

impl std::fmt::Debug for Mail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mail")
            .field("id", &self.id)
            .field("from", &self.from)
            .field("to", &self.to)
            .field("topic", &self.topic)
            .field("kind", &self.kind)
            .field("thread", &self.thread)
            .field("reply_to", &self.reply_to)
            .field("created_at", &self.created_at)
            .field("details", &self.details)
            .field("text", &self.text)
            .finish_non_exhaustive()
    }
}

/// A body as [`Mail::text`] shows it. A plain text is `{"text": …}` on the REST API and the text itself on a WebSocket;
/// both become the text.
fn text_of(body: &str) -> String {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Text {
        text: String,
    }
    serde_json::from_str(body).map_or_else(|_| body.to_owned(), |body: Text| body.text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::Agentpost;

    fn agent() -> Agent {
        let post = Agentpost::builder("http://127.0.0.1:1").key("k").build().unwrap();
        post.agent("alpha")
    }

    fn of_rest(body: Value) -> Mail {
        let message = json!({
            "id": "msg_0192f0e1000070008000000000000001", "fromAgentId": "beta", "toAgentId": "alpha", "topic": null,
            "type": "greeting", "messageType": "greeting", "body": body, "readAt": null,
            "createdAt": "2026-04-30T10:00:00Z", "threadId": null, "replyToId": null, "status": "pending",
            "deliveryMethod": "inbox", "subject": "s", "priority": "high",
        });
        Mail::of_message(
            &agent(),
            serde_json::from_str(&message.to_string()).unwrap(),
            Acknowledge::Read,
        )
    }

    fn of_socket(body: &str) -> Mail {
        let event = json!({
            "id": "0192f0e1-0000-7000-8000-000000000001", "type": EVENT_TYPE, "source": "s", "time": "2026-04-30T10:00:00Z",
            "data": {"from": "beta", "to": "alpha", "body": body, "type": "greeting"},
        });
        Mail::of_event(&agent(), &Event::new(7, event).unwrap(), Acknowledge::Read).unwrap()
    }

    #[test]
    fn both_ways_to_receive_show_the_same_mail() {
        for (rest, socket, text) in [
            (json!({"text": "hi"}), "hi", "hi"),
            (json!({"text": "hi"}), "{\"text\":\"hi\"}", "hi"),
            (json!({"a": 1}), "{\"a\":1}", "{\"a\":1}"),
            (json!({"text": "{\"a\":1}"}), "{\"a\":1}", "{\"a\":1}"),
            (
                json!({"text": "hi", "a": 1}),
                "{\"a\":1,\"text\":\"hi\"}",
                "{\"a\":1,\"text\":\"hi\"}",
            ),
        ] {
            let (rest, socket) = (of_rest(rest), of_socket(socket));
            assert_eq!((rest.text(), socket.text()), (text, text));
            let values: (Value, Value) = (rest.json().unwrap(), socket.json().unwrap());
            assert_eq!(values.0, values.1, "{text}");
            assert_eq!((&rest.id, &rest.from, &rest.to), (&socket.id, &socket.from, &socket.to));
            assert_eq!((&rest.kind, &rest.created_at), (&socket.kind, &socket.created_at));
        }
        let details = of_rest(json!({"a": 1})).details.unwrap();
        assert_eq!(
            (details.subject.as_deref(), details.priority),
            (Some("s"), Some(Priority::High))
        );
        assert!(of_socket("x").details.is_none());
    }

    #[test]
    fn a_body_that_is_no_such_value_says_so() {
        let mail = of_socket("hi");
        assert_eq!(mail.json::<Value>().unwrap(), json!({"text": "hi"}));
        assert!(matches!(mail.json::<Vec<u8>>(), Err(Error::Malformed(_))));
    }
}
