//! The operator API, `/admin/v1`: teams, keys, the cluster, deliveries. Only for admin keys of the reserved team.

mod deliveries;

use std::sync::Arc;

use agentpost_proto::api::admin::{self, LimitsPatch};
use agentpost_proto::command::{
    CreateKey, CreateTeam, Permission, RevokeKey, TeamLimits, UpdateTeam, operation, reply,
};
use agentpost_proto::id::{AgentId, KeyId, TeamId};
use agentpost_proto::time::{parse_rfc3339, rfc3339};
use agentpost_proto::{limits, record};
use agentpost_raft_store::query;
use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::{delete, get, patch, post};
use serde::Deserialize;

use super::auth::Caller;
use super::error::{ApiError, Result};
use super::{Consistency, Door, Doors, Reading, answer, body, json_of, parse};
use crate::metrics::Face;
use crate::node::TransferError;
use crate::secrets::NewKey;

/// The one request that may take longer than others.
pub(super) const TRANSFER: &str = "/admin/v1/cluster/transfer";

pub(super) type Id = Result<Path<String>, PathRejection>;

/// The routes.
pub(super) fn routes() -> Router<Arc<Doors>> {
    Router::new()
        .route("/admin/v1/teams", post(create_team).get(list_teams))
        .route("/admin/v1/teams/{id}", patch(update_team))
        .route("/admin/v1/teams/{id}/keys", post(create_key).get(list_keys))
        .route("/admin/v1/keys/{id}", delete(revoke_key))
        .route("/admin/v1/cluster", get(cluster))
        .route(TRANSFER, post(transfer))
        .route("/admin/v1/cluster/snapshot", post(snapshot))
        .merge(deliveries::routes())
}

async fn create_team(State(doors): Door, request: Request) -> Response {
    answer(Face::Admin, teams_post(&doors, request).await)
}

async fn list_teams(State(doors): Door, headers: HeaderMap) -> Response {
    answer(Face::Admin, teams_get(&doors, &headers).await)
}

async fn update_team(State(doors): Door, id: Id, request: Request) -> Response {
    answer(Face::Admin, team_patch(&doors, id, request).await)
}

async fn create_key(State(doors): Door, id: Id, request: Request) -> Response {
    answer(Face::Admin, keys_post(&doors, id, request).await)
}

async fn list_keys(State(doors): Door, id: Id, headers: HeaderMap) -> Response {
    answer(Face::Admin, keys_get(&doors, id, &headers).await)
}

async fn revoke_key(State(doors): Door, id: Id, headers: HeaderMap) -> Response {
    answer(Face::Admin, key_delete(&doors, id, &headers).await)
}

async fn cluster(State(doors): Door, headers: HeaderMap) -> Response {
    answer(Face::Admin, cluster_get(&doors, &headers).await)
}

async fn transfer(State(doors): Door, request: Request) -> Response {
    answer(Face::Admin, transfer_post(&doors, request).await)
}

async fn snapshot(State(doors): Door, headers: HeaderMap) -> Response {
    answer(Face::Admin, snapshot_post(&doors, &headers).await)
}

fn operator(caller: &Caller) -> Result<()> {
    if caller.team != TeamId::SYSTEM {
        return Err(ApiError::forbidden("this API key does not belong to an operator"));
    }
    caller.require(Permission::Admin)
}

async fn operator_body<T: for<'de> Deserialize<'de>>(doors: &Doors, request: Request) -> Result<(Arc<Caller>, T)> {
    let (parts, body) = request.into_parts();
    let caller = doors.writer(&parts.headers).await?;
    operator(&caller)?;
    let body = body::read(&parts.headers, body, limits::SMALL_REQUEST_BYTES_MAX).await?;
    Ok((caller, parse(&body)?))
}

pub(super) async fn operator_reading(doors: &Doors, headers: &HeaderMap, consistency: Consistency) -> Result<Reading> {
    let reading = doors.reader(headers, consistency).await?;
    operator(&reading.caller)?;
    Ok(reading)
}

pub(super) fn team_id(id: Id) -> Result<TeamId> {
    id.ok()
        .and_then(|Path(text)| text.parse().ok())
        .ok_or_else(no_such_team)
}

pub(super) fn no_such_team() -> ApiError {
    ApiError::not_found("no such team")
}

fn unexpected(what: &str, reply: &reply::Reply) -> ApiError {
    ApiError::internal(format!("{what} was answered {reply:?}"))
}

