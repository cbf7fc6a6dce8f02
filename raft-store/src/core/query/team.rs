//! Teams and their counters.

use agentpost_proto::id::TeamId;
use agentpost_proto::record::{DayCount, Team, TeamHead};
use agentpost_proto::time;

use crate::core::keys;
use crate::core::kv::{Fatal, Kv, Lookup, Order};
use crate::core::view::{decode, load};

/// A team by its id.
pub fn by_id(kv: &impl Lookup, team: TeamId) -> Result<Option<Team>, Fatal> {
    load(kv, &keys::team(team))
}

/// The id of the team with this name, which may be any text.
pub fn named(kv: &impl Lookup, name: &str) -> Result<Option<TeamId>, Fatal> {
    // No team has such a name, and a key cannot contain it.
    if name.contains('\0') {
        return Ok(None);
    }
    let id = kv.get(&keys::team_name(name))?;
    id.map(|id| TeamId::from_slice(&id).map_err(|e| Fatal::Invariant(e.to_string())))
        .transpose()
}

/// All teams except the reserved one, in the order of their ids.
pub fn all(kv: &impl Kv) -> Result<Vec<Team>, Fatal> {
    let all: Vec<Team> = kv
        .range(keys::teams(), Order::Ascending)
        .map(|row| row.and_then(|(_, value)| decode(value)))
        .collect::<Result<_, _>>()?;
    Ok(all
        .into_iter()
        .filter(|team| team.id != TeamId::SYSTEM.0.as_slice())
        .collect())
}

/// The counters of a team. They are zero if it never sent a message.
pub fn head(kv: &impl Lookup, team: TeamId) -> Result<TeamHead, Fatal> {
    Ok(load(kv, &keys::team_head(team))?.unwrap_or_default())
}

/// The events of a team in the UTC day of `wall_ms`. If the state is already in a later day, because the clock of
/// `wall_ms` is behind, it is the events of that later day.
pub fn events_today(kv: &impl Lookup, team: TeamId, wall_ms: u64) -> Result<u64, Fatal> {
    let head = head(kv, team)?;
    let over = head.day < time::day(wall_ms);
    Ok(if over { 0 } else { head.events_today })
}

/// A daily counter of an agent, with the key [`keys::send_count`], [`keys::read_count`] or
/// [`keys::registration_count`]. It counts the day that it names, which may be over.
pub fn day_count(kv: &impl Lookup, row: &[u8]) -> Result<DayCount, Fatal> {
    Ok(load(kv, row)?.unwrap_or_default())
}
