//! `/deliveries`: the outcomes of webhook calls. The receiving agent and an administrator of the team see all of a
//! delivery and may redrive it; the sender sees its states; for any other caller it does not exist.

use agentpost_proto::api::abbababa::{DeliveriesResponse, DeliveryResponse, RedriveResponse};
use agentpost_proto::command::{CancelDelivery, Permission, Redrive};
use agentpost_proto::id::AgentId;
use agentpost_proto::record::Delivery;
use agentpost_raft_store::core::query;
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::response::Response;

use super::Id;
use crate::server::auth::Caller;
use crate::server::error::{Result, json_of};
use crate::server::http::app_state::{App, AppState};
use crate::server::http::deliveries::{Sight, Wanted, delivery_id, detail, id_text, page, row, unknown};
use crate::server::http::input::{Consistency, Parameters};

/// A caller who views deliveries of their team.
pub struct Viewer {
    /// `None` views all deliveries of the team.
    pub agent: Option<AgentId>,
    admin: bool,
}

impl Viewer {
    /// The agent that the caller acts as, or an administrator without one. A key that is bound to an agent is only that
    /// agent's.
    pub fn of(caller: &Caller, headers: &HeaderMap) -> Result<Self> {
        let admin = caller.bound_agent.is_none() && caller.permission >= Permission::Admin;
        let agent = match admin && !headers.contains_key("x-agent-id") {
            true => None,
            false => Some(caller.agent(headers)?),
        };
        Ok(Viewer { agent, admin })
    }

    /// The agent's name in an operation; empty for an administrator.
    fn name(self) -> String {
        self.agent.map(String::from).unwrap_or_default()
    }

    /// Whether the caller acts as the agent of that name.
    pub fn is(&self, agent: &str) -> bool {
        self.agent.as_ref().is_some_and(|own| own.as_str() == agent)
    }

    /// Whether the caller may view all deliveries of the team.
    pub fn is_admin(&self) -> bool {
        self.admin
    }

    /// How much of a delivery the caller sees; `None` if nothing.
    pub fn sight(&self, delivery: &Delivery) -> Option<Sight> {
        if self.admin || self.is(&delivery.agent) {
            Some(Sight::Everything)
        } else {
            self.is(&delivery.from).then_some(Sight::States)
        }
    }
}

/// A page of deliveries to and from the caller's agent, or of the team for an administrator without one.
pub async fn list(State(app): App, request: Request) -> Result<Response> {
    let (parts, _) = request.into_parts();
    let parameters = Parameters::of(&parts.uri)?;
    let consistency = Consistency::of(&parameters);
    // Authorisation errors come before errors in the parameters.
    let reading = app
        .reader(&parts.headers, *consistency.as_ref().unwrap_or(&Consistency::Local))
        .await?;
    reading.caller.require(Permission::Read)?;
    let viewer = Viewer::of(&reading.caller, &parts.headers)?;
    consistency?;
    let wanted = Wanted::of(&parameters)?;
    let (team, agent) = (reading.caller.team, viewer.agent.clone());
    let read = reading.read(move |kv| {
        let page = page(&app, kv, team, agent.as_ref().map(AgentId::as_str), &wanted)?;
        Ok((page, query::applied(kv)?))
    });
    let ((page, cursor), applied) = read.await?;
    let rows = page.deliveries.iter().filter_map(|delivery| {
        let sight = viewer.sight(delivery)?;
        Some(row(delivery, sight, &applied))
    });
    let deliveries = rows.collect::<Result<Vec<_>>>()?;
    json_of(&DeliveriesResponse {
        success: true,
        data: Some(deliveries.clone()),
        deliveries,
        cursor,
    })
}

/// One delivery with its attempts.
pub async fn get(State(app): App, id: Id, request: Request) -> Result<Response> {
    let (parts, _) = request.into_parts();
    let consistency = Consistency::of_uri(&parts.uri)?;
    let reading = app.reader(&parts.headers, consistency).await?;
    reading.caller.require(Permission::Read)?;
    let viewer = Viewer::of(&reading.caller, &parts.headers)?;
    let kv = &reading.state;
    let delivery = query::delivery::by_id(kv, reading.caller.team, delivery_id(id)?)?.ok_or_else(unknown)?;
    let sight = viewer.sight(&delivery).ok_or_else(unknown)?;
    let delivery = detail(&delivery, sight, &query::applied(kv)?)?;
    json_of(&DeliveryResponse {
        success: true,
        data: Some(delivery.clone()),
        delivery,
    })
}

/// Redrives a dead delivery as a new one.
pub async fn redrive(State(app): App, id: Id, request: Request) -> Result<Response> {
    let (parts, _) = request.into_parts();
    let caller = app.writer(&parts.headers).await?;
    caller.require(Permission::Write)?;
    let op = Redrive {
        agent: Viewer::of(&caller, &parts.headers)?.name(),
        delivery_id: delivery_id(id)?.to_bytes(),
        ..Redrive::default()
    };
    redriven(&app, &caller, op).await
}

/// Proposes a redrive; also for operators.
pub(in crate::server::http) async fn redriven(app: &AppState, caller: &Caller, op: Redrive) -> Result<Response> {
    let reply = app.propose(caller, &app.admit_bodiless(caller)?, op).await?;
    json_of(&RedriveResponse {
        success: true,
        delivery_id: id_text(&reply.delivery_id)?.unwrap_or_default(),
    })
}

/// Cancels an open delivery.
pub async fn cancel(State(app): App, id: Id, request: Request) -> Result<Response> {
    let (parts, _) = request.into_parts();
    let caller = app.writer(&parts.headers).await?;
    caller.require(Permission::Write)?;
    let op = CancelDelivery {
        agent: Viewer::of(&caller, &parts.headers)?.name(),
        delivery_id: delivery_id(id)?.to_bytes(),
        ..CancelDelivery::default()
    };
    app.propose(&caller, &app.admit_bodiless(&caller)?, op).await?;
    super::webhook::done("the delivery is cancelled")
}