fn display_name(name: &str) -> Result<()> {
    let length = name.chars().count();
    if length == 0 || length > limits::DISPLAY_NAME_CHARS_MAX || name.chars().any(char::is_control) {
        return Err(ApiError::field("name", "must have 1 to 128 printable characters"));
    }
    Ok(())
}

async fn teams_post(doors: &Doors, request: Request) -> Result<Response> {
    let (caller, wanted): (_, admin::CreateTeam) = operator_body(doors, request).await?;
    display_name(&wanted.name)?;
    let limits = new_limits(&wanted.limits.unwrap_or_default());
    let id = TeamId(doors.services.ids.random());
    let op = CreateTeam {
        team_id: id.to_bytes(),
        name: wanted.name.clone(),
        limits: Some(limits),
    };
    match doors.propose(&caller, operation::Op::CreateTeam(op)).await? {
        reply::Reply::Team(_) => json_of(&admin::Team {
            id: id.to_string(),
            name: wanted.name,
            limits: shown_limits(&limits),
            strict_recipients: false,
        }),
        other => Err(unexpected("create team", &other)),
    }
}

/// The limits of a new team: what is not named is the plan's.
fn new_limits(patch: &LimitsPatch) -> TeamLimits {
    TeamLimits {
        daily_sends: patch.daily_sends.unwrap_or(limits::DAILY_SENDS),
        daily_reads: patch.daily_reads.unwrap_or(limits::DAILY_READS),
        daily_webhook_registrations: patch
            .daily_webhook_registrations
            .unwrap_or(limits::DAILY_WEBHOOK_REGISTRATIONS),
        monthly_events: patch.monthly_events.unwrap_or(limits::MONTHLY_EVENTS),
        overage_price_atomic: patch.overage_price_atomic.flatten(),
    }
}

fn shown_limits(limits: &TeamLimits) -> admin::Limits {
    admin::Limits {
        daily_sends: limits.daily_sends,
        daily_reads: limits.daily_reads,
        daily_webhook_registrations: limits.daily_webhook_registrations,
        monthly_events: limits.monthly_events,
        overage_price_atomic: limits.overage_price_atomic,
    }
}

fn shown_team(team: record::Team) -> Result<admin::Team> {
    Ok(admin::Team {
        id: TeamId::from_slice(&team.id).map_err(ApiError::internal)?.to_string(),
        name: team.name,
        limits: shown_limits(&team.limits.unwrap_or_else(|| new_limits(&LimitsPatch::default()))),
        strict_recipients: team.strict_recipients,
    })
}

async fn teams_get(doors: &Doors, headers: &HeaderMap) -> Result<Response> {
    let reading = operator_reading(doors, headers, Consistency::Linearizable).await?;
    let teams = query::teams(&*reading.state)?
        .into_iter()
        .map(shown_team)
        .collect::<Result<_>>()?;
    json_of(&admin::Teams { teams })
}

async fn team_patch(doors: &Doors, id: Id, request: Request) -> Result<Response> {
    let (caller, wanted): (_, admin::UpdateTeam) = operator_body(doors, request).await?;
    let id = team_id(id)?;
    let limits = wanted.limits.unwrap_or_default();
    let op = UpdateTeam {
        team_id: id.to_bytes(),
        daily_sends: limits.daily_sends,
        daily_reads: limits.daily_reads,
        daily_webhook_registrations: limits.daily_webhook_registrations,
        monthly_events: limits.monthly_events,
        overage_price_atomic: limits.overage_price_atomic.flatten(),
        clear_overage_price: limits.overage_price_atomic == Some(None),
        strict_recipients: wanted.strict_recipients,
    };
    match doors.propose(&caller, operation::Op::UpdateTeam(op)).await? {
        reply::Reply::Team(_) => {}
        other => return Err(unexpected("update team", &other)),
    }
    let state = doors.services.reader.linearizable().await?;
    json_of(&shown_team(query::team(&*state, id)?.ok_or_else(no_such_team)?)?)
}

