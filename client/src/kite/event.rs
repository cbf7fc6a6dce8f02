//! An event as it arrived. It is kept as JSON and not as a struct with fixed fields: an event with more or fewer optional
//! attributes than today is neither lost nor shortened when it is printed.

use std::fmt;

use agentpost_proto::cloudevent::EVENT_TYPE;
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Map, Value};

/// The order in which the vendor's command line prints attributes; `data` follows, then extensions by name.
const ATTRIBUTES: [&str; 8] = [
    "specversion",
    "id",
    "type",
    "source",
    "datacontenttype",
    "dataschema",
    "subject",
    "time",
];

/// A CloudEvent with its position.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// The position, for [`super::Session::ack`]: in the inbox if the session listens to one agent, else in the team.
    pub seq: u64,
    fields: Map<String, Value>,
}

/// The agent mail in an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mail<'a> {
    /// The sender.
    pub from: &'a str,
    /// The receiver, or `topic:<name>` in a session that does not listen to one agent.
    pub to: &'a str,
    /// The body. A body that is a JSON object is its JSON text.
    pub body: &'a str,
    /// The conversation that it belongs to.
    pub thread_id: Option<&'a str>,
    /// The id of the message that it answers.
    pub reply_to_id: Option<&'a str>,
    /// The type, if it was sent through the REST API with one.
    pub kind: Option<&'a str>,
}

impl Event {
    /// Reads the `event` of a frame. `None` if it is no object, or lacks a text `id` or `type`.
    pub fn new(seq: u64, event: Value) -> Option<Self> {
        let Value::Object(fields) = event else { return None };
        let text = |name| fields.get(name).is_some_and(Value::is_string);
        (text("id") && text("type")).then_some(Event { seq, fields })
    }

    /// The id, unique in the team.
    pub fn id(&self) -> &str {
        self.text("id")
    }

    /// The CloudEvents type.
    pub fn kind(&self) -> &str {
        self.text("type")
    }

    /// The CloudEvents source; empty if there is none.
    pub fn source(&self) -> &str {
        self.text("source")
    }

    /// When the server accepted it, in RFC 3339; empty if the event does not tell.
    pub fn time(&self) -> &str {
        self.text("time")
    }

    /// The server's summary of it in one line, if there is one.
    pub fn summary(&self) -> Option<&str> {
        self.fields.get("kitesummary")?.as_str()
    }

    /// The mail; `None` if the event is something else.
    pub fn mail(&self) -> Option<Mail<'_>> {
        if self.kind() != EVENT_TYPE {
            return None;
        }
        let data = self.fields.get("data")?.as_object()?;
        let text = |name: &str| data.get(name).and_then(Value::as_str);
        Some(Mail {
            from: text("from")?,
            to: text("to")?,
            body: text("body")?,
            thread_id: text("thread_id"),
            reply_to_id: text("reply_to_id"),
            kind: text("type"),
        })
    }

    /// The topic that the mail was published to; `None` for a direct message.
    pub fn topic(&self) -> Option<&str> {
        self.fields.get("data")?.get("topic")?.as_str()
    }

    fn text(&self, name: &str) -> &str {
        self.fields.get(name).and_then(Value::as_str).unwrap_or_default()
    }
}

/// JSON on one line.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

impl Serialize for Event {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.fields.len()))?;
        for name in ATTRIBUTES.iter().copied().chain(["data"]) {
            if let Some(value) = self.fields.get(name) {
                map.serialize_entry(name, value)?;
            }
        }
        for (name, value) in &self.fields {
            if name != "data" && !ATTRIBUTES.contains(&name.as_str()) {
                map.serialize_entry(name, value)?;
            }
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn event() -> Event {
        let value = json!({
            "kitesummary": "s", "kiteseq": 7, "data": {"to": "b", "from": "a", "body": "x"}, "time": "2026-04-30T10:00:00Z",
            "datacontenttype": "application/json", "source": "https://getkite.sh/agents/a", "type": EVENT_TYPE,
            "id": "i", "specversion": "1.0",
        });
        Event::new(7, value).unwrap()
    }

    #[test]
    fn it_is_printed_in_the_vendors_order() {
        let line = event().to_string();
        let expected = concat!(
            r#"{"specversion":"1.0","id":"i","type":"com.kite.agent.message","source":"https://getkite.sh/agents/a","#,
            r#""datacontenttype":"application/json","time":"2026-04-30T10:00:00Z","#,
            r#""data":{"body":"x","from":"a","to":"b"},"kiteseq":7,"kitesummary":"s"}"#
        );
        assert_eq!(line, expected);
    }

    #[test]
    fn mail_is_what_has_the_type_and_a_text_body() {
        let mut event = event();
        assert_eq!((event.mail().unwrap().body, event.topic()), ("x", None));
        event.fields["data"]["topic"] = json!("news");
        assert_eq!(event.topic(), Some("news"));
        event
            .fields
            .insert("data".to_owned(), json!({"from": "a", "to": "b", "body": 1}));
        assert!(event.mail().is_none());
        event.fields.insert("type".to_owned(), json!("com.github.push"));
        assert!(event.mail().is_none());
        assert!(Event::new(1, json!({"type": "t"})).is_none());
        assert!(Event::new(1, json!("text")).is_none());
    }

    #[test]
    fn absent_members_of_an_event_are_empty() {
        let whole = event();
        assert_eq!(whole.source(), "https://getkite.sh/agents/a");
        assert_eq!((whole.time(), whole.summary()), ("2026-04-30T10:00:00Z", Some("s")));
        let bare = Event::new(1, json!({"id": "i", "type": "t", "time": 5, "kitesummary": null})).unwrap();
        assert_eq!((bare.source(), bare.time(), bare.summary()), ("", "", None));
    }
}
