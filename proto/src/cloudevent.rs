//! Agent mail as a CloudEvents 1.0 JSON event. Extensions must be strings, booleans or integers, because the vendor's
//! parser rejects an event with any other extension.

use serde::{Deserialize, Serialize};

use crate::command::BodyKind;
use crate::id::MessageId;
use crate::record;
use crate::time::rfc3339;

/// The type of every agent message.
pub const EVENT_TYPE: &str = "com.kite.agent.message";
/// The default prefix of `source`, which can be configured.
pub const SOURCE_PREFIX: &str = "https://getkite.sh/agents/";
/// Bytes of the body in a summary, cut back to a character boundary.
const SUMMARY_BODY_BYTES: usize = 80;

/// An event in the field order of the vendor's serializer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct CloudEvent {
    pub specversion: String,
    pub id: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub source: String,
    pub datacontenttype: String,
    pub time: String,
    pub data: Data,
    pub kiteseq: u64,
    pub kitesummary: String,
}

/// The mail in an event, with its keys in alphabetical order, as the vendor prints them. `body` is always a string.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Data {
    pub body: String,
    pub from: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_to_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thread_id: Option<String>,
    pub to: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
}

impl CloudEvent {
    /// The event of a stored message as it stands at `seq` of the team: to its receiver, or `topic:<name>`.
    pub fn of(message: &record::Message, seq: u64, source_prefix: &str) -> Self {
        if message.topic.is_empty() {
            return Self::received(message, &message.to, seq, source_prefix);
        }
        Self::received(message, &format!("topic:{}", message.topic), seq, source_prefix)
    }

    /// The event of a stored message as `to` received it at `seq` of its inbox.
    pub fn received(message: &record::Message, to: &str, seq: u64, source_prefix: &str) -> Self {
        let body = String::from_utf8_lossy(&message.body).into_owned();
        let id = MessageId::from_slice(&message.id).map_or_else(|_| String::new(), MessageId::kite);
        let text = |value: &String| (!value.is_empty()).then(|| value.clone());
        CloudEvent {
            specversion: "1.0".to_owned(),
            id,
            kind: EVENT_TYPE.to_owned(),
            source: format!("{source_prefix}{}", message.from),
            datacontenttype: "application/json".to_owned(),
            time: rfc3339(message.created_at_ms),
            kiteseq: seq,
            kitesummary: summary(&message.from, to, &body),
            data: Data {
                from: message.from.clone(),
                to: to.to_owned(),
                topic: text(&message.topic),
                thread_id: text(&message.thread_id),
                reply_to_id: text(&message.reply_to_id),
                kind: (message.r#type != EVENT_TYPE).then(|| message.r#type.clone()),
                body,
            },
        }
    }
}

/// `[agent msg] from → to: body…`, the body cut on a character boundary.
pub fn summary(from: &str, to: &str, body: &str) -> String {
    if body.len() <= SUMMARY_BODY_BYTES {
        return format!("[agent msg] {from} → {to}: {body}");
    }
    let end = body.floor_char_boundary(SUMMARY_BODY_BYTES);
    format!("[agent msg] {from} → {to}: {}…", &body[..end])
}

/// The Abba Baba body of a stored message, as JSON text: an object as it is, a text as `{"text": …}`.
pub fn object_body(message: &record::Message) -> String {
    let text = String::from_utf8_lossy(&message.body);
    match message.body_kind() {
        BodyKind::Text => serde_json::json!({ "text": text }).to_string(),
        BodyKind::Object | BodyKind::Unspecified => text.into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_are_cut_between_characters() {
        let body = "ä".repeat(50); // byte 80 is a boundary, byte 79 is not
        assert!(summary("a", "b", &body).ends_with(&format!("{}…", "ä".repeat(40))));
        let odd = format!("x{}", "ä".repeat(50)); // byte 80 falls inside a character
        assert!(summary("a", "b", &odd).ends_with('…'));
        assert_eq!(summary("a", "b", "short"), "[agent msg] a → b: short");
    }
}
