//! Changes of the membership. No later step checks the key again: the leader trusts the node that was asked, because
//! that node holds the cluster secret.

use std::sync::Arc;

use agentpost_proto::api::admin;
use agentpost_raft_store::disk::types::Member;
use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::HeaderMap;
use axum::response::Response;
use axum::routing::{delete, post};

use super::{Id, operator_reading};
use crate::server::error::{ApiError, Result, json_of};
use crate::server::http::app_state::{App, AppState};
use crate::server::http::input::{Consistency, parse};
use crate::shard::members::{Change, ChangeError};

/// The routes. Removing a member may take as long as a hand-over.
pub(in crate::server::http) const MEMBERS: &str = "/admin/v1/cluster/members";

const UNKNOWN: &str = "outcome unknown: the members may or may not be changed; `agentpost cluster status` shows them";

pub(super) fn routes() -> Router<Arc<AppState>> {
    Router::new()
        .route(MEMBERS, post(add))
        .route("/admin/v1/cluster/members/{id}", delete(remove))
        .route("/admin/v1/cluster/members/{id}/promote", post(promote))
}

async fn add(State(app): App, request: Request) -> Result<Response> {
    let (parts, body) = request.into_parts();
    let reading = operator_reading(&app, &parts.headers, Consistency::Linearizable).await?;
    let body = app.read_small(&reading.caller, &parts.headers, body).await?;
    drop(reading);
    let wanted: admin::AddMember = parse(&body)?;
    let member = Member {
        peer_addr: wanted.peer_addr,
        url: wanted.url,
    };
    let added = Change::Add { id: wanted.id, member };
    json_of(&change(&app, &parts.headers, Ok(added)).await?)
}

async fn promote(State(app): App, id: Id, headers: HeaderMap) -> Result<Response> {
    json_of(&change(&app, &headers, number(id).map(Change::Promote)).await?)
}

async fn remove(State(app): App, id: Id, headers: HeaderMap) -> Result<Response> {
    change(&app, &headers, number(id).map(Change::Remove)).await?;
    json_of(&admin::Ok { success: true })
}

fn number(id: Id) -> Result<u64> {
    let number = id.ok().and_then(|Path(text)| text.parse().ok());
    number.ok_or_else(|| ApiError::not_found("no such member"))
}

async fn change(app: &AppState, headers: &HeaderMap, wanted: Result<Change>) -> Result<admin::Member> {
    operator_reading(app, headers, Consistency::Linearizable).await?;
    let changed = app.http.cluster.change_members(wanted?).await;
    let (id, member) = changed.map_err(|error| match error {
        ChangeError::Invalid(why) => ApiError::invalid(why),
        ChangeError::NotFound(why) => ApiError::not_found(why),
        ChangeError::Conflict(why) => ApiError::conflict(why),
        ChangeError::NotReady(why) => ApiError::unavailable(format!("the members were not changed: {why}")),
        ChangeError::OutcomeUnknown(_) => ApiError::outcome_unknown().told_when_unknown(UNKNOWN),
    })?;
    Ok(admin::Member {
        id,
        peer_addr: member.peer_addr,
        url: member.url,
    })
}
