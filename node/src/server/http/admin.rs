//! The operator API, `/admin/v1`: teams, keys, the cluster, deliveries. Only for admin keys of the reserved team.

mod deliveries;
mod members;

use std::sync::Arc;

use agentpost_proto::api::admin::{self, LimitsPatch};
use agentpost_proto::command::{CreateTeam, Permission, TeamLimits, UpdateTeam};
use agentpost_proto::id::TeamId;
use agentpost_proto::{limits, record};
use agentpost_raft_store::core::query;
use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::HeaderMap;
use axum::response::Response;
use axum::routing::{delete, get, patch, post};
use serde::Deserialize;

use super::app_state::{App, AppState, Reading};
use super::body::Charged;
use super::input::{Consistency, parse};
use crate::server::auth::Caller;
use crate::server::error::{ApiError, Result, json_of};
use crate::server::keys;
use crate::shard::this_node::TransferError;

pub(super) use members::MEMBERS;

/// Time limit for slow requests, such as those for members.
pub(super) const TRANSFER: &str = "/admin/v1/cluster/transfer";

pub(super) type Id = Result<Path<String>, PathRejection>;

pub(super) fn routes() -> Router<Arc<AppState>> {
    Router::new()
        .route("/admin/v1/teams", post(create_team).get(list_teams))
        .route("/admin/v1/teams/{id}", patch(update_team))
        .route("/admin/v1/teams/{id}/keys", post(create_key).get(list_keys))
        .route("/admin/v1/keys/{id}", delete(revoke_key))
        .route("/admin/v1/cluster", get(cluster))
        .route(TRANSFER, post(transfer))
        .route("/admin/v1/cluster/snapshot", post(snapshot))
        .merge(deliveries::routes())
        .merge(members::routes())
}

fn operator(caller: &Caller) -> Result<()> {
    if caller.team != TeamId::SYSTEM {
        return Err(ApiError::forbidden("this API key does not belong to an operator"));
    }
    caller.require(Permission::Admin)
}

/// An operator's request: its caller, its parsed body, and the charge for the body.
async fn operator_body<T: for<'de> Deserialize<'de>>(
    app: &AppState,
    request: Request,
) -> Result<(Arc<Caller>, T, Charged)> {
    let (parts, body) = request.into_parts();
    let caller = app.writer(&parts.headers).await?;
    operator(&caller)?;
    let body = app.read_small(&caller, &parts.headers, body).await?;
    Ok((caller, parse(&body)?, body))
}

pub(super) async fn operator_reading(app: &AppState, headers: &HeaderMap, consistency: Consistency) -> Result<Reading> {
    let reading = app.reader(headers, consistency).await?;
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

async fn create_team(State(app): App, request: Request) -> Result<Response> {
    let (caller, wanted, body): (_, admin::CreateTeam, _) = operator_body(&app, request).await?;
    keys::display_name(&wanted.name)?;
    let limits = new_limits(&wanted.limits.unwrap_or_default());
    let id = TeamId(app.services.ids.random());
    let op = CreateTeam {
        team_id: id.to_bytes(),
        name: wanted.name.clone(),
        limits: Some(limits),
    };
    app.propose(&caller, &body, op).await?;
    json_of(&admin::Team {
        id: id.to_string(),
        name: wanted.name,
        limits: shown_limits(&limits),
        strict_recipients: false,
    })
}

/// The limits of a new team; a limit that the request does not name takes the plan's default.
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

async fn list_teams(State(app): App, headers: HeaderMap) -> Result<Response> {
    let reading = operator_reading(&app, &headers, Consistency::Linearizable).await?;
    let teams = reading
        .read(|kv| Ok(query::team::all(&kv)?))
        .await?
        .into_iter()
        .map(shown_team)
        .collect::<Result<_>>()?;
    json_of(&admin::Teams { teams })
}

async fn update_team(State(app): App, id: Id, request: Request) -> Result<Response> {
    let (caller, wanted, body): (_, admin::UpdateTeam, _) = operator_body(&app, request).await?;
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
    app.propose(&caller, &body, op).await?;
    // The change is stored. If this read finds no quorum, the caller must not hear that nothing was changed.
    let state = app.services.replica.reader.linearizable().await;
    let state = state.map_err(|_| ApiError::outcome_unknown())?;
    json_of(&shown_team(query::team::by_id(&state, id)?.ok_or_else(no_such_team)?)?)
}

async fn create_key(State(app): App, id: Id, request: Request) -> Result<Response> {
    let (caller, wanted, body): (_, admin::CreateKey, _) = operator_body(&app, request).await?;
    let team = team_id(id)?;
    json_of(&keys::create(&app.services, &caller, body.as_ref(), team, wanted).await?)
}

async fn list_keys(State(app): App, id: Id, headers: HeaderMap) -> Result<Response> {
    let reading = operator_reading(&app, &headers, Consistency::Linearizable).await?;
    let team = team_id(id)?;
    query::team::by_id(&reading.state, team)?.ok_or_else(no_such_team)?;
    let keys = reading
        .read(move |kv| Ok(query::key::of_team(&kv, team)?))
        .await?
        .into_iter()
        .map(keys::shown)
        .collect::<Result<_>>()?;
    json_of(&admin::Keys { keys })
}

async fn revoke_key(State(app): App, id: Id, headers: HeaderMap) -> Result<Response> {
    let caller = app.writer(&headers).await?;
    operator(&caller)?;
    let id = id.map(|Path(text)| text).unwrap_or_default();
    let permit = app.admit_bodiless(&caller)?;
    keys::revoke(&app.services, &caller, &permit, &id).await?;
    json_of(&admin::Ok { success: true })
}

/// Answers without a quorum, because that is when operators need it most.
async fn cluster(State(app): App, headers: HeaderMap) -> Result<Response> {
    operator_reading(&app, &headers, Consistency::Local).await?;
    json_of(&app.http.cluster.status().await)
}

async fn transfer(State(app): App, request: Request) -> Result<Response> {
    let (parts, body) = request.into_parts();
    // No later step checks this key again.
    let reading = operator_reading(&app, &parts.headers, Consistency::Linearizable).await?;
    let body = app.read_small(&reading.caller, &parts.headers, body).await?;
    drop(reading);
    let wanted: admin::Transfer = parse(&body)?;
    app.http
        .cluster
        .transfer(wanted.node)
        .await
        .map_err(|error| match error {
            TransferError::Invalid(why) => ApiError::field("node", why),
            TransferError::NotCaughtUp(why) => ApiError::conflict(why),
            TransferError::NotReady(_) => ApiError::unavailable("the cluster has no leader right now"),
        })?;
    json_of(&admin::Ok { success: true })
}

async fn snapshot(State(app): App, headers: HeaderMap) -> Result<Response> {
    operator_reading(&app, &headers, Consistency::Local).await?;
    app.http.cluster.snapshot().await.map_err(ApiError::internal)?;
    json_of(&admin::Ok { success: true })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

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
