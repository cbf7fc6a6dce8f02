//! Kite's send: `POST /api/v1/agents/messages?team_id=`. The directory of agents is in [`super::agents`], the WebSocket
//! in [`crate::server::ws`].

use std::sync::Arc;

use agentpost_proto::api::kite::{EVENTS_LIMIT_UNLIMITED, SendResponse, Usage};
use agentpost_proto::cloudevent::EVENT_TYPE;
use agentpost_proto::command::{self, BodyKind, Permission, Send, SendReply};
use agentpost_proto::id::{self, AgentId, MessageId};
use agentpost_proto::limits;
use agentpost_proto::time::rfc3339;
use axum::Router;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::post;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::app_state::{App, AppState};
use super::body::MESSAGE_REQUEST_BYTES_MAX;
use super::input::{Parameters, idempotency_key, parse_members, request_fault};
use crate::server::auth::Caller;
use crate::server::error::{ApiError, Result, json_of};
use crate::wire::json;

/// The body of a send.
#[derive(Deserialize)]
#[serde(bound(deserialize = "'de: 'a"))]
struct Item<'a> {
    from: Option<&'a RawValue>,
    to: Option<&'a RawValue>,
    body: Option<&'a RawValue>,
    thread_id: Option<&'a RawValue>,
    reply_to_id: Option<&'a RawValue>,
}

/// The route under both mounts.
pub(super) fn routes() -> Router<Arc<AppState>> {
    Router::new()
        .route("/api/v1/agents/messages", post(send))
        .route("/v1/agents/messages", post(send))
}

async fn send(State(app): App, request: Request) -> Result<Response> {
    let (parts, body) = request.into_parts();
    let caller = app.writer(&parts.headers).await?;
    own_team(&caller, &Parameters::of(&parts.uri)?)?;
    caller.require(Permission::Write)?;
    let key = idempotency_key(&parts.headers)?;
    let body = app
        .read_body(&caller, &parts.headers, body, MESSAGE_REQUEST_BYTES_MAX)
        .await?;
    let item: Item<'_> = parse_members(&body)?.map_err(request_fault)?;
    let send = item.to_send(&caller, app.services.ids.message_id(), key)?;
    let (from, to) = (send.from.clone(), send.to.clone());
    let reply = app.propose(&caller, &body, send).await?;
    json_of(&accepted(from, to, &reply)?)
}

/// Checks that the request names the key's team. Any other team gets the same error, whether it exists or not.
pub(super) fn own_team(caller: &Caller, parameters: &Parameters) -> Result<()> {
    match parameters.get("team_id")? {
        Some(team) if team != caller.team.to_string() => {
            Err(ApiError::forbidden("this API key belongs to another team"))
        }
        _ => Ok(()),
    }
}

impl Item<'_> {
    fn to_send(&self, caller: &Caller, message_id: MessageId, idempotency_key: String) -> Result<Send> {
        let from = named_agent("from", self.from)?;
        caller.may_act_as(&from)?;
        let to = named_agent("to", self.to)?;
        let body = required("body", self.body)?;
        if body.len() > limits::BODY_BYTES_MAX {
            return Err(ApiError::too_large("body", limits::BODY_BYTES_MAX));
        }
        Ok(Send {
            message_id: message_id.to_bytes(),
            face: command::Face::Kite as i32,
            from: from.into(),
            to: to.into(),
            r#type: EVENT_TYPE.to_owned(),
            body_kind: BodyKind::Text as i32,
            body: Bytes::from(body),
            thread_id: opaque("thread_id", self.thread_id)?,
            reply_to_id: opaque("reply_to_id", self.reply_to_id)?,
            expires_at_ms: 0,
            idempotency_key,
            extras: Bytes::new(),
            topic: String::new(),
        })
    }
}

/// A required member, as text.
pub(super) fn required(field: &str, raw: Option<&RawValue>) -> Result<String> {
    let raw = raw.ok_or_else(|| ApiError::field(field, "is required"))?;
    json::text(raw.get())
        .map(String::from)
        .map_err(|fault| ApiError::field(field, fault))
}

/// A required member, as the id of an agent.
pub(super) fn named_agent(field: &str, raw: Option<&RawValue>) -> Result<AgentId> {
    required(field, raw)?
        .parse()
        .map_err(|e| ApiError::field(field, format!("is invalid: {e}")))
}

fn opaque(field: &str, raw: Option<&RawValue>) -> Result<String> {
    if raw.is_none() {
        return Ok(String::new());
    }
    let text = required(field, raw)?;
    id::validate_opaque(field, &text).map_err(|e| ApiError::named(field, e.to_string()))?;
    Ok(text)
}

fn accepted(from: String, to: String, reply: &SendReply) -> Result<SendResponse> {
    let events_limit = match reply.events_limit {
        0 => EVENTS_LIMIT_UNLIMITED,
        limit => limit,
    };
    Ok(SendResponse {
        id: MessageId::from_slice(&reply.message_id)
            .map_err(ApiError::internal)?
            .kite(),
        created_at: rfc3339(reply.created_at_ms),
        from,
        to,
        usage: Usage {
            events_used: reply.events_used,
            events_limit,
            amount_charged_atomic: reply.amount_charged_atomic,
        },
    })
}
