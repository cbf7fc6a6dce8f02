//! API keys. The state never contains a key's secret, only its keyed hash.
//!
//! The number of a team's keys is bounded. Revoked and expired keys are kept, so that people can look them up; in a
//! full team a new key replaces the oldest of them. If all keys are in use the command is rejected as `Forbidden`, not
//! as a used-up quota, because waiting does not help.

use agentpost_proto::command::{CreateKey, ErrorCode, KeyReply, Permission, RevokeKey};
use agentpost_proto::id::{AgentId, KeyId, TeamId};
use agentpost_proto::limits;
use agentpost_proto::record::{Key, TeamHead};
use bytes::Bytes;

use super::check::{parsed, validate_display_name};
use super::principal::Caller;
use super::{Context, Stop, agent, reject};
use crate::core::effect::Effect;
use crate::core::keys;
use crate::core::kv::{Fatal, Kv, Lookup, Order};
use crate::core::query;
use crate::core::view::{View, decode};

/// Upper bound on the keys of a team, including revoked and expired ones. In a full team a new key replaces one of
/// those.
pub const KEYS_MAX: u32 = 1_000;

/// Creates a key of a team. If the key is bound to an agent, the agent is registered too.
pub fn create(view: &mut View<'_>, context: &Context<'_>, op: CreateKey) -> Result<KeyReply, Stop> {
    let team = parsed(TeamId::from_slice(&op.team_id))?;
    Caller::hands_out_keys(view, context, team)?;
    check_team(view, team)?;
    validate(&op)?;
    let permissions = known_permissions(&op.permissions)?;
    if !op.agent_id.is_empty() {
        agent::enter(view, context, team, &op.agent_id, None)?;
    }
    let key = Key {
        id: op.key_id,
        team_id: team.to_bytes(),
        name: op.name,
        prefix: op.key_prefix,
        hash: op.key_hash,
        permissions,
        scopes: op.scopes,
        agent_id: op.agent_id,
        expires_at_ms: op.expires_at_ms,
        revoked_at_ms: 0,
        created_at_ms: context.wall_ms,
    };
    insert(view, context, team, key)
}

/// Rejects a team that does not exist.
pub(super) fn check_team(view: &View<'_>, team: TeamId) -> Result<(), Stop> {
    if view.get(&keys::team(team))?.is_none() {
        return reject(ErrorCode::NotFound, "no such team");
    }
    Ok(())
}

fn validate(op: &CreateKey) -> Result<(), Stop> {
    validate_display_name(&op.name)?;
    if op.scopes.len() > limits::SCOPES_MAX || op.scopes.iter().any(|s| s.len() > limits::SCOPE_BYTES_MAX) {
        return reject(ErrorCode::Invalid, "too many or too long scopes");
    }
    if op.agent_id == AgentId::SYSTEM {
        return reject(
            ErrorCode::Forbidden,
            "no key can be bound to the reserved agent \"system\"",
        );
    }
    Ok(())
}

/// Removes duplicates from a list of permissions. Rejects an empty list and unknown permissions.
pub(super) fn known_permissions(named: &[i32]) -> Result<Vec<i32>, Stop> {
    let mut known = Vec::new();
    for permission in named {
        match Permission::try_from(*permission) {
            Ok(p) if p != Permission::Unspecified && !known.contains(permission) => known.push(*permission),
            Ok(p) if p != Permission::Unspecified => {}
            _ => return no_permission(),
        }
    }
    if known.is_empty() {
        return no_permission();
    }
    Ok(known)
}

fn no_permission<T>() -> Result<T, Stop> {
    reject(
        ErrorCode::Invalid,
        "permissions must name at least one of read, write, admin",
    )
}

/// Stores a key of a team that exists.
pub(super) fn insert(view: &mut View<'_>, context: &Context<'_>, team: TeamId, key: Key) -> Result<KeyReply, Stop> {
    let id = check_new(view, &key.id, &key.hash, &key.prefix)?;
    make_room(view, context, team)?;
    let route = [team.0, id.0].concat();
    view.put(keys::key_hash(&key.hash), Bytes::from(route));
    view.put(keys::key_team(id), team.to_bytes());
    view.store(keys::key(team, id), &key);
    Ok(KeyReply { key_id: id.to_bytes() })
}

/// Checks the id, hash and prefix of a new key. Neither the id nor the hash may be in use.
pub(super) fn check_new(view: &View<'_>, id: &[u8], hash: &[u8], prefix: &str) -> Result<KeyId, Stop> {
    let id = parsed(KeyId::from_slice(id))?;
    if hash.len() != 32 {
        return reject(ErrorCode::Invalid, "a key hash has 32 bytes");
    }
    if prefix.len() > limits::API_KEY_BYTES_MAX {
        return reject(ErrorCode::Invalid, "a key's prefix is shorter than a key");
    }
    if view.get(&keys::key_hash(hash))?.is_some() || view.get(&keys::key_team(id))?.is_some() {
        return reject(ErrorCode::Conflict, "this key exists already");
    }
    Ok(id)
}

/// Makes room for one more key. In a full team it removes the oldest key that is revoked or expired.
fn make_room(view: &mut View<'_>, context: &Context<'_>, team: TeamId) -> Result<(), Stop> {
    let mut head: TeamHead = query::team::head(view, team)?;
    if head.keys < KEYS_MAX {
        head.keys += 1;
        view.store(keys::team_head(team), &head);
        return Ok(());
    }
    let Some(dead) = oldest_dead(view, context, team)? else {
        return full();
    };
    let id = KeyId::from_slice(&dead.id).map_err(|e| Fatal::Invariant(e.to_string()))?;
    view.delete(keys::key_hash(&dead.hash));
    view.delete(keys::key_team(id));
    view.delete(keys::key(team, id));
    Ok(())
}

/// Rejects the command when a team has no room for another key.
pub(super) fn check_room(view: &View<'_>, context: &Context<'_>, team: TeamId) -> Result<(), Stop> {
    let has_room = query::team::head(view, team)?.keys < KEYS_MAX;
    if has_room || oldest_dead(view, context, team)?.is_some() {
        return Ok(());
    }
    full()
}

fn full<T>() -> Result<T, Stop> {
    let message = format!(
        "the team has {} keys in use already: revoke one that nobody needs",
        KEYS_MAX
    );
    reject(ErrorCode::Forbidden, message)
}

/// The oldest revoked or expired key of a team. Reads all its keys, at most `KEYS_MAX`.
fn oldest_dead(view: &View<'_>, context: &Context<'_>, team: TeamId) -> Result<Option<Key>, Fatal> {
    let mut oldest: Option<Key> = None;
    for row in view.range(keys::keys_of(team), Order::Ascending) {
        let key: Key = decode(row?.1)?;
        let is_older = oldest.as_ref().is_none_or(|o| key.created_at_ms < o.created_at_ms);
        if is_older && !query::key::is_valid(&key, context.wall_ms) {
            oldest = Some(key);
        }
    }
    Ok(oldest)
}

/// Revokes a key. No later entry accepts a write by it.
pub fn revoke(
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
