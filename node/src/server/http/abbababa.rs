//! The Abba Baba Messaging API at `/api/v1` and `/v1`: two published dialects in one. Requests may use the field names
//! of either dialect; answers carry both.

mod batch;
pub(super) mod deliveries;
mod fanout;
mod inbox;
mod receipt;
mod send;
mod subscribe;
mod webhook;

use agentpost_proto::command::{MarkRead, Permission};
use agentpost_proto::id::{AgentId, MessageId, TeamId};
use agentpost_raft_store::core::kv::Kv;
use agentpost_raft_store::core::query;
use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{get, post};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::sync::Arc;

use super::app_state::{App, AppState};
use super::input::{Consistency, parse_members};
use crate::server::error::{ApiError, Result, json_response};
use crate::shard::read_pool::Share;
use crate::wire::json::Writer;
use crate::wire::message::{Shown, push_message};

type Id = Result<Path<String>, PathRejection>;

/// The routes under both mounts.
pub(super) fn routes() -> Router<Arc<AppState>> {
    ["/api/v1", "/v1"].iter().fold(Router::new(), |router, mount| {
        router
            .route(&format!("{mount}/messages"), post(send::one).get(inbox::list))
            .route(&format!("{mount}/messages/batch"), post(batch::batch))
            .route(
                &format!("{mount}/messages/subscribe"),
                post(subscribe::subscribe)
                    .delete(subscribe::unsubscribe)
                    .get(subscribe::list),
            )
            .route(
                &format!("{mount}/messages/webhook"),
                post(webhook::register).delete(webhook::delete).get(webhook::get),
            )
            .route(&format!("{mount}/messages/{{id}}"), get(get_one).patch(mark))
            .route(&format!("{mount}/messages/{{id}}/receipt"), get(receipt::get))
            .route(&format!("{mount}/deliveries"), get(deliveries::list))
            .route(
                &format!("{mount}/deliveries/{{id}}"),
                get(deliveries::get).delete(deliveries::cancel),
            )
            .route(&format!("{mount}/deliveries/{{id}}/redrive"), post(deliveries::redrive))
    })
}

/// Parses a message id. A malformed id is answered like an unknown one.
fn message_id(id: Id) -> Result<MessageId> {
    let id = id.ok().and_then(|Path(text)| text.parse().ok());
    id.ok_or_else(no_such_message)
}

fn no_such_message() -> ApiError {
    ApiError::not_found("no such message")
}

async fn get_one(State(app): App, id: Id, request: Request) -> Result<Response> {
    let (parts, _) = request.into_parts();
    let consistency = Consistency::of_uri(&parts.uri)?;
    let reading = app.reader(&parts.headers, consistency).await?;
    reading.caller.require(Permission::Read)?;
    let agent = reading.caller.agent(&parts.headers)?;
    let (team, id) = (reading.caller.team, message_id(id)?);
    let wall_ms = app.services.wall_time.now_ms();
    let message = reading.read(move |kv| visible(kv, team, &agent, id, wall_ms)).await?;
    let message = message.ok_or_else(no_such_message)?;
    let mut out = Vec::with_capacity(2 * message.len() + 64);
    let mut writer = Writer::new(&mut out);
    writer.raw("success", "true");
    writer.raw("message", &message);
    writer.raw("data", &message);
    writer.end();
    Ok(json_response(StatusCode::OK, out))
}

/// The JSON of the message if `agent` received or sent it and it has not expired. Both see when the receiver of a direct
/// message read it.
fn visible(kv: &dyn Kv, team: TeamId, agent: &AgentId, id: MessageId, wall_ms: u64) -> Result<Option<Vec<u8>>> {
    let Some(message) = query::inbox::message(&kv, team, id)?
        .filter(|message| !query::inbox::has_expired(message.expires_at_ms, wall_ms))
    else {
        return Ok(None);
    };
    let mut out = Vec::with_capacity(1024);
    if let Some(item) = query::inbox::received(&kv, team, agent.as_str(), id)? {
        push_message(
            &mut out,
            &Shown::received(&item.message, agent.as_str(), item.read_at_ms)?,
        );
        return Ok(Some(out));
    }
    if message.from != agent.as_str() {
        return Ok(None);
    }
    // A topic message has many receivers; its receipt says which of them read it.
    let received = match message.to.as_str() {
        "" => None,
        to => query::inbox::received(&kv, team, to, id)?,
    };
    push_message(
        &mut out,
        &Shown::of(&message, received.map_or(0, |item| item.read_at_ms))?,
    );
    Ok(Some(out))
}

