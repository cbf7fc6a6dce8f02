//! Who may do what, decided over the key and the resource as they stand in the state.

use agentpost_proto::command::{ErrorCode, Permission};
use agentpost_proto::id::{KeyId, TeamId};
use agentpost_proto::record::Key;

use super::{Context, Stop, reject};
use crate::core::keys;
use crate::core::mutant::{self, Mutant};
use crate::core::query;
use crate::core::view::View;

/// A key that was valid when its entry was applied.
#[derive(Debug)]
pub struct Caller {
    /// The key's team: the only team that the operation touches.
    pub team: TeamId,
    /// The stored key.
    pub key: Key,
}

impl Caller {
    /// The key behind the operation, if it still is one.
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

    /// The key behind the operation, with at least this permission.
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

    /// A key that administers `team`: an admin key of it, or of the system team.
    pub fn administers(view: &View<'_>, context: &Context<'_>, team: TeamId) -> Result<Self, Stop> {
        let caller = Self::with(view, context, Permission::Admin)?;
        if caller.team != team && caller.team != TeamId::SYSTEM && !mutant::on(Mutant::TeamUnchecked) {
            // As for a team that does not exist: an id of another team tells nothing.
            return reject(ErrorCode::NotFound, "no such team");
        }
        Ok(caller)
    }

    /// A key that may make keys of `team`: one that [administers](Self::administers) it and is not narrowed itself.
    pub fn hands_out_keys(view: &View<'_>, context: &Context<'_>, team: TeamId) -> Result<Self, Stop> {
        let caller = Self::administers(view, context, team)?;
        caller.not_narrowed()?;
        Ok(caller)
    }

    /// Refuses a key that is narrowed to an agent or to scopes: a new key could do more than it.
    pub fn not_narrowed(&self) -> Result<(), Stop> {
        if !self.key.agent_id.is_empty() || !self.key.scopes.iter().any(|scope| scope == "*") {
            return reject(
                ErrorCode::Forbidden,
                "an API key that is bound to an agent or to scopes cannot make keys or decide over logins",
            );
        }
        Ok(())
    }

    /// Refuses when the key is bound to another agent.
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

/// Whether a key has `needed`; each permission includes the lower ones.
pub fn permits(key: &Key, needed: Permission) -> bool {
    key.permissions.iter().any(|p| *p >= needed as i32)
}