async fn keys_post(doors: &Doors, id: Id, request: Request) -> Result<Response> {
    let (caller, wanted): (_, admin::CreateKey) = operator_body(doors, request).await?;
    let team = team_id(id)?;
    let services = &doors.services;
    let agent = bound_agent(wanted.agent_id)?;
    let new = if agent.is_empty() {
        NewKey::team(&services.ids)
    } else {
        NewKey::agent(&services.ids)
    };
    display_name(&wanted.name)?;
    let op = CreateKey {
        team_id: team.to_bytes(),
        key_id: new.id.to_bytes(),
        key_hash: services.secrets.key_hash(&new.api_key).to_vec().into(),
        key_prefix: new.prefix.clone(),
        name: wanted.name,
        permissions: permissions(&wanted.permissions)?,
        scopes: scopes(wanted.scopes)?,
        agent_id: agent,
        expires_at_ms: expiry(wanted.expires_at.as_deref(), services.wall_time.now_ms())?,
    };
    match doors.propose(&caller, operation::Op::CreateKey(op)).await? {
        reply::Reply::Key(_) => json_of(&admin::CreatedKey {
            id: new.id.to_string(),
            key_prefix: new.prefix,
            api_key: new.api_key.into(),
        }),
        other => Err(unexpected("create key", &other)),
    }
}

/// The agent that a new key is bound to; empty for none.
fn bound_agent(agent: Option<String>) -> Result<String> {
    let Some(agent) = agent else { return Ok(String::new()) };
    if agent == AgentId::SYSTEM {
        return Err(ApiError::forbidden("the agent id system is reserved"));
    }
    let agent: AgentId = agent
        .parse()
        .map_err(|e| ApiError::field("agent_id", format!("is invalid: {e}")))?;
    Ok(agent.into())
}

fn permissions(names: &[String]) -> Result<Vec<i32>> {
    let known = |name: &String| match name.as_str() {
        "read" => Ok(Permission::Read as i32),
        "write" => Ok(Permission::Write as i32),
        "admin" => Ok(Permission::Admin as i32),
        _ => Err(ApiError::field("permissions", "can only hold read, write and admin")),
    };
    let mut permissions = names.iter().map(known).collect::<Result<Vec<i32>>>()?;
    permissions.sort_unstable();
    permissions.dedup();
    if permissions.is_empty() {
        return Err(ApiError::field(
            "permissions",
            "must name at least one of read, write and admin",
        ));
    }
    Ok(permissions)
}

fn scopes(scopes: Option<Vec<String>>) -> Result<Vec<String>> {
    let Some(scopes) = scopes else {
        return Ok(vec!["*".to_owned()]);
    };
    if scopes.is_empty() || scopes.len() > limits::SCOPES_MAX {
        return Err(ApiError::field(
            "scopes",
            format!("must have 1 to {} items", limits::SCOPES_MAX),
        ));
    }
    match scopes.iter().find(|scope| !is_scope(scope)) {
        Some(_) => Err(ApiError::field(
            "scopes",
            "can only hold *, source:NAME, type:NAME and agent_to:AGENT",
        )),
        None => Ok(scopes),
    }
}

fn is_scope(scope: &str) -> bool {
    let named = |(kind, value): (&str, &str)| match kind {
        "source" | "type" => !value.is_empty() && !value.chars().any(char::is_control),
        "agent_to" => value.parse::<AgentId>().is_ok(),
        _ => false,
    };
    scope == "*" || (scope.len() <= limits::SCOPE_BYTES_MAX && scope.split_once(':').is_some_and(named))
}

fn expiry(at: Option<&str>, wall_ms: u64) -> Result<u64> {
    let Some(at) = at else { return Ok(0) };
    let at_ms = parse_rfc3339(at).map_err(|e| ApiError::field("expires_at", format!("is invalid: {e}")))?;
    if at_ms <= wall_ms {
        return Err(ApiError::field("expires_at", "lies in the past"));
    }
    Ok(at_ms)
}

async fn keys_get(doors: &Doors, id: Id, headers: &HeaderMap) -> Result<Response> {
    let reading = operator_reading(doors, headers, Consistency::Linearizable).await?;
    let team = team_id(id)?;
    query::team(&*reading.state, team)?.ok_or_else(no_such_team)?;
    let keys = query::keys(&*reading.state, team)?
        .into_iter()
        .map(shown_key)
        .collect::<Result<_>>()?;
    json_of(&admin::Keys { keys })
}

fn shown_key(key: record::Key) -> Result<admin::Key> {
    let permissions = key.permissions().filter_map(|permission| match permission {
        Permission::Read => Some("read".to_owned()),
        Permission::Write => Some("write".to_owned()),
        Permission::Admin => Some("admin".to_owned()),
        Permission::Unspecified => None,
    });
    Ok(admin::Key {
        id: KeyId::from_slice(&key.id).map_err(ApiError::internal)?.to_string(),
        permissions: permissions.collect(),
        name: key.name,
        key_prefix: key.prefix,
        scopes: key.scopes,
        agent_id: Some(key.agent_id).filter(|agent| !agent.is_empty()),
        expires_at: (key.expires_at_ms != 0).then(|| rfc3339(key.expires_at_ms)),
        revoked: key.revoked_at_ms != 0,
        created_at: rfc3339(key.created_at_ms),
    })
}

