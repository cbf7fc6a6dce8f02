//! Teams and keys. A key's secret never gets here: only its keyed hash does.

use agentpost_proto::command::{
    BootstrapAdmin, CreateKey, CreateTeam, ErrorCode, KeyReply, Permission, RegisterAgent, RevokeKey,
    RotateSigningKeys, SigningKeysReply, TeamLimits, TeamReply, UpdateTeam,
};
use agentpost_proto::id::{AgentId, InvalidId, KeyId, TeamId};
use agentpost_proto::record::{Agent, Key, Team};
use agentpost_proto::{command, limits};
use bytes::Bytes;

use super::principal::Caller;
use super::{Context, Stop, reject};
use crate::effect::Effect;
use crate::keys;
use crate::kv::{Fatal, Kv};
use crate::view::View;

/// The limits of a team for which nobody named any.
pub fn default_limits() -> TeamLimits {
    TeamLimits {
        daily_sends: limits::DAILY_SENDS,
        daily_reads: limits::DAILY_READS,
        daily_webhook_registrations: limits::DAILY_WEBHOOK_REGISTRATIONS,
        monthly_events: limits::MONTHLY_EVENTS,
        overage_price_atomic: None,
    }
}

/// The rules of a team that a valid key belongs to.
pub(super) fn settings(view: &View<'_>, team: TeamId) -> Result<Team, Fatal> {
    view.load(&keys::team(team))?
        .ok_or_else(|| Fatal::Invariant(format!("key of {team} without its team")))
}

/// Its limits.
pub(super) fn limits_of(view: &View<'_>, team: TeamId) -> Result<TeamLimits, Fatal> {
    Ok(settings(view, team)?.limits.unwrap_or_else(default_limits))
}

/// Creates the reserved team and its first key; accepted once in the life of a cluster.
pub fn bootstrap_admin(view: &mut View<'_>, context: &Context<'_>, op: BootstrapAdmin) -> Result<KeyReply, Stop> {
    if context.principal.is_some() {
        return reject(ErrorCode::Forbidden, "only a node can bootstrap the admin key");
    }
    if view.get(&keys::team(TeamId::SYSTEM))?.is_some() {
        return reject(ErrorCode::Conflict, "the cluster has an admin key already");
    }
    let team = Team {
        id: TeamId::SYSTEM.to_bytes(),
        name: "system".to_owned(),
        limits: Some(default_limits()),
        strict_recipients: false,
        created_at_ms: context.wall_ms,
        signing_generation: 0,
    };
    insert_team(view, TeamId::SYSTEM, &team);
    let key = Key {
        id: op.key_id,
        team_id: TeamId::SYSTEM.to_bytes(),
        name: "bootstrap".to_owned(),
        prefix: op.key_prefix,
        hash: op.key_hash,
        permissions: vec![Permission::Admin as i32],
        scopes: vec!["*".to_owned()],
        created_at_ms: context.wall_ms,
        ..Key::default()
    };
    insert_key(view, context, TeamId::SYSTEM, key)
}

/// Creates a team; its name is unique in the cluster.
pub fn create_team(view: &mut View<'_>, context: &Context<'_>, op: CreateTeam) -> Result<TeamReply, Stop> {
    Caller::administers(view, context, TeamId::SYSTEM)?;
    let id = parsed(TeamId::from_slice(&op.team_id))?;
    validate_display_name(&op.name)?;
    if view.get(&keys::team_name(&op.name))?.is_some() || view.get(&keys::team(id))?.is_some() {
        return reject(
            ErrorCode::Conflict,
            format!("a team named {:?} exists already", op.name),
        );
    }
    let team = Team {
        id: id.to_bytes(),
        name: op.name,
        limits: Some(op.limits.unwrap_or_else(default_limits)),
        strict_recipients: false,
        created_at_ms: context.wall_ms,
        signing_generation: 0,
    };
    insert_team(view, id, &team);
    Ok(TeamReply { team_id: id.to_bytes() })
}