/// What a write can show of a message. The write is stored already, so its answer must not be an error: without this part
/// the client still learns that.
fn if_readable<T>(read: Result<Option<T>>) -> Option<T> {
    read.unwrap_or_else(|error| {
        tracing::debug!(
            ?error,
            "reading the message of a stored write failed; it is answered without the message"
        );
        None
    })
}

/// The body of a PATCH.
#[derive(Deserialize)]
#[serde(bound(deserialize = "'de: 'a"))]
struct Mark<'a> {
    read: Option<&'a RawValue>,
}

/// The mark that a PATCH asks for. The SDK sends no body at all.
fn wanted_mark(body: &[u8]) -> Result<bool> {
    if body.trim_ascii().is_empty() {
        return Ok(true);
    }
    // Not `request_fault`: clients may read the details, which name "the request body" here.
    let mark = parse_members::<Mark<'_>>(body)?.map_err(|fault| ApiError::field("the request body", fault))?;
    match mark.read.map(RawValue::get) {
        Some("true") => Ok(true),
        Some("false") => Ok(false),
        _ => Err(ApiError::field("read", "must be true or false")),
    }
}

async fn mark(State(app): App, id: Id, request: Request) -> Result<Response> {
    let (parts, body) = request.into_parts();
    let caller = app.writer(&parts.headers).await?;
    caller.require(Permission::Read)?;
    let agent = caller.agent(&parts.headers)?;
    let body = app.read_small(&caller, &parts.headers, body).await?;
    let read = wanted_mark(&body)?;
    let id = message_id(id)?;
    let op = MarkRead {
        agent: agent.as_str().to_owned(),
        message_id: id.to_bytes(),
        read,
    };
    let done = app.propose(&caller, &body, op).await;
    done.map_err(|error| {
        if error.status == StatusCode::NOT_FOUND {
            no_such_message()
        } else {
            error
        }
    })?;
    let mut out = Vec::with_capacity(1024);
    let mut writer = Writer::new(&mut out);
    writer.raw("success", "true");
    let team = caller.team;
    let shown = match app.services.replica.reader.linearizable().await {
        Ok(state) => {
            let wall_ms = app.services.wall_time.now_ms();
            let shown = state.read(Share::Team(team), move |kv| visible(kv, team, &agent, id, wall_ms));
            if_readable(shown.await)
        }
        Err(_) => None,
    };
    writer.raw("data", shown.as_deref().unwrap_or(b"null"));
    writer.end();
    Ok(json_response(StatusCode::OK, out))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use agentpost_proto::command::BodyKind;
    use agentpost_proto::record;
    use agentpost_raft_store::core::keys::{self, ReadState};
    use agentpost_raft_store::core::kv::Memory;
    use prost::Message as _;

    use super::*;

    #[test]
    fn an_expired_message_is_shown_to_nobody() {
        let (team, id) = (TeamId([1; 16]), MessageId::from_slice(&[7; 16]).unwrap());
        let message = record::Message {
            id: id.to_bytes(),
            seq: 1,
            from: "alice".to_owned(),
            to: "bob".to_owned(),
            body: "{}".into(),
            body_kind: BodyKind::Object as i32,
            expires_at_ms: 5_000,
            ..Default::default()
        };
        let entry = record::InboxEntry {
            message_seq: 1,
            ..Default::default()
        };
        let mut kv = Memory::default();
        kv.write(vec![
            (keys::message(team, 1), Some(message.encode_to_vec().into())),
            (keys::message_id(team, id), Some(keys::number(1))),
            (
                keys::inbox_entry(ReadState::Unread, team, "bob", 1),
                Some(entry.encode_to_vec().into()),
            ),
        ]);
        for agent in ["alice", "bob"] {
            let agent: AgentId = agent.parse().unwrap();
            let shown = |wall_ms| visible(&kv, team, &agent, id, wall_ms).unwrap().is_some();
            assert_eq!((shown(4_999), shown(5_000)), (true, false), "{agent}");
        }
    }

    #[test]
    fn a_mark_is_a_plain_boolean_or_nothing() {
        for (body, read) in [
            ("", true),
            (" \n", true),
            (r#"{"read":true}"#, true),
            (r#"{"x":1, "read": false }"#, false),
        ] {
            assert_eq!(wanted_mark(body.as_bytes()).unwrap(), read, "{body}");
        }
        for bad in [
            "{}",
            "[]",
            "[true]",
            "true",
            r#"{"read":"true"}"#,
            r#"{"read":null}"#,
            r#"{"read":true,"read":true}"#,
            "{",
            "{\"read\":1}",
        ] {
            assert_eq!(wanted_mark(bad.as_bytes()).unwrap_err().status, 400, "{bad}");
        }
    }
}
