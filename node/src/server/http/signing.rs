//! A team's signing keys: `/v2/keys` for the team, where the QStash clients look for them, and
//! `/admin/v1/teams/{id}/signing-keys` for operators.

use std::sync::Arc;

use agentpost_proto::api::abbababa::SigningKeys;
use agentpost_proto::command::{Permission, RotateSigningKeys};
use agentpost_proto::id::TeamId;
use agentpost_raft_store::core::kv::Lookup;
use agentpost_raft_store::core::query;
use axum::Router;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use axum::routing::{get, post};

use super::admin;
use super::app_state::{App, AppState, Reading};
use super::input::Consistency;
use crate::server::error::{Result, json_of};

pub(super) fn routes() -> Router<Arc<AppState>> {
    Router::new()
        .route("/v2/keys", get(own_keys))
        .route("/v2/keys/rotate", post(rotate_own))
        .route("/admin/v1/teams/{id}/signing-keys", get(keys_of))
        .route("/admin/v1/teams/{id}/signing-keys/rotate", post(rotate_of))
}

async fn own_keys(State(app): App, headers: HeaderMap) -> Result<Response> {
    own(&app, &headers, Permission::Read, false).await
}

async fn rotate_own(State(app): App, headers: HeaderMap) -> Result<Response> {
    own(&app, &headers, Permission::Admin, true).await
}

async fn keys_of(State(app): App, id: admin::Id, headers: HeaderMap) -> Result<Response> {
    of(&app, id, &headers, false).await
}

async fn rotate_of(State(app): App, id: admin::Id, headers: HeaderMap) -> Result<Response> {
    of(&app, id, &headers, true).await
}

async fn own(app: &AppState, headers: &HeaderMap, needed: Permission, rotate: bool) -> Result<Response> {
    let reading = app.reader(headers, Consistency::Linearizable).await?;
    reading.caller.require(needed)?;
    let team = reading.caller.team;
    shown(app, &reading, team, rotate).await
}

async fn of(app: &AppState, id: admin::Id, headers: &HeaderMap, rotate: bool) -> Result<Response> {
    let reading = admin::operator_reading(app, headers, Consistency::Linearizable).await?;
    shown(app, &reading, admin::team_id(id)?, rotate).await
}

/// The current pair, or the pair after a rotation. A rotation names the pair that it replaces, so of two at a time only
/// one happens: after two, receivers that still have the first pair would refuse deliveries.
async fn shown(app: &AppState, reading: &Reading, team: TeamId, rotate: bool) -> Result<Response> {
    let mut generation = generation(&reading.state, team)?;
    if rotate {
        let op = RotateSigningKeys {
            team_id: team.to_bytes(),
            from_generation: generation,
        };
        let permit = app.admit_bodiless(&reading.caller)?;
        generation = app.propose(&reading.caller, &permit, op).await?.generation;
    }
    let secrets = &app.services.secrets;
    json_of(&SigningKeys {
        current: secrets.signing_key(team, generation).into(),
        next: secrets.signing_key(team, generation + 1).into(),
    })
}

fn generation(kv: &impl Lookup, team: TeamId) -> Result<u64> {
    let team = query::team::by_id(kv, team)?.ok_or_else(admin::no_such_team)?;
    Ok(team.signing_generation)
}
