//! `POST /messages/batch`: up to a hundred messages in one operation, each with its own result.
//!
//! A fault of one item becomes that item's result.

use std::fmt;
use std::marker::PhantomData;

use agentpost_proto::command::{Permission, SendBatch, SendOutcome, SendReply, send_outcome};
use agentpost_proto::id::{MessageId, TeamId};
use agentpost_proto::limits;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use bytes::Bytes;
use serde::de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::fanout;
use super::send::{Item, Source, message_fault};
use crate::server::error::{ApiError, Result, json_response};
use crate::server::http::app_state::{App, AppState};
use crate::server::http::input::{not_json, parse};
use crate::server::http::ratelimit;
use crate::wire::json::{self, Checked, Fault, Object, Writer, push_text};

/// Accepts a batch; each message has its own result.
pub async fn batch(State(app): App, request: Request) -> Result<Response> {
    let (parts, body) = request.into_parts();
    let caller = app.writer(&parts.headers).await?;
    caller.require(Permission::Write)?;
    let from = caller.agent(&parts.headers)?;
    if parts.headers.contains_key("idempotency-key") {
        let problem = "does not apply to a batch: give each message its own idempotencyKey";
        return Err(ApiError::field("Idempotency-Key", problem));
    }
    let body = app
        .read_body(&caller, &parts.headers, body, limits::BATCH_BYTES_MAX)
        .await?;
    let items = parse_items(&body)?;
    let source = Source::of(&app, &body, &from);
    let mut sends = Vec::with_capacity(items.len());
    // For each item: its topic, or why it is not sent.
    let mut checked = Vec::with_capacity(items.len());
    for item in items {
        let send = item
            .map_err(message_fault)
            .and_then(|item| item.keyed(item.to_send(&source)?));
        let send = send.and_then(|send| app.count_send(&caller).map(|()| send));
        checked.push(send.map(|send| {
            let topic = send.topic.clone();
            sends.push(send);
            topic
        }));
    }
    // If a burst limit refuses every message, the whole answer says when to come back.
    if sends.is_empty()
        && let Some(place) = checked
            .iter()
            .position(|item| matches!(item, Err(error) if error.is_burst()))
        && let Err(refusal) = checked.swap_remove(place)
    {
        return Err(refusal);
    }
    let ids: Vec<Bytes> = sends.iter().map(|send| send.message_id.clone()).collect();
    let outcomes = if sends.is_empty() {
        Vec::new()
    } else {
        app.propose(&caller, &body, SendBatch { sends }).await?.outcomes
    };
    let standing = ratelimit::after_batch(&ids, &outcomes);
    let answered = results(&app, caller.team, checked, outcomes)?;
    Ok(ratelimit::with_usage(standing, answered))
}

/// The results in the order of the request: refused here, or decided by apply. The answer does not wait for the inboxes
/// of a large publish; its result says that they follow.
fn results(app: &AppState, team: TeamId, checked: Vec<Result<String>>, outcomes: Vec<SendOutcome>) -> Result<Response> {
    let state = app.services.replica.reader.local();
    let mut out = Vec::with_capacity(64 + 100 * checked.len());
    out.extend_from_slice(b"{\"results\":[");
    let mut outcomes = outcomes.into_iter();
    for (index, checked) in checked.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        let outcome = match checked {
            Err(error) => Err(error),
            Ok(topic) => match outcomes.next().and_then(|outcome| outcome.outcome) {
                Some(send_outcome::Outcome::Sent(reply)) => {
                    let pending = fanout::pending_in(&state, team, &topic, &reply)?;
                    Ok((reply, pending))
                }
                Some(send_outcome::Outcome::Rejection(rejection)) => Err(rejection.into()),
                None => return Err(ApiError::internal("a batch was answered with too few outcomes")),
            },
        };
        push_result(&mut out, outcome)?;
    }
    out.extend_from_slice(b"]}");
    Ok(json_response(StatusCode::OK, out))
}

