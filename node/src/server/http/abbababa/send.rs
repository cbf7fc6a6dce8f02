//! `POST /messages`: converts the JSON of the Abba Baba API to a `Send`.
//!
//! This is the busiest path of a node. The request is parsed once, into raw slices; a body that is compact already is
//! not copied but shared with the request's buffer until the operation is encoded.

use std::borrow::Cow;

use agentpost_proto::command::{self, BodyKind, Permission, Send, SendReply};
use agentpost_proto::id::{self, AgentId, MessageId, TeamId};
use agentpost_proto::{limits, time};
use agentpost_raft_store::core::query;
use axum::extract::{Request, State};
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{fanout, if_readable};
use crate::base::clock::IdSource;
use crate::server::error::{ApiError, Result, json_response};
use crate::server::http::app_state::{App, AppState};
use crate::server::http::body::MESSAGE_REQUEST_BYTES_MAX;
use crate::server::http::input::{idempotency_key, parse_members};
use crate::server::http::ratelimit;
use crate::shard::read_pool::Share;
use crate::wire::json::{self, Fault, Writer};
use crate::wire::message::{Shown, push_message};

/// Longest `callbackUrl`, in characters.
const URL_CHARS_MAX: usize = 2048;

/// The body of a send, with the field names of both dialects.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", bound(deserialize = "'de: 'a"))]
pub struct Item<'a> {
    to_agent_id: Option<&'a RawValue>,
    topic: Option<&'a RawValue>,
    #[serde(rename = "type")]
    kind: Option<&'a RawValue>,
    message_type: Option<&'a RawValue>,
    body: Option<&'a RawValue>,
    thread_id: Option<&'a RawValue>,
    reply_to_id: Option<&'a RawValue>,
    subject: Option<&'a RawValue>,
    priority: Option<&'a RawValue>,
    callback_url: Option<&'a RawValue>,
    expires_at: Option<&'a RawValue>,
    metadata: Option<&'a RawValue>,
    idempotency_key: Option<&'a RawValue>,
}

/// Accepts one message.
pub async fn one(State(app): App, request: Request) -> Result<Response> {
    let (parts, body) = request.into_parts();
    let caller = app.writer(&parts.headers).await?;
    caller.require(Permission::Write)?;
    let from = caller.agent(&parts.headers)?;
    let key = idempotency_key(&parts.headers)?;
    let body = app
        .read_body(&caller, &parts.headers, body, MESSAGE_REQUEST_BYTES_MAX)
        .await?;
    let item: Item<'_> = parse_members(&body)?.map_err(message_fault)?;
    let mut send = item.to_send(&Source::of(&app, &body, &from))?;
    send.idempotency_key = key;
    let reply = app.propose(&caller, &body, send.clone()).await?;
    let pending = fanout::pending(&app, caller.team, &send.topic, &reply).await?;
    let answered = if reply.message_id == send.message_id {
        accepted(&Shown::sent(&send, &reply)?, pending)
    } else {
        repeated(&app, caller.team, &send, &reply, pending).await?
    };
    let standing = ratelimit::after_send(&send.message_id, &reply);
    Ok(ratelimit::with_usage(standing, answered))
}

/// The answer to a repeated idempotency key: the message as it was stored, if this node can read it now, else what the
/// repeat says of it. Receiver, type and body are the same in both: otherwise the repeat would have been refused.
async fn repeated(app: &AppState, team: TeamId, send: &Send, first: &SendReply, pending: bool) -> Result<Response> {
    let id = MessageId::from_slice(&first.message_id).map_err(ApiError::internal)?;
    let state = app.services.replica.reader.local();
    let to = Some(send.to.clone()).filter(|_| send.topic.is_empty());
    let stored = state.read(Share::Team(team), move |state| {
        let stored = match to {
            Some(to) => query::inbox::received(state, team, &to, id)?.map(|item| (item.message, item.read_at_ms)),
            None => query::inbox::message(state, team, id)?.map(|message| (message, 0)),
        };
        Result::<_, ApiError>::Ok(stored)
    });
    Ok(match if_readable(stored.await) {
        Some((message, read_at_ms)) => accepted(&Shown::of(&message, read_at_ms)?, pending),
        None => accepted(&Shown::sent(send, first)?, pending),
    })
}

