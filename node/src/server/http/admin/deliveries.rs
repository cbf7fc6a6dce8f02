//! `/admin/v1/deliveries?team=`: the deliveries of any team, for operators. The JSON is that of the Abba Baba API, with
//! all fields.

use std::sync::Arc;

use agentpost_proto::api::abbababa::{DeliveriesResponse, DeliveryResponse};
use agentpost_proto::command::{CancelDelivery, Redrive};
use agentpost_proto::id::TeamId;
use agentpost_proto::record;
use agentpost_raft_store::core::query;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use axum::routing::{get, post};

use super::{Id, no_such_team, operator_reading};
use crate::server::error::{ApiError, Result, json_of};
use crate::server::http::abbababa::deliveries::redriven;
use crate::server::http::app_state::{App, AppState, Reading};
use crate::server::http::deliveries::{Sight, Wanted, delivery_id, detail, page, row, unknown};
use crate::server::http::input::{Consistency, Parameters};

pub fn routes() -> Router<Arc<AppState>> {
    Router::new()
        .route("/admin/v1/deliveries", get(list))
        .route("/admin/v1/deliveries/{id}", get(show).delete(cancel))
        .route("/admin/v1/deliveries/{id}/redrive", post(redrive))
}

/// Authorises an operator's read of an existing team.
async fn look(app: &AppState, parameters: &Parameters, headers: &HeaderMap) -> Result<(Reading, TeamId)> {
    let reading = operator_reading(app, headers, Consistency::Linearizable).await?;
    let name = parameters
        .get("team")?
        .ok_or_else(|| ApiError::field("team", "is required"))?;
    let team: TeamId = name.parse().map_err(|_| no_such_team())?;
    query::team::by_id(&reading.state, team)?.ok_or_else(no_such_team)?;
    Ok((reading, team))
}

async fn list(State(app): App, uri: Uri, headers: HeaderMap) -> Result<Response> {
    let parameters = Parameters::of(&uri)?;
    let (reading, team) = look(&app, &parameters, &headers).await?;
    let wanted = Wanted::of(&parameters)?;
    let read = reading.read(move |kv| {
        let page = page(&app, kv, team, None, &wanted)?;
        Ok((page, query::applied(kv)?))
    });
    let ((page, cursor), applied) = read.await?;
    let rows = page.deliveries.iter().map(|d| row(d, Sight::Everything, &applied));
    json_of(&DeliveriesResponse {
        success: true,
        deliveries: rows.collect::<Result<_>>()?,
        data: None,
        cursor,
    })
}

async fn find(app: &AppState, id: Id, uri: &Uri, headers: &HeaderMap) -> Result<(Reading, TeamId, record::Delivery)> {
    let (reading, team) = look(app, &Parameters::of(uri)?, headers).await?;
    let delivery = query::delivery::by_id(&reading.state, team, delivery_id(id)?)?.ok_or_else(unknown)?;
    Ok((reading, team, delivery))
}

async fn show(State(app): App, id: Id, uri: Uri, headers: HeaderMap) -> Result<Response> {
    let (reading, _, delivery) = find(&app, id, &uri, &headers).await?;
    json_of(&DeliveryResponse {
        success: true,
        delivery: detail(&delivery, Sight::Everything, &query::applied(&reading.state)?)?,
        data: None,
    })
}

async fn redrive(State(app): App, id: Id, uri: Uri, headers: HeaderMap) -> Result<Response> {
    let (reading, team, delivery) = find(&app, id, &uri, &headers).await?;
    let op = Redrive {
        delivery_id: delivery.id,
        agent: String::new(),
        team_id: team.to_bytes(),
    };
    redriven(&app, &reading.caller, op).await
}

async fn cancel(State(app): App, id: Id, uri: Uri, headers: HeaderMap) -> Result<Response> {
    let (reading, team, delivery) = find(&app, id, &uri, &headers).await?;
    let op = CancelDelivery {
        delivery_id: delivery.id,
        agent: String::new(),
        team_id: team.to_bytes(),
    };
    let permit = app.admit_bodiless(&reading.caller)?;
    app.propose(&reading.caller, &permit, op).await?;
    json_of(&agentpost_proto::api::admin::Ok { success: true })
}