/// Changes what the caller named, keeps the rest.
pub fn update_team(view: &mut View<'_>, context: &Context<'_>, op: UpdateTeam) -> Result<TeamReply, Stop> {
    Caller::administers(view, context, TeamId::SYSTEM)?;
    let id = parsed(TeamId::from_slice(&op.team_id))?;
    let Some(mut team) = view.load::<Team>(&keys::team(id))? else {
        return reject(ErrorCode::NotFound, "no such team");
    };
    let limits = team.limits.get_or_insert_with(default_limits);
    let set = |value: &mut u64, new: Option<u64>| *value = new.unwrap_or(*value);
    set(&mut limits.daily_sends, op.daily_sends);
    set(&mut limits.daily_reads, op.daily_reads);
    set(&mut limits.daily_webhook_registrations, op.daily_webhook_registrations);
    set(&mut limits.monthly_events, op.monthly_events);
    if op.clear_overage_price {
        limits.overage_price_atomic = None;
    } else if op.overage_price_atomic.is_some() {
        limits.overage_price_atomic = op.overage_price_atomic;
    }
    team.strict_recipients = op.strict_recipients.unwrap_or(team.strict_recipients);
    view.store(keys::team(id), &team);
    Ok(TeamReply { team_id: id.to_bytes() })
}

/// Creates a key of a team; binding it to an agent registers the agent.
pub fn create_key(view: &mut View<'_>, context: &Context<'_>, op: CreateKey) -> Result<KeyReply, Stop> {
    let team = parsed(TeamId::from_slice(&op.team_id))?;
    Caller::hands_out_keys(view, context, team)?;
    if view.get(&keys::team(team))?.is_none() {
        return reject(ErrorCode::NotFound, "no such team");
    }
    validate_key(&op)?;
    if !op.agent_id.is_empty() {
        register_agent(view, context, team, &op.agent_id, None)?;
    }
    let key = Key {
        id: op.key_id,
        team_id: team.to_bytes(),
        name: op.name,
        prefix: op.key_prefix,
        hash: op.key_hash,
        permissions: op.permissions,
        scopes: op.scopes,
        agent_id: op.agent_id,
        expires_at_ms: op.expires_at_ms,
        revoked_at_ms: 0,
        created_at_ms: context.wall_ms,
    };
    insert_key(view, context, team, key)
}

fn validate_key(op: &CreateKey) -> Result<(), Stop> {
    validate_display_name(&op.name)?;
    validate_permissions(&op.permissions)?;
    if op.scopes.len() > limits::SCOPES_MAX || op.scopes.iter().any(|s| s.len() > limits::SCOPE_BYTES_MAX) {
        return reject(ErrorCode::Invalid, "too many or too long scopes");
    }
    if op.agent_id == AgentId::SYSTEM {
        return reject(
            ErrorCode::Forbidden,
            "no key can be bound to the reserved agent \"system\"",
        );
    }
    if !op.agent_id.is_empty() {
        parsed(op.agent_id.parse::<AgentId>())?;
    }
    Ok(())
}

/// At least one, and only known ones.
pub(super) fn validate_permissions(permissions: &[i32]) -> Result<(), Stop> {
    let known = |p: &i32| command::Permission::try_from(*p).is_ok_and(|p| p != Permission::Unspecified);
    if permissions.is_empty() || !permissions.iter().all(known) {
        return reject(
            ErrorCode::Invalid,
            "permissions must name at least one of read, write, admin",
        );
    }
    Ok(())
}

/// Revokes a key. From this entry on no write by it is accepted anywhere.
pub fn revoke_key(
    view: &mut View<'_>,
    context: &Context<'_>,
    op: RevokeKey,
    effects: &mut Vec<Effect>,
) -> Result<(), Stop> {
    let id = parsed(KeyId::from_slice(&op.key_id))?;
    let Some(team) = view.get(&keys::key_team(id))? else {
        Caller::with(view, context, Permission::Admin)?;
        return reject(ErrorCode::NotFound, "no such key");
    };
    let team = parsed(TeamId::from_slice(&team))?;
    match Caller::administers(view, context, team) {
        Err(Stop::Reject(r)) if r.code() == ErrorCode::NotFound => {
            return reject(ErrorCode::NotFound, "no such key");
        }
        other => other?,
    };
    let Some(mut key) = view.load::<Key>(&keys::key(team, id))? else {
        return reject(ErrorCode::NotFound, "no such key");
    };
    if key.revoked_at_ms == 0 {
        key.revoked_at_ms = context.wall_ms.max(1);
        view.store(keys::key(team, id), &key);
        effects.push(Effect::KeyRevoked(id));
    }
    Ok(())
}

