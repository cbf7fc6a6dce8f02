//! Messages as JSON. Stored bodies and extras are compact JSON already, so they are copied, not parsed.

use agentpost_proto::command::{BodyKind, Send, SendReply};
use agentpost_proto::id::MessageId;
use agentpost_proto::record;
use agentpost_proto::time::rfc3339;
use agentpost_raft_store::core::kv::Fatal;

use crate::wire::json::{Writer, push_text};

/// The extras that the SDK dialect shows for a message whose sender attached none.
const NO_EXTRAS: &[u8] = br#"{"subject":null,"priority":"normal","callbackUrl":null,"metadata":null}"#;

/// The parts of a message that are shown, borrowed from their source.
pub struct Shown<'a> {
    id: MessageId,
    from: &'a str,
    /// The receiver; empty in the sender's view of a topic message.
    to: &'a str,
    /// The topic; empty for a direct message.
    topic: &'a str,
    kind: &'a str,
    body_kind: BodyKind,
    body: &'a [u8],
    thread_id: &'a str,
    reply_to_id: &'a str,
    extras: &'a [u8],
    created_at_ms: u64,
    expires_at_ms: u64,
    read_at_ms: u64,
}

impl<'a> Shown<'a> {
    /// A stored message as its sender sees it. `read_at_ms` is 0 while the receiver has not read it.
    pub fn of(message: &'a record::Message, read_at_ms: u64) -> Result<Self, Fatal> {
        Ok(Shown {
            id: stored_id(&message.id)?,
            from: &message.from,
            to: &message.to,
            topic: &message.topic,
            kind: &message.r#type,
            body_kind: message.body_kind(),
            body: &message.body,
            thread_id: &message.thread_id,
            reply_to_id: &message.reply_to_id,
            extras: &message.extras,
            created_at_ms: message.created_at_ms,
            expires_at_ms: message.expires_at_ms,
            read_at_ms,
        })
    }

    /// A stored message as `receiver` sees it.
    pub fn received(message: &'a record::Message, receiver: &'a str, read_at_ms: u64) -> Result<Self, Fatal> {
        Ok(Shown {
            to: receiver,
            ..Self::of(message, read_at_ms)?
        })
    }

    /// A message that was just sent.
    pub fn sent(send: &'a Send, reply: &SendReply) -> Result<Self, Fatal> {
        Ok(Shown {
            id: stored_id(&reply.message_id)?,
            from: &send.from,
            to: &send.to,
            topic: &send.topic,
            kind: &send.r#type,
            body_kind: send.body_kind(),
            body: &send.body,
            thread_id: &send.thread_id,
            reply_to_id: &send.reply_to_id,
            extras: &send.extras,
            created_at_ms: reply.created_at_ms,
            expires_at_ms: send.expires_at_ms,
            read_at_ms: 0,
        })
    }

    /// The id in the form of the Abba Baba API.
    pub fn id(&self) -> String {
        self.id.abbababa()
    }
}

fn stored_id(bytes: &[u8]) -> Result<MessageId, Fatal> {
    MessageId::from_slice(bytes).map_err(|e| Fatal::Invariant(format!("stored message: {e}")))
}

/// Appends the message with the fields of both dialects.
pub fn push_message(out: &mut Vec<u8>, message: &Shown<'_>) {
    let time = |ms: u64| (ms != 0).then(|| rfc3339(ms));
    let mut object = Writer::new(out);
    object.text("id", &*message.id());
    object.text("fromAgentId", message.from);
    object.text("toAgentId", some(message.to));
    object.text("topic", some(message.topic));
    object.text("type", message.kind);
    object.text("messageType", message.kind);
    push_body(object.key("body"), message);
    object.text("readAt", time(message.read_at_ms).as_deref());
    object.text("createdAt", &*rfc3339(message.created_at_ms));
    object.text("threadId", some(message.thread_id));
    object.text("replyToId", some(message.reply_to_id));
    object.text("status", if message.read_at_ms == 0 { "pending" } else { "read" });
    object.text("deliveryMethod", "inbox");
    object.raw("deliveredAt", "null");
    object.raw("qstashMessageId", "null");
    object.text("expiresAt", time(message.expires_at_ms).as_deref());
    object.members_of(if message.extras.is_empty() {
        NO_EXTRAS
    } else {
        message.extras
    });
    object.end();
}