async fn key_delete(doors: &Doors, id: Id, headers: &HeaderMap) -> Result<Response> {
    let caller = doors.writer(headers).await?;
    operator(&caller)?;
    let id: Option<KeyId> = id.ok().and_then(|Path(text)| text.parse().ok());
    let id = id.ok_or_else(|| ApiError::not_found("no such key"))?;
    match doors
        .propose(&caller, operation::Op::RevokeKey(RevokeKey { key_id: id.to_bytes() }))
        .await?
    {
        reply::Reply::Done(_) => json_of(&admin::Ok { success: true }),
        other => Err(unexpected("revoke key", &other)),
    }
}

/// Works without a quorum: that is when an operator needs it most.
async fn cluster_get(doors: &Doors, headers: &HeaderMap) -> Result<Response> {
    operator_reading(doors, headers, Consistency::Local).await?;
    json_of(&doors.services.cluster.status().await)
}

async fn transfer_post(doors: &Doors, request: Request) -> Result<Response> {
    let (parts, body) = request.into_parts();
    // Nothing checks this key again behind us.
    operator_reading(doors, &parts.headers, Consistency::Linearizable).await?;
    let body = body::read(&parts.headers, body, limits::SMALL_REQUEST_BYTES_MAX).await?;
    let wanted: admin::Transfer = parse(&body)?;
    doors
        .services
        .cluster
        .transfer(wanted.node)
        .await
        .map_err(|error| match error {
            TransferError::Invalid(why) => ApiError::field("node", why),
            TransferError::NotCaughtUp(why) => ApiError::new(StatusCode::CONFLICT, "conflict", why),
            TransferError::NotReady(_) => ApiError::unavailable("the cluster has no leader right now"),
        })?;
    json_of(&admin::Ok { success: true })
}

async fn snapshot_post(doors: &Doors, headers: &HeaderMap) -> Result<Response> {
    operator_reading(doors, headers, Consistency::Local).await?;
    doors.services.cluster.snapshot().await.map_err(ApiError::internal)?;
    json_of(&admin::Ok { success: true })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn owned(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn permissions_are_known_names() {
        assert_eq!(permissions(&owned(&["write", "read", "write"])).unwrap(), [1, 2]);
        for bad in [&[][..], &["*"], &["read", "Write"], &[""]] {
            assert_eq!(permissions(&owned(bad)).unwrap_err().status, 400, "{bad:?}");
        }
    }

    #[test]
    fn scopes_have_known_forms() {
        assert_eq!(scopes(None).unwrap(), ["*"]);
        assert!(scopes(Some(owned(&["*", "source:github", "type:com.x", "agent_to:a:b"]))).is_ok());
        let long = format!("type:{}", "x".repeat(limits::SCOPE_BYTES_MAX));
        for bad in [
            &[][..],
            &[""],
            &["**"],
            &["source:"],
            &["agent_to:a b"],
            &["from:x"],
            &["agent_to"],
            &[&long],
        ] {
            assert_eq!(scopes(Some(owned(bad))).unwrap_err().status, 400, "{bad:?}");
        }
    }

    #[test]
    fn an_expiry_lies_ahead() {
        assert_eq!(expiry(None, 5).unwrap(), 0);
        assert_eq!(expiry(Some("1970-01-01T00:00:00.006Z"), 5).unwrap(), 6);
        for bad in ["1970-01-01T00:00:00.005Z", "tomorrow", ""] {
            assert_eq!(expiry(Some(bad), 5).unwrap_err().status, 400, "{bad}");
        }
    }

    #[test]
    fn a_patch_tells_null_from_absent() {
        let patch: admin::UpdateTeam = parse(br#"{"limits":{"overage_price_atomic":null}}"#).unwrap();
        assert_eq!(patch.limits.unwrap().overage_price_atomic, Some(None));
        for bad in [
            &br#"["x"]"#[..],
            br#"{"limits":{"daily_sends":-1}}"#,
            br#"{"limit":{}}"#,
            b"",
            b"\xff",
        ] {
            assert_eq!(parse::<admin::UpdateTeam>(bad).unwrap_err().status, 400);
        }
    }
}