fn insert_team(view: &mut View<'_>, id: TeamId, team: &Team) {
    view.put(keys::team_name(&team.name), id.to_bytes());
    view.store(keys::team(id), team);
}

pub(super) fn insert_key(
    view: &mut View<'_>,
    _context: &Context<'_>,
    team: TeamId,
    key: Key,
) -> Result<KeyReply, Stop> {
    let id = parsed(KeyId::from_slice(&key.id))?;
    if key.hash.len() != 32 {
        return reject(ErrorCode::Invalid, "a key hash has 32 bytes");
    }
    if view.get(&keys::key_hash(&key.hash))?.is_some() || view.get(&keys::key_team(id))?.is_some() {
        return reject(ErrorCode::Conflict, "this key exists already");
    }
    let route = [team.0, id.0].concat();
    view.put(keys::key_hash(&key.hash), Bytes::from(route));
    view.put(keys::key_team(id), team.to_bytes());
    view.store(keys::key(team, id), &key);
    Ok(KeyReply { key_id: id.to_bytes() })
}

/// Puts an agent into the directory, or gives it another name.
pub fn register(view: &mut View<'_>, context: &Context<'_>, op: &RegisterAgent) -> Result<(), Stop> {
    let caller = Caller::with(view, context, Permission::Write)?;
    caller.acts_as(&op.agent)?;
    let agent = parsed(op.agent.parse::<AgentId>())?;
    if agent.as_str() == AgentId::SYSTEM {
        return reject(ErrorCode::Forbidden, "the agent id \"system\" is reserved");
    }
    if !op.name.is_empty() {
        validate_display_name(&op.name)?;
    }
    register_agent(view, context, caller.team, agent.as_str(), Some(&op.name))
}

/// `name`: none keeps the one that is there.
fn register_agent(
    view: &mut View<'_>,
    context: &Context<'_>,
    team: TeamId,
    agent: &str,
    name: Option<&str>,
) -> Result<(), Stop> {
    let key = keys::agent(team, agent);
    let row = match view.load::<Agent>(&key)? {
        Some(stored) => Agent {
            name: name.map_or(stored.name, str::to_owned),
            ..stored
        },
        None => Agent {
            id: agent.to_owned(),
            name: name.unwrap_or_default().to_owned(),
            created_at_ms: context.wall_ms,
        },
    };
    view.store(key, &row);
    Ok(())
}

fn validate_display_name(name: &str) -> Result<(), Stop> {
    let length = name.chars().count();
    if length == 0 || length > limits::DISPLAY_NAME_CHARS_MAX || name.chars().any(char::is_control) {
        return reject(ErrorCode::Invalid, "a name has 1 to 128 printable characters");
    }
    Ok(())
}

/// An identifier in a command that does not parse is the caller's fault.
pub(super) fn parsed<T>(result: Result<T, InvalidId>) -> Result<T, Stop> {
    result.or_else(|e| reject(ErrorCode::Invalid, e.to_string()))
}

/// current := next, once for each repeat of the same request.
pub fn rotate_signing_keys(
    view: &mut View<'_>,
    context: &Context<'_>,
    op: &RotateSigningKeys,
) -> Result<SigningKeysReply, Stop> {
    let id = parsed(TeamId::from_slice(&op.team_id))?;
    Caller::administers(view, context, id)?;
    let Some(mut team) = view.load::<Team>(&keys::team(id))? else {
        return reject(ErrorCode::NotFound, "no such team");
    };
    if team.signing_generation != op.from_generation {
        return reject(
            ErrorCode::Conflict,
            "the signing keys were rotated meanwhile; read them again",
        );
    }
    team.signing_generation += 1;
    view.store(keys::team(id), &team);
    Ok(SigningKeysReply {
        generation: team.signing_generation,
    })
}
