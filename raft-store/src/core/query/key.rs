//! API keys.

use agentpost_proto::id::{KeyId, TeamId};
use agentpost_proto::record::Key;

use crate::core::keys;
use crate::core::kv::{Fatal, Kv, Lookup, Order};
use crate::core::mutant::{self, Mutant};
use crate::core::view::{decode, load};

/// The key with this keyed hash. It may be revoked or expired.
pub fn by_hash(kv: &impl Lookup, hash: &[u8]) -> Result<Option<Key>, Fatal> {
    let Some(route) = kv.get(&keys::key_hash(hash))? else {
        return Ok(None);
    };
    match (
        TeamId::from_slice(&route[..route.len().min(16)]),
        KeyId::from_slice(&route[route.len().min(16)..]),
    ) {
        (Ok(team), Ok(id)) => load(kv, &keys::key(team, id)),
        _ => Err(Fatal::Invariant("a key route that is not a team and a key".to_owned())),
    }
}

/// A key of a team by its id. It may be revoked or expired.
pub fn by_id(kv: &impl Lookup, team: TeamId, id: KeyId) -> Result<Option<Key>, Fatal> {
    load(kv, &keys::key(team, id))
}

/// All keys of a team, in the order of their ids.
pub fn of_team(kv: &impl Kv, team: TeamId) -> Result<Vec<Key>, Fatal> {
    kv.range(keys::keys_of(team), Order::Ascending)
        .map(|row| row.and_then(|(_, value)| decode(value)))
        .collect()
}

/// The number of keys of a team that are neither revoked nor expired at `wall_ms`.
pub fn count_active(kv: &impl Kv, team: TeamId, wall_ms: u64) -> Result<u64, Fatal> {
    let keys = of_team(kv, team)?;
    Ok(keys.iter().filter(|key| is_valid(key, wall_ms)).count() as u64)
}

/// Whether the first admin key exists.
pub fn has_admin(kv: &impl Lookup) -> Result<bool, Fatal> {
    Ok(kv.get(&keys::team(TeamId::SYSTEM))?.is_some())
}

/// Whether a key is neither revoked nor expired at `wall_ms`.
pub fn is_valid(key: &Key, wall_ms: u64) -> bool {
    (key.revoked_at_ms == 0 || mutant::on(Mutant::RevokedKept))
        && (key.expires_at_ms == 0 || wall_ms < key.expires_at_ms)
}
