//! `POST /messages` and `POST /messages/batch`: this face's JSON becomes a `Send`.
//!
//! This is the busiest path of a node. The request is parsed once, into raw slices; a body that is compact
//! already is not copied but shared with the request's own buffer until the operation is encoded.

use std::borrow::Cow;
use std::fmt;

use agentpost_proto::command::{
    self, BodyKind, Permission, Send, SendBatch, SendOutcome, SendReply, operation, reply, send_outcome,
};
use agentpost_proto::id::{self, AgentId, MessageId};
use agentpost_proto::{limits, time};
use axum::extract::Request;
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use bytes::Bytes;
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::render::{Shown, push_message};
use crate::http::error::{ApiError, Result};
use crate::http::json::{self, Fault, Key, Writer, members, push_text};
use crate::http::{Doors, idempotency_key, json_response, parse, read_body};

/// Characters of a `callbackUrl`.
const URL_CHARS_MAX: usize = 2048;

members!(
    /// What a sender writes, in the words of both dialects.
    Item {
        to_agent_id = "toAgentId",
        topic = "topic",
        kind = "type",
        message_type = "messageType",
        body = "body",
        thread_id = "threadId",
        reply_to_id = "replyToId",
        subject = "subject",
        priority = "priority",
        callback_url = "callbackUrl",
        expires_at = "expiresAt",
        metadata = "metadata",
        idempotency_key = "idempotencyKey",
    }
);

/// Takes one message.
pub async fn one(doors: &Doors, request: Request) -> Result<Response> {
    let (parts, body) = request.into_parts();
    let caller = doors.writer(&parts.headers).await?;
    caller.require(Permission::Write)?;
    let from = caller.agent(&parts.headers)?;
    let key = idempotency_key(&parts.headers)?;
    let body = read_body(&parts.headers, body, limits::REQUEST_BYTES_MAX).await?;
    let item: Item<'_> = parse(&body)?;
    let mut send = item.to_send(&Source::of(doors, &body, &from))?;
    send.idempotency_key = key;
    match doors.propose(&caller, operation::Op::Send(send.clone())).await? {
        reply::Reply::Send(reply) => accepted(&Shown::sent(&send, &reply)?),
        other => Err(ApiError::internal(format!("a send was answered {other:?}"))),
    }
}

fn accepted(message: &Shown<'_>) -> Result<Response> {
    let mut out = Vec::with_capacity(1024);
    let mut object = Writer::new(&mut out);
    object.raw("success", "true");
    object.text("messageId", &*message.id());
    push_message(object.key("data"), message);
    object.end();
    Ok(json_response(StatusCode::OK, out))
}

/// Takes many messages; each has its own result.
pub async fn batch(doors: &Doors, request: Request) -> Result<Response> {
    let (parts, body) = request.into_parts();
    let caller = doors.writer(&parts.headers).await?;
    caller.require(Permission::Write)?;
    let from = caller.agent(&parts.headers)?;
    if parts.headers.contains_key("idempotency-key") {
        let problem = "does not apply to a batch: give each message its own idempotencyKey";
        return Err(ApiError::field("Idempotency-Key", problem));
    }
    let body = read_body(&parts.headers, body, limits::BATCH_BYTES_MAX).await?;
    let Batch(items) = parse(&body)?;
    let source = Source::of(doors, &body, &from);
    let mut sends = Vec::with_capacity(items.len());
    let mut refused = Vec::with_capacity(items.len());
    for item in &items {
        match item.to_send(&source).and_then(|send| item.keyed(send)) {
            Ok(send) => {
                sends.push(send);
                refused.push(None);
            }
            Err(error) => refused.push(Some(error)),
        }
    }
    let outcomes = if sends.is_empty() {
        Vec::new()
    } else {
        match doors
            .propose(&caller, operation::Op::SendBatch(SendBatch { sends }))
            .await?
        {
            reply::Reply::SendBatch(reply) => reply.outcomes,
            other => return Err(ApiError::internal(format!("a batch was answered {other:?}"))),
        }
    };
    results(refused, outcomes)
}

/// The results in the order of the request: refused here, or decided by apply.
fn results(refused: Vec<Option<ApiError>>, outcomes: Vec<SendOutcome>) -> Result<Response> {
    let mut out = Vec::with_capacity(64 + 100 * refused.len());
    out.extend_from_slice(b"{\"results\":[");
    let mut outcomes = outcomes.into_iter();
    for (index, refused) in refused.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        let outcome = match refused {
            Some(error) => Err(error),
            None => match outcomes.next().and_then(|outcome| outcome.outcome) {
                Some(send_outcome::Outcome::Sent(reply)) => Ok(reply),
                Some(send_outcome::Outcome::Rejection(rejection)) => Err(rejection.into()),
                None => return Err(ApiError::internal("a batch was answered with too few outcomes")),
            },
        };
        push_result(&mut out, outcome)?;
    }
    out.extend_from_slice(b"]}");
    Ok(json_response(StatusCode::OK, out))
}

