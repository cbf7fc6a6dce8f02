//! The directory of a team's agents: `GET` and `POST /api/v1/agents`, on the Kite face.
//!
//! The list contains agents that were registered (creating a key bound to an agent registers it) and agents that
//! received mail. `system` is never listed: it cannot be registered and has no inbox. Each entry carries the number of
//! sessions that listen to the agent now, collected from all nodes; that number is not replicated state and only a
//! hint.

use std::sync::Arc;

use agentpost_proto::api::kite;
use agentpost_proto::command::{Permission, RegisterAgent};
use agentpost_proto::id::AgentId;
use agentpost_proto::limits;
use agentpost_proto::time::rfc3339;
use agentpost_raft_store::core::query::agent::{Listed, agents, registered};
use axum::Router;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::get;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::app_state::{App, AppState};
use super::input::{Consistency, PAGE_DEFAULT, Parameters, parse_members, request_fault};
use super::kite::{named_agent, own_team, required};
use crate::server::error::{ApiError, Result, json_of};
use crate::server::keys;

/// The body of a registration.
#[derive(Deserialize)]
#[serde(bound(deserialize = "'de: 'a"))]
struct Item<'a> {
    id: Option<&'a RawValue>,
    name: Option<&'a RawValue>,
}

/// The route under both mounts.
pub(super) fn routes() -> Router<Arc<AppState>> {
    ["/api/v1", "/v1"].iter().fold(Router::new(), |router, mount| {
        router.route(&format!("{mount}/agents"), get(list).post(register))
    })
}

/// A page of the directory.
struct Wanted {
    after: String,
    limit: usize,
}

impl Wanted {
    fn of(parameters: &Parameters) -> Result<Self> {
        let after = parameters.get("after")?;
        if after.is_some_and(|after| after.parse::<AgentId>().is_err()) {
            return Err(ApiError::field("after", "is not an agent id"));
        }
        let limit = parameters.number("limit", 1, limits::PAGE_MAX as u64)?;
        Ok(Wanted {
            after: after.unwrap_or_default().to_owned(),
            limit: limit.unwrap_or(PAGE_DEFAULT as u64) as usize,
        })
    }
}

async fn list(State(app): App, request: Request) -> Result<Response> {
    let (parts, _) = request.into_parts();
    let parameters = Parameters::of(&parts.uri)?;
    let consistency = Consistency::of(&parameters);
    let wanted = Wanted::of(&parameters);
    // Authorisation errors come before errors in the parameters.
    let freshness = *consistency.as_ref().unwrap_or(&Consistency::Local);
    let reading = app.reader(&parts.headers, freshness).await?;
    own_team(&reading.caller, &parameters)?;
    reading.caller.require(Permission::Read)?;
    consistency?;
    let Wanted { after, limit } = wanted?;
    let team = reading.caller.team;
    // One entry more than the page shows whether there is a next page.
    let read = reading.read(move |kv| Ok(agents(&kv, team, &after, limit + 1)?));
    let mut listed = read.await?;
    // The state is released before the other nodes are asked: a held state cannot be replaced.
    drop(reading);
    let more = listed.len() > limit;
    listed.truncate(limit);
    let next = listed.last().filter(|_| more).map(|last| last.id.clone());
    let ids: Vec<String> = listed.iter().map(|agent| agent.id.clone()).collect();
    let sessions = app.http.cluster.sessions(team, &ids).await;
    json_of(&kite::Agents {
        agents: listed.into_iter().zip(sessions.open).map(shown).collect(),
        next,
        unreachable_nodes: sessions.unreachable,
    })
}

async fn register(State(app): App, request: Request) -> Result<Response> {
    let (parts, body) = request.into_parts();
    let caller = app.writer(&parts.headers).await?;
    own_team(&caller, &Parameters::of(&parts.uri)?)?;
    caller.require(Permission::Write)?;
    let body = app.read_small(&caller, &parts.headers, body).await?;
    let item: Item<'_> = parse_members(&body)?.map_err(request_fault)?;
    let op = item.to_operation()?;
    let id: AgentId = op.agent.parse().map_err(ApiError::internal)?;
    caller.may_act_as(&id)?;
    app.propose(&caller, &body, op).await?;
    // The registration is stored. If this read finds no quorum, the caller must not hear that nothing was changed.
    let state = app.services.replica.reader.linearizable().await;
    let state = state.map_err(|_| ApiError::outcome_unknown())?;
    let registered = registered(&state, caller.team, id.as_str())?;
    drop(state);
    let ids = [String::from(id)];
    let sessions = app.http.cluster.sessions(caller.team, &ids).await;
    let [id] = ids;
    let listed = Listed { id, registered };
    json_of(&shown((listed, sessions.open.first().copied().unwrap_or(0))))
}

impl Item<'_> {
    fn to_operation(&self) -> Result<RegisterAgent> {
        let agent = named_agent("id", self.id)?;
        let name = self.name.map(|raw| required("name", Some(raw))).transpose()?;
        if let Some(name) = &name {
            keys::display_name(name)?;
        }
        Ok(RegisterAgent {
            agent: agent.into(),
            name: name.unwrap_or_default(),
        })
    }
}

fn shown((listed, sessions): (Listed, u64)) -> kite::Agent {
    let Listed { id, registered } = listed;
    kite::Agent {
        id,
        registered: registered.is_some(),
        registered_at: registered.as_ref().map(|row| rfc3339(row.created_at_ms)),
        name: registered.map(|row| row.name).filter(|name| !name.is_empty()),
        sessions,
    }
}