fn accepted(message: &Shown<'_>, pending: bool) -> Response {
    let mut out = Vec::with_capacity(1024);
    let mut object = Writer::new(&mut out);
    object.raw("success", "true");
    object.text("messageId", &*message.id());
    if pending {
        object.text("fanout", fanout::PENDING);
    }
    push_message(object.key("data"), message);
    object.end();
    json_response(StatusCode::OK, out)
}

/// The context that all messages of a request share.
pub struct Source<'a> {
    ids: &'a IdSource,
    body: &'a Bytes,
    from: &'a AgentId,
    wall_ms: u64,
}

impl<'a> Source<'a> {
    pub fn of(app: &'a AppState, body: &'a Bytes, from: &'a AgentId) -> Self {
        Source {
            ids: &app.services.ids,
            body,
            from,
            wall_ms: app.services.wall_time.now_ms(),
        }
    }

    /// The bytes of a text; a borrowed text shares the request's buffer.
    fn shared(&self, text: Cow<'_, str>) -> Bytes {
        match text {
            Cow::Borrowed(part) => self.body.slice_ref(part.as_bytes()),
            Cow::Owned(text) => Bytes::from(text),
        }
    }
}

/// The error for a message with a fault, whether it was sent alone or in a batch.
pub fn message_fault(fault: Fault) -> ApiError {
    ApiError::invalid(format!("the message {fault}"))
}