fn push_result(out: &mut Vec<u8>, outcome: Result<(SendReply, bool)>) -> Result<()> {
    let mut object = Writer::new(out);
    match outcome {
        Ok((reply, pending)) => {
            let id = MessageId::from_slice(&reply.message_id).map_err(ApiError::internal)?;
            object.raw("status", "200");
            object.raw("success", "true");
            push_text(object.key("messageId"), &id.abbababa());
            if pending {
                object.text("fanout", fanout::PENDING);
            }
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

/// Parses a batch into its items, each with its members or its fault.
///
/// A valid batch is read in one pass. After an error the whole syntax is checked first, then each item is read alone.
fn parse_items(body: &[u8]) -> Result<Vec<Result<Item<'_>, Fault>>> {
    if let Ok(Batch(items)) = parse::<Batch<Object<Item<'_>>>>(body) {
        return Ok(items.into_iter().map(|Object(item)| Ok(item)).collect());
    }
    parse::<Batch<Checked>>(body)?;
    let Batch(items) = parse::<Batch<&RawValue>>(body)?;
    let items = items.into_iter().map(|raw| json::members(raw.get()));
    items.collect::<Result<_, _>>().map_err(not_json)
}

/// The body of a batch. It is not derived, because serde would report a second `messages` before the faults in it.
struct Batch<T>(Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Batch<T> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(field_identifier, rename_all = "lowercase")]
        enum Name {
            Messages,
            #[serde(other)]
            Other,
        }
        struct Members<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
            type Value = Batch<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with messages")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Batch<T>, A::Error> {
                let mut found = None;
                while let Some(name) = map.next_key()? {
                    if matches!(name, Name::Other) {
                        map.next_value::<IgnoredAny>()?;
                    } else if found.replace(map.next_value()?).is_some() {
                        return Err(A::Error::duplicate_field("messages"));
                    }
                }
                found
                    .map(|Items(items)| Batch(items))
                    .ok_or_else(|| A::Error::missing_field("messages"))
            }
        }
        input.deserialize_map(Members(PhantomData))
    }
}

/// A list that is read to the first message too many.
struct Items<T>(Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Items<T> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct List<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for List<T> {
            type Value = Items<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of messages")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Items<T>, A::Error> {
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
        input.deserialize_seq(List(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn one_bad_item_does_not_spoil_a_batch() {
        let items = parse_items(br#"{"x":1,"messages":[{"type":"a"},7,{"type":"b","type":"c"},[{}],null]}"#).unwrap();
        let faults: Vec<_> = items.into_iter().map(Result::err).collect();
        let no_object = Some(Fault::NotAnObject);
        assert_eq!(
            faults,
            [None, no_object, Some(Fault::DuplicateKey), no_object, no_object]
        );
        let hundred = |n: usize| format!("{{\"messages\":[{}]}}", vec!["{}"; n].join(","));
        assert_eq!(parse_items(hundred(100).as_bytes()).unwrap().len(), 100);
        for bad in [
            &*hundred(101),
            "{}",
            r#"{"messages":{}}"#,
            r#"{"messages":null}"#,
            r#"{"messages":[],"messages":[]}"#,
            "[[]]",
        ] {
            assert_eq!(
                parse_items(bad.as_bytes()).map(|_| ()).unwrap_err().status,
                400,
                "{bad}"
            );
        }
    }

    #[test]
    fn a_long_list_is_read_to_its_101st_item() {
        for item in ["{}", "7", r#"{"type":1,"type":2}"#] {
            let long = format!("{{\"messages\":[{} x", format!("{item},").repeat(101));
            let error = parse_items(long.as_bytes()).map(|_| ()).unwrap_err();
            assert!(
                error.message.contains("a batch has at most 100 messages at line 1"),
                "{}",
                error.message
            );
        }
    }
}
