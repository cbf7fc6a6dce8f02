//! `/messages/webhook`: an agent's webhook, one URL for all its mail.

use agentpost_proto::api::abbababa::{Webhook, WebhookResponse};
use agentpost_proto::command::{DeleteWebhook, Permission, RegisterWebhook, WebhookEvent};
use agentpost_proto::id::{AgentId, TeamId, WebhookId};
use agentpost_proto::record;
use agentpost_proto::time::rfc3339;
use agentpost_raft_store::core::query;
use axum::extract::{Request, State};
use axum::response::Response;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use crate::server::error::{ApiError, Result, json_of};
use crate::server::http::app_state::{App, AppState};
use crate::server::http::input::{Consistency, parse_members, request_fault};
use crate::server::http::ratelimit;
use crate::wire::json;

/// Upper bound on the names in an event list. A longer list would repeat one.
const EVENTS_MAX: usize = 16;

/// The body of a registration.
#[derive(Deserialize)]
#[serde(bound(deserialize = "'de: 'a"))]
struct Wanted<'a> {
    url: Option<&'a RawValue>,
    events: Option<&'a RawValue>,
}

impl Wanted<'_> {
    fn url(&self) -> Result<String> {
        let raw = self.url.ok_or_else(|| ApiError::field("url", "is required"))?;
        let url = json::text(raw.get()).map_err(|fault| ApiError::field("url", fault))?;
        Ok(url.into_owned())
    }

    /// Known events, each once.
    fn events(&self) -> Result<Vec<i32>> {
        let problem = || ApiError::field("events", "must list message.received, message.topic or both");
        let raw = self.events.ok_or_else(problem)?;
        let names: Vec<&RawValue> = serde_json::from_str(raw.get()).map_err(|_| problem())?;
        if names.is_empty() || names.len() > EVENTS_MAX {
            return Err(problem());
        }
        let known = |raw: &RawValue| WebhookEvent::from_name(&json::text(raw.get()).ok()?);
        let mut events = Vec::with_capacity(names.len());
        for name in names {
            events.push(known(name).ok_or_else(problem)? as i32);
        }
        events.sort_unstable();
        events.dedup();
        Ok(events)
    }
}

/// Refuses a URL that deliveries may not call.
pub fn check_url(app: &AppState, field: &str, url: &str) -> Result<()> {
    app.http
        .egress
        .check_url(url)
        .map_err(|problem| ApiError::named(field, problem))
}

/// The answer of an action without a result, in both dialects.
pub fn done(message: &str) -> Result<Response> {
    json_of(&json!({ "success": true, "data": { "message": message } }))
}

/// Registers the webhook of the caller's agent and replaces the previous one.
pub async fn register(State(app): App, request: Request) -> Result<Response> {
    let (parts, body) = request.into_parts();
    let caller = app.writer(&parts.headers).await?;
    caller.require(Permission::Write)?;
    let agent = caller.agent(&parts.headers)?;
    let body = app.read_small(&caller, &parts.headers, body).await?;
    let wanted: Wanted<'_> = parse_members(&body)?.map_err(request_fault)?;
    let (url, events) = (wanted.url()?, wanted.events()?);
    check_url(&app, "url", &url)?;
    let op = RegisterWebhook {
        agent: agent.as_str().to_owned(),
        webhook_id: WebhookId(app.services.ids.random()).to_bytes(),
        url: url.clone(),
        events: events.clone(),
    };
    let reply = app.propose(&caller, &body, op).await?;
    let standing = ratelimit::usage(reply.registrations_used, reply.registrations_limit);
    let row = record::Webhook {
        id: reply.webhook_id,
        url,
        events,
        created_at_ms: reply.created_at_ms,
    };
    let endpoint = record::Endpoint {
        generation: reply.generation,
        ..record::Endpoint::default()
    };
    let answered = answer(Some(shown(&app, caller.team, &agent, row, &endpoint)?))?;
    Ok(ratelimit::with_usage(standing, answered))
}

/// Answers with the webhook of the caller's agent, or null.
pub async fn get(State(app): App, request: Request) -> Result<Response> {
    let (parts, _) = request.into_parts();
    let consistency = Consistency::of_uri(&parts.uri)?;
    let reading = app.reader(&parts.headers, consistency).await?;
    reading.caller.require(Permission::Read)?;
    let (team, agent) = (reading.caller.team, reading.caller.agent(&parts.headers)?);
    let Some(row) = query::topic::webhook(&reading.state, team, agent.as_str())? else {
        return answer(None);
    };
    let endpoint = query::topic::endpoint(&reading.state, team, agent.as_str(), &row.url)?.unwrap_or_default();
    answer(Some(shown(&app, team, &agent, row, &endpoint)?))
}

/// Deletes the webhook of the caller's agent, if there is one.
pub async fn delete(State(app): App, request: Request) -> Result<Response> {
    let (parts, _) = request.into_parts();
    let caller = app.writer(&parts.headers).await?;
    caller.require(Permission::Write)?;
    let agent = caller.agent(&parts.headers)?;
    let permit = app.admit_bodiless(&caller)?;
    let op = DeleteWebhook { agent: agent.into() };
    app.propose(&caller, &permit, op).await?;
    done("the webhook is deleted")
}

fn answer(webhook: Option<Webhook>) -> Result<Response> {
    json_of(&WebhookResponse {
        success: true,
        data: webhook.clone(),
        webhook,
    })
}

fn shown(
    app: &AppState,
    team: TeamId,
    agent: &AgentId,
    row: record::Webhook,
    endpoint: &record::Endpoint,
) -> Result<Webhook> {
    let id = WebhookId::from_slice(&row.id).map_err(ApiError::internal)?;
    Ok(Webhook {
        id: id.to_string(),
        agent_id: agent.as_str().to_owned(),
        events: row.events().map(|event| event.name().to_owned()).collect(),
        url: row.url,
        is_active: !endpoint.disabled,
        disabled: endpoint.disabled,
        created_at: rfc3339(row.created_at_ms),
        secret: Some(app.services.secrets.endpoint_secret(team, endpoint.generation).into()),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn events_are_known_names_in_a_list() {
        let events = |list: &str| {
            let body = format!("{{\"events\":{list}}}");
            parse_members::<Wanted<'_>>(body.as_bytes()).unwrap().unwrap().events()
        };
        assert_eq!(
            events(r#"["message.topic","message.received","message.topic"]"#).unwrap(),
            [1, 2]
        );
        let many = format!("[{}]", vec!["\"message.topic\""; EVENTS_MAX + 1].join(","));
        for bad in [
            "null",
            "[]",
            "{}",
            "\"message.topic\"",
            r#"["message"]"#,
            r#"["message.topic",null]"#,
            "[1]",
            &many,
        ] {
            assert_eq!(events(bad).unwrap_err().fields(), ["events"], "{bad}");
        }
    }
}