impl Item<'_> {
    /// Checks every field.
    pub fn to_send(&self, source: &Source<'_>) -> Result<Send> {
        let (to, topic) = self.receiver()?;
        let kind = self.kind()?;
        let (body_kind, body) = self.body(source)?;
        Ok(Send {
            message_id: source.ids.message_id().to_bytes(),
            face: command::Face::Abbababa as i32,
            from: source.from.as_str().to_owned(),
            to,
            r#type: kind,
            body_kind: body_kind as i32,
            body,
            thread_id: opaque("threadId", self.thread_id)?.into_owned(),
            reply_to_id: opaque("replyToId", self.reply_to_id)?.into_owned(),
            expires_at_ms: self.expires_at_ms(source.wall_ms)?,
            idempotency_key: String::new(),
            extras: self.extras()?,
            topic,
        })
    }

    /// Sets the item's own idempotency key; a single message has it in the header.
    pub fn keyed(&self, mut send: Send) -> Result<Send> {
        if let Some(key) = text("idempotencyKey", self.idempotency_key)? {
            id::validate_idempotency_key(&key).map_err(|e| ApiError::named("idempotencyKey", e.to_string()))?;
            send.idempotency_key = key.into_owned();
        }
        Ok(send)
    }

    /// The receiving agent or the topic; the other one is empty.
    fn receiver(&self) -> Result<(String, String)> {
        match (text("toAgentId", self.to_agent_id)?, text("topic", self.topic)?) {
            (Some(agent), None) => {
                let agent: AgentId = agent
                    .parse()
                    .map_err(|e| ApiError::field("toAgentId", format!("is invalid: {e}")))?;
                Ok((agent.into(), String::new()))
            }
            (None, Some(topic)) => {
                id::validate_name("topic", &topic).map_err(|e| ApiError::named("topic", e.to_string()))?;
                Ok((String::new(), topic.into_owned()))
            }
            (Some(_), Some(_)) => Err(ApiError::field("toAgentId", "and topic exclude each other")),
            (None, None) => Err(ApiError::field("toAgentId", "or topic is required")),
        }
    }

    /// `type`, or the SDK's name for it.
    fn kind(&self) -> Result<String> {
        let alias = text("messageType", self.message_type)?;
        let (field, kind) = match text("type", self.kind)? {
            Some(kind) => ("type", kind),
            None => (
                "messageType",
                alias.ok_or_else(|| ApiError::field("type", "is required"))?,
            ),
        };
        id::validate_name(field, &kind).map_err(|e| ApiError::named(field, e.to_string()))?;
        Ok(kind.into_owned())
    }

    fn body(&self, source: &Source<'_>) -> Result<(BodyKind, Bytes)> {
        let raw = self
            .body
            .map(RawValue::get)
            .ok_or_else(|| ApiError::field("body", "is required"))?;
        let (kind, text) = match raw.as_bytes().first() {
            Some(b'{') => (BodyKind::Object, json::compact(raw)),
            Some(b'"') => (BodyKind::Text, json::text(raw)),
            _ => return Err(ApiError::field("body", "must be an object or a string")),
        };
        let text = text.map_err(|fault| ApiError::field("body", fault))?;
        if text.len() > limits::BODY_BYTES_MAX {
            return Err(ApiError::too_large("body", limits::BODY_BYTES_MAX));
        }
        Ok((kind, source.shared(text)))
    }

    fn expires_at_ms(&self, wall_ms: u64) -> Result<u64> {
        let Some(at) = text("expiresAt", self.expires_at)? else {
            return Ok(0);
        };
        let at_ms = time::parse_rfc3339(&at).map_err(|e| ApiError::field("expiresAt", format!("is invalid: {e}")))?;
        if at_ms <= wall_ms {
            return Err(ApiError::field("expiresAt", "lies in the past"));
        }
        Ok(at_ms)
    }

    /// The extras of the SDK dialect as one compact object; empty if there are none.
    fn extras(&self) -> Result<Bytes> {
        if [self.subject, self.priority, self.callback_url, self.metadata]
            .iter()
            .all(Option::is_none)
        {
            return Ok(Bytes::new());
        }
        let subject = opaque("subject", self.subject)?;
        let priority = text("priority", self.priority)?.unwrap_or(Cow::Borrowed("normal"));
        if !["low", "normal", "high", "urgent"].contains(&&*priority) {
            return Err(ApiError::field("priority", "must be low, normal, high or urgent"));
        }
        let callback_url = text("callbackUrl", self.callback_url)?;
        if callback_url.as_ref().is_some_and(|url| !is_web_url(url)) {
            return Err(ApiError::field(
                "callbackUrl",
                "must be an http or https URL of at most 2048 characters",
            ));
        }
        let metadata = match self.metadata.map(RawValue::get) {
            Some(raw) if raw.starts_with('{') => {
                json::compact(raw).map_err(|fault| ApiError::field("metadata", fault))?
            }
            Some(_) => return Err(ApiError::field("metadata", Fault::NotAnObject)),
            None => Cow::Borrowed("null"),
        };
        let mut out = Vec::new();
        let mut object = Writer::new(&mut out);
        object.text("subject", Some(&*subject).filter(|s| !s.is_empty()));
        object.text("priority", &*priority);
        object.text("callbackUrl", callback_url.as_deref());
        object.raw("metadata", metadata.as_bytes());
        object.end();
        if out.len() > limits::EXTRAS_BYTES_MAX {
            return Err(ApiError::too_large(
                "subject, callbackUrl and metadata together",
                limits::EXTRAS_BYTES_MAX,
            ));
        }
        Ok(Bytes::from(out))
    }
}

/// An optional string field.
fn text<'a>(field: &str, raw: Option<&'a RawValue>) -> Result<Option<Cow<'a, str>>> {
    raw.map(|raw| json::text(raw.get()))
        .transpose()
        .map_err(|fault| ApiError::field(field, fault))
}

/// A thread id, a reply id or a subject; empty if absent.
fn opaque<'a>(field: &str, raw: Option<&'a RawValue>) -> Result<Cow<'a, str>> {
    let Some(text) = text(field, raw)? else {
        return Ok(Cow::Borrowed(""));
    };
    id::validate_opaque(field, &text).map_err(|e| ApiError::named(field, e.to_string()))?;
    Ok(text)
}

