//! The directory of a team's agents.

use agentpost_proto::command::{ErrorCode, Permission, RegisterAgent};
use agentpost_proto::id::{AgentId, TeamId};
use agentpost_proto::record::{Agent, TeamHead};

use super::check::{parsed, validate_display_name};
use super::principal::Caller;
use super::{Context, Stop, reject};
use crate::core::keys;
use crate::core::view::View;

/// Upper bound on the agents in the directory of a team.
const AGENTS_MAX: u32 = 20_000;

/// Registers an agent in the directory, or changes its name.
pub fn register(view: &mut View<'_>, context: &Context<'_>, op: &RegisterAgent) -> Result<(), Stop> {
    let caller = Caller::with(view, context, Permission::Write)?;
    caller.acts_as(&op.agent)?;
    if !op.name.is_empty() {
        validate_display_name(&op.name)?;
    }
    enter(view, context, caller.team, &op.agent, Some(&op.name))
}

/// Adds an agent to the directory if it is not there. `Some(name)` sets its name; `None` keeps the one that it has.
pub(super) fn enter(
    view: &mut View<'_>,
    context: &Context<'_>,
    team: TeamId,
    agent: &str,
    name: Option<&str>,
) -> Result<(), Stop> {
    parsed(agent.parse::<AgentId>())?;
    if agent == AgentId::SYSTEM {
        return reject(ErrorCode::Forbidden, "the agent id \"system\" is reserved");
    }
    let key = keys::agent(team, agent);
    if let Some(mut known) = view.load::<Agent>(&key)? {
        if let Some(name) = name.filter(|name| *name != known.name) {
            name.clone_into(&mut known.name);
            view.store(key, &known);
        }
        return Ok(());
    }
    let mut head: TeamHead = view.load(&keys::team_head(team))?.unwrap_or_default();
    if head.agents >= AGENTS_MAX {
        // Forbidden, not "quota exceeded": waiting does not help, as a 429 would promise.
        let message = format!("the team has {AGENTS_MAX} registered agents already");
        return reject(ErrorCode::Forbidden, message);
    }
    head.agents += 1;
    view.store(keys::team_head(team), &head);
    let row = Agent {
        id: agent.to_owned(),
        name: name.unwrap_or_default().to_owned(),
        created_at_ms: context.wall_ms,
    };
    view.store(key, &row);
    Ok(())
}
