//! Teams: limits, names and signing keys.

use agentpost_proto::command::{
    BootstrapAdmin, CreateTeam, ErrorCode, KeyReply, Permission, RotateSigningKeys, SigningKeysReply, TeamLimits,
    TeamReply, UpdateTeam,
};
use agentpost_proto::id::TeamId;
use agentpost_proto::limits;
use agentpost_proto::record::{Key, Team};

use super::check::{parsed, validate_display_name};
use super::principal::Caller;
use super::{Context, Stop, key, reject};
use crate::core::keys;
use crate::core::kv::{Fatal, Lookup};
use crate::core::view::View;

/// The limits of a team that was created without limits.
pub fn default_limits() -> TeamLimits {
    TeamLimits {
        daily_sends: limits::DAILY_SENDS,
        daily_reads: limits::DAILY_READS,
        daily_webhook_registrations: limits::DAILY_WEBHOOK_REGISTRATIONS,
        monthly_events: limits::MONTHLY_EVENTS,
        overage_price_atomic: None,
    }
}

/// The row of the team that a valid key belongs to.
pub(super) fn settings(view: &View<'_>, team: TeamId) -> Result<Team, Fatal> {
    view.load(&keys::team(team))?
        .ok_or_else(|| Fatal::Invariant(format!("key of {team} without its team")))
}

/// The limits of the team that a valid key belongs to.
pub(super) fn limits_of(view: &View<'_>, team: TeamId) -> Result<TeamLimits, Fatal> {
    Ok(settings(view, team)?.limits.unwrap_or_else(default_limits))
}

/// Creates the reserved system team and its first key. A cluster accepts this once.
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
    key::insert(view, context, TeamId::SYSTEM, key)
}

/// Creates a team. Its name must be unique in the cluster.
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

/// Changes the settings that the command names and keeps the others.
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

fn insert_team(view: &mut View<'_>, id: TeamId, team: &Team) {
    view.put(keys::team_name(&team.name), id.to_bytes());
    view.store(keys::team(id), team);
}

/// Rotates the signing keys: the next one becomes the current one. Repeating the command is rejected, because it names
/// the generation that it rotates from.
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