fn is_web_url(text: &str) -> bool {
    let uri = text.parse::<Uri>().ok().filter(|_| text.len() <= URL_CHARS_MAX);
    uri.is_some_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|h| !h.is_empty())
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::base::clock::Clock;
    use serde_json::{Value, json};

    /// The current time of the tests, in Unix milliseconds.
    const NOW_MS: u64 = 1_770_000_000_000;

    fn sent(request: &str) -> Result<Send> {
        let body = Bytes::copy_from_slice(request.as_bytes());
        let from: AgentId = "alpha".parse().unwrap();
        let ids = IdSource::seeded(Clock::system(), 1);
        let item: Item<'_> = parse_members(&body)?.map_err(message_fault)?;
        let source = Source {
            ids: &ids,
            body: &body,
            from: &from,
            wall_ms: NOW_MS,
        };
        item.to_send(&source).and_then(|send| item.keyed(send))
    }

    fn with(changes: &Value) -> String {
        let mut request = json!({ "toAgentId": "beta", "type": "t", "body": {} });
        for (key, value) in changes.as_object().unwrap() {
            request[key] = value.clone();
        }
        request.to_string()
    }

    #[test]
    fn a_body_without_white_space_is_not_copied() {
        let request = br#"{ "toAgentId": "beta", "type":"t", "body": {"a":1} }"#;
        let body = Bytes::from_static(request);
        let item: Item<'_> = parse_members(&body).unwrap().unwrap();
        let (ids, from) = (IdSource::seeded(Clock::system(), 1), "alpha".parse().unwrap());
        let send = item
            .to_send(&Source {
                ids: &ids,
                body: &body,
                from: &from,
                wall_ms: 0,
            })
            .unwrap();
        assert_eq!(send.body, br#"{"a":1}"#.as_slice());
        assert!(request.as_ptr_range().contains(&send.body.as_ptr()));
    }

    #[test]
    fn both_dialects_are_understood() {
        let a = sent(r#"{"toAgentId":"beta","type":"price.quote","body":{ "n" : 1.50 }}"#).unwrap();
        assert_eq!(
            (a.from.as_str(), a.to.as_str(), a.r#type.as_str()),
            ("alpha", "beta", "price.quote")
        );
        assert_eq!(
            (a.body_kind(), &a.body[..]),
            (BodyKind::Object, br#"{"n":1.50}"#.as_slice())
        );
        assert!(a.extras.is_empty());
        let b = sent(&with(&json!({
            "type": null, "messageType": "direct", "body": "hi \u{e4}\n", "subject": "s", "priority": "high",
            "metadata": {"k": [1, 2]}, "callbackUrl": "https://example.com/x", "threadId": "t 1", "replyToId": "r",
            "expiresAt": "2099-01-01T00:00:00Z", "idempotencyKey": "once", "whatever": {"a": 1},
        })))
        .unwrap();
        assert_eq!(
            (b.r#type.as_str(), b.body_kind(), &b.body[..]),
            ("direct", BodyKind::Text, "hi ä\n".as_bytes())
        );
        assert_eq!(
            (b.thread_id.as_str(), b.reply_to_id.as_str(), b.idempotency_key.as_str()),
            ("t 1", "r", "once")
        );
        assert_eq!(b.expires_at_ms, 4_070_908_800_000);
        let extras = json!({"subject": "s", "priority": "high", "callbackUrl": "https://example.com/x", "metadata": {"k": [1, 2]}});
        assert_eq!(serde_json::from_slice::<Value>(&b.extras).unwrap(), extras);
    }

    #[test]
    fn type_wins_over_its_alias() {
        assert_eq!(
            sent(&with(&json!({ "type": "a", "messageType": "direct" })))
                .unwrap()
                .r#type,
            "a"
        );
        assert_eq!(
            sent(&with(&json!({ "type": null, "messageType": "x.y" })))
                .unwrap()
                .r#type,
            "x.y"
        );
    }

    #[test]
    fn every_bad_field_is_named() {
        let long = "x".repeat(129);
        for (changes, field) in [
            (json!({ "toAgentId": null }), "toAgentId"),
            (json!({ "toAgentId": 7 }), "toAgentId"),
            (json!({ "toAgentId": "a b" }), "toAgentId"),
            (json!({ "toAgentId": ".." }), "toAgentId"),
            (json!({ "toAgentId": long }), "toAgentId"),
            (json!({ "topic": "x" }), "toAgentId"),
            (json!({ "toAgentId": null, "topic": "a b" }), "topic"),
            (json!({ "type": null }), "type"),
            (json!({ "type": "" }), "type"),
            (json!({ "type": "a b" }), "type"),
            (json!({ "type": ["a"] }), "type"),
            (json!({ "messageType": 1 }), "messageType"),
            (json!({ "body": null }), "body"),
            (json!({ "body": [] }), "body"),
            (json!({ "body": 1 }), "body"),
            (json!({ "body": true }), "body"),
            (json!({ "threadId": "" }), "threadId"),
            (json!({ "threadId": "a\u{7}" }), "threadId"),
            (json!({ "replyToId": long }), "replyToId"),
            (json!({ "subject": {} }), "subject"),
            (json!({ "priority": "huge" }), "priority"),
            (json!({ "callbackUrl": "ftp://x/" }), "callbackUrl"),
            (json!({ "callbackUrl": "/x" }), "callbackUrl"),
            (json!({ "metadata": [] }), "metadata"),
            (json!({ "metadata": "x" }), "metadata"),
            (json!({ "expiresAt": "soon" }), "expiresAt"),
            (json!({ "expiresAt": "2020-01-01T00:00:00Z" }), "expiresAt"),
            (json!({ "expiresAt": 5 }), "expiresAt"),
            (json!({ "idempotencyKey": "" }), "idempotencyKey"),
            (json!({ "idempotencyKey": "ä" }), "idempotencyKey"),
        ] {
            let error = sent(&with(&changes)).unwrap_err();
            assert_eq!(
                (error.status, error.fields()),
                (StatusCode::BAD_REQUEST, vec![field]),
                "{changes}"
            );
        }
    }

    #[test]
    fn non_objects_and_repeated_keys_are_refused() {
        for bad in [
            "",
            "[]",
            "[{}]",
            "null",
            "\"x\"",
            "{",
            r#"{"type":"t","type":"t"}"#,
            r#"{"type":"t"} x"#,
        ] {
            assert_eq!(sent(bad).unwrap_err().status, 400, "{bad}");
        }
        let twice = r#"{"toAgentId":"beta","type":"t","body":{"a":1,"\u0061":2}}"#;
        assert_eq!(sent(twice).unwrap_err().fields(), ["body"]);
    }

    #[test]
    fn large_parts_are_413() {
        let text = "x".repeat(limits::BODY_BYTES_MAX);
        assert!(sent(&with(&json!({ "body": text }))).is_ok());
        assert_eq!(sent(&with(&json!({ "body": text + "x" }))).unwrap_err().status, 413);
        let metadata = json!({ "k": "x".repeat(limits::EXTRAS_BYTES_MAX) });
        assert_eq!(sent(&with(&json!({ "metadata": metadata }))).unwrap_err().status, 413);
    }

    #[test]
    fn a_publish_names_a_topic_instead_of_an_agent() {
        let publish = sent(&with(&json!({ "toAgentId": null, "topic": "market/updates" }))).unwrap();
        assert_eq!((publish.to.as_str(), publish.topic.as_str()), ("", "market/updates"));
        let direct = sent(&with(&json!({ "topic": null }))).unwrap();
        assert_eq!((direct.to.as_str(), direct.topic.as_str()), ("beta", ""));
    }
}
