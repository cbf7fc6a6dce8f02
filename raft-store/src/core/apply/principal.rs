//! Authorization: checks the stored key of a caller against the resource in the state.

use agentpost_proto::command::{ErrorCode, Permission};
use agentpost_proto::id::{KeyId, TeamId};
use agentpost_proto::record::Key;

use super::{Context, Stop, reject};
use crate::core::keys;
use crate::core::mutant::{self, Mutant};
use crate::core::query;
use crate::core::view::View;

/// The caller of an operation: a key that was valid when the entry was applied.
#[derive(Debug)]
pub struct Caller {
    /// The key's team.
    pub team: TeamId,
    /// The stored key.
    pub key: Key,
}

impl Caller {
    /// The caller, if the operation's key is valid.
    pub fn of(view: &View<'_>, context: &Context<'_>) -> Result<Self, Stop> {
        let unknown = || reject(ErrorCode::Unauthenticated, "the API key is not valid");
        let Some(principal) = context.principal else {
            return unknown();
        };
        let (Ok(team), Ok(id)) = (
            TeamId::from_slice(&principal.team_id),
            KeyId::from_slice(&principal.key_id),
        ) else {
            return unknown();
        };
        match view.load::<Key>(&keys::key(team, id))? {
            Some(key) if query::key::is_valid(&key, context.wall_ms) => Ok(Caller { team, key }),
            _ => unknown(),
        }
    }

    /// The caller, if its key has at least this permission.
    pub fn with(view: &View<'_>, context: &Context<'_>, needed: Permission) -> Result<Self, Stop> {
        let caller = Self::of(view, context)?;
        if !permits(&caller.key, needed) {
            return reject(
                ErrorCode::Forbidden,
                format!("the API key lacks the permission {:?}", needed.name()),
            );
        }
        Ok(caller)
    }

    /// The caller, if its key administers `team`: an admin key of that team or of the system team.
    pub fn administers(view: &View<'_>, context: &Context<'_>, team: TeamId) -> Result<Self, Stop> {
        let caller = Self::with(view, context, Permission::Admin)?;
        if caller.team != team && caller.team != TeamId::SYSTEM && !mutant::on(Mutant::TeamUnchecked) {
            // The same answer as for a team that does not exist, so that nobody can probe for the ids of other teams.
            return reject(ErrorCode::NotFound, "no such team");
        }
        Ok(caller)
    }

    /// The caller, if its key may create keys of `team`: it [administers](Self::administers) the team, and is bound
    /// neither to an agent nor to scopes.
    pub fn hands_out_keys(view: &View<'_>, context: &Context<'_>, team: TeamId) -> Result<Self, Stop> {
        let caller = Self::administers(view, context, team)?;
        caller.not_narrowed()?;
        Ok(caller)
    }

    /// Rejects a key that is bound to an agent or to scopes, because a key that it creates could do more than itself.
    pub fn not_narrowed(&self) -> Result<(), Stop> {
        if !self.key.agent_id.is_empty() || !self.key.scopes.iter().any(|scope| scope == "*") {
            return reject(
                ErrorCode::Forbidden,
                "an API key that is bound to an agent or to scopes cannot make keys or decide over logins",
            );
        }
        Ok(())
    }

    /// Rejects a key that is bound to another agent.
    pub fn acts_as(&self, agent: &str) -> Result<(), Stop> {
        if !self.key.agent_id.is_empty() && self.key.agent_id != agent {
            return reject(
                ErrorCode::Forbidden,
                format!("the API key is bound to agent {:?}", self.key.agent_id),
            );
        }
        Ok(())
    }
}

/// Whether a key has the permission `needed`. Each permission includes the lower ones.
pub fn permits(key: &Key, needed: Permission) -> bool {
    key.permissions.iter().any(|p| *p >= needed as i32)
}