fn some(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

/// Appends the body: an object as it is stored, a text as `{"text": …}`.
pub(crate) fn push_body(out: &mut Vec<u8>, message: &Shown<'_>) {
    match message.body_kind {
        BodyKind::Text => {
            let mut object = Writer::new(out);
            push_text(object.key("text"), &String::from_utf8_lossy(message.body));
            object.end();
        }
        BodyKind::Object | BodyKind::Unspecified => out.extend_from_slice(message.body),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use agentpost_proto::api::abbababa::Message;
    use bytes::Bytes;
    use serde_json::{Value, json};

    fn stored() -> record::Message {
        record::Message {
            id: Bytes::from_static(&[7; 16]),
            from: "alpha".into(),
            to: "beta".into(),
            r#type: "price.quote".into(),
            body_kind: BodyKind::Object as i32,
            body: Bytes::from_static(br#"{"price":5.0}"#),
            created_at_ms: 1_770_906_600_000,
            ..record::Message::default()
        }
    }

    fn shown(message: &record::Message, read_at_ms: u64) -> Value {
        let mut out = Vec::new();
        push_message(&mut out, &Shown::of(message, read_at_ms).unwrap());
        serde_json::from_slice::<Message>(&out).unwrap();
        serde_json::from_slice(&out).unwrap()
    }

    #[test]
    fn a_plain_message_has_the_keys_of_both_dialects() {
        assert_eq!(
            shown(&stored(), 0),
            json!({
                "id": format!("msg_{}", "07".repeat(16)), "fromAgentId": "alpha", "toAgentId": "beta", "topic": null,
                "type": "price.quote", "messageType": "price.quote", "body": {"price": 5.0},
                "readAt": null, "createdAt": "2026-02-12T14:30:00.000Z", "threadId": null, "replyToId": null,
                "status": "pending", "deliveryMethod": "inbox", "deliveredAt": null, "qstashMessageId": null,
                "expiresAt": null, "subject": null, "priority": "normal", "callbackUrl": null, "metadata": null,
            })
        );
    }

    #[test]
    fn topic_mail_names_its_receiver_and_to_its_sender_nobody() {
        let message = record::Message {
            to: String::new(),
            topic: "market.updates".into(),
            ..stored()
        };
        let sent = shown(&message, 0);
        assert_eq!(
            (&sent["toAgentId"], &sent["topic"]),
            (&json!(null), &json!("market.updates"))
        );
        let mut received = Vec::new();
        let read_at_ms = 1_770_906_601_000;
        push_message(&mut received, &Shown::received(&message, "gamma", read_at_ms).unwrap());
        let received: Value = serde_json::from_slice(&received).unwrap();
        assert_eq!(
            (&received["toAgentId"], &received["topic"]),
            (&json!("gamma"), &sent["topic"])
        );
        assert_eq!((&received["status"], &received["id"]), (&json!("read"), &sent["id"]));
    }

    #[test]
    fn texts_threads_extras_and_times_are_shown() {
        let message = record::Message {
            body_kind: BodyKind::Text as i32,
            body: Bytes::from_static("a \"quote\"\nä".as_bytes()),
            thread_id: "t\"1".into(),
            reply_to_id: "r".into(),
            expires_at_ms: 1_770_906_600_001,
            extras: Bytes::from_static(br#"{"subject":"s","priority":"high","callbackUrl":null,"metadata":{"k":[1]}}"#),
            ..stored()
        };
        let shown = shown(&message, 1_770_906_601_000);
        assert_eq!(shown["body"], json!({ "text": "a \"quote\"\nä" }));
        assert_eq!(shown["threadId"], "t\"1");
        assert_eq!(shown["readAt"], "2026-02-12T14:30:01.000Z");
        assert_eq!(shown["status"], "read");
        assert_eq!(shown["expiresAt"], "2026-02-12T14:30:00.001Z");
        assert_eq!(shown["metadata"], json!({ "k": [1] }));
    }
}
