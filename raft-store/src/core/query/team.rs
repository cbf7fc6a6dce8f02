//! Teams and their counters.

use agentpost_proto::id::TeamId;
use agentpost_proto::record::{DayCount, Team, TeamHead};
use agentpost_proto::time;

use crate::core::keys;
use crate::core::kv::{Fatal, Kv, Order};
use crate::core::view::{decode, load};

/// A team.
pub fn by_id(kv: &impl Kv, team: TeamId) -> Result<Option<Team>, Fatal> {
    load(kv, &keys::team(team))
}

/// The team of this name, which may be any text.
pub fn named(kv: &impl Kv, name: &str) -> Result<Option<TeamId>, Fatal> {
    // No team is named so, and no key can hold it.
    if name.contains('\0') {
        return Ok(None);
    }
    let id = kv.get(&keys::team_name(name))?;
    id.map(|id| TeamId::from_slice(&id).map_err(|e| Fatal::Invariant(e.to_string())))
        .transpose()
}

/// All teams but the reserved one, by id.
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

/// The counters of a team; zeros for one that never sent.
pub fn head(kv: &impl Kv, team: TeamId) -> Result<TeamHead, Fatal> {
    Ok(load(kv, &keys::team_head(team))?.unwrap_or_default())
}

/// Events that a team's members made in the UTC day of `wall_ms`. A day that the state has left never comes back:
/// the state's own day counts for a clock that is behind it.
pub fn events_today(kv: &impl Kv, team: TeamId, wall_ms: u64) -> Result<u64, Fatal> {
    let head = head(kv, team)?;
    let over = head.day < time::day(wall_ms);
    Ok(if over { 0 } else { head.events_today })
}

/// A counter of an agent's day: the row of [`keys::send_count`], [`keys::read_count`] or
/// [`keys::registration_count`]. It is the count of its own day, which may be over.
pub fn day_count(kv: &impl Kv, row: &[u8]) -> Result<DayCount, Fatal> {
    Ok(load(kv, row)?.unwrap_or_default())
}