fn push_result(out: &mut Vec<u8>, outcome: Result<SendReply>) -> Result<()> {
    let mut object = Writer::new(out);
    match outcome {
        Ok(reply) => {
            let id = MessageId::from_slice(&reply.message_id).map_err(ApiError::internal)?;
            object.raw("status", "200");
            object.raw("success", "true");
            push_text(object.key("messageId"), &id.abbababa());
        }
        Err(error) => {
            object.raw("status", error.status.as_str());
            object.raw("success", "false");
            push_text(object.key("error"), &error.message);
        }
    }
    object.end();
    Ok(())
}

/// What every message of a request shares.
struct Source<'a> {
    doors: &'a Doors,
    body: &'a Bytes,
    from: &'a AgentId,
    wall_ms: u64,
}

impl<'a> Source<'a> {
    fn of(doors: &'a Doors, body: &'a Bytes, from: &'a AgentId) -> Self {
        Source {
            doors,
            body,
            from,
            wall_ms: doors.services.clock.wall_ms(),
        }
    }

    /// The bytes of a text, without copying what stands in the request already.
    fn shared(&self, text: Cow<'_, str>) -> Bytes {
        match text {
            Cow::Borrowed(part) => self.body.slice_ref(part.as_bytes()),
            Cow::Owned(text) => Bytes::from(text),
        }
    }
}

impl Item<'_> {
    /// Checks every field.
    fn to_send(&self, source: &Source<'_>) -> Result<Send> {
        if let Some(fault) = self.fault {
            return Err(ApiError::invalid(format!("the message {fault}")));
        }
        let to = self.receiver()?;
        let kind = self.kind()?;
        let (body_kind, body) = self.body(source)?;
        let send = Send {
            message_id: source.doors.services.ids.message_id().to_bytes(),
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
        };
        match self.topic {
            None => Ok(send),
            Some(_) => Err(ApiError::not_implemented(
                "topics are not available yet; send to toAgentId instead",
            )),
        }
    }

    /// With the item's own key; a single message has it in the header.
    fn keyed(&self, mut send: Send) -> Result<Send> {
        if let Some(key) = text("idempotencyKey", self.idempotency_key)? {
            id::validate_idempotency_key(&key).map_err(|e| ApiError::named("idempotencyKey", e.to_string()))?;
            send.idempotency_key = key.into_owned();
        }
        Ok(send)
    }

    /// The receiving agent; empty for a topic.
    fn receiver(&self) -> Result<String> {
        match (text("toAgentId", self.to_agent_id)?, text("topic", self.topic)?) {
            (Some(agent), None) => {
                let agent: AgentId = agent
                    .parse()
                    .map_err(|e| ApiError::field("toAgentId", format!("is invalid: {e}")))?;
                Ok(agent.into())
            }
            (None, Some(topic)) => {
                id::validate_name("topic", &topic).map_err(|e| ApiError::named("topic", e.to_string()))?;
                Ok(String::new())
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

    /// What the SDK dialect lets a sender attach, as one compact object; empty for nothing.
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

/// A string field, if it is there.
fn text<'a>(field: &str, raw: Option<&'a RawValue>) -> Result<Option<Cow<'a, str>>> {
    raw.map(|raw| json::text(raw.get()))
        .transpose()
        .map_err(|fault| ApiError::field(field, fault))
}

/// A thread, a reply id or a subject; empty without one.
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

/// `{messages: [...]}`, of which each item is read leniently.
struct Batch<'a>(Vec<Item<'a>>);

impl<'de: 'a, 'a> Deserialize<'de> for Batch<'a> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Batch<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with messages")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut found: Option<Items<'de>> = None;
                while let Some(Key(key)) = map.next_key()? {
                    if key != "messages" {
                        map.next_value::<IgnoredAny>()?;
                    } else if found.replace(map.next_value()?).is_some() {
                        return Err(A::Error::duplicate_field("messages"));
                    }
                }
                found
                    .map(|items| Batch(items.0))
                    .ok_or_else(|| A::Error::missing_field("messages"))
            }
        }
        input.deserialize_map(Object)
    }
}

struct Items<'a>(Vec<Item<'a>>);

impl<'de: 'a, 'a> Deserialize<'de> for Items<'a> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Items<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of messages")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut items = Vec::with_capacity(limits::BATCH_ITEMS_MAX);
                while let Some(item) = seq.next_element()? {
                    if items.len() == limits::BATCH_ITEMS_MAX {
                        let most = limits::BATCH_ITEMS_MAX;
                        return Err(A::Error::custom(format!("a batch has at most {most} messages")));
                    }
                    items.push(item);
                }
                Ok(Items(items))
            }
        }
        input.deserialize_seq(List)
    }
}
