//! Sweeps remove aged rows, a bounded number per entry. The aged rows are a range of an index, so the leader proposes a
//! sweep only when [`crate::core::query::due::sweep`] finds one.

use agentpost_proto::command::{Sweep, SweepReply};
use agentpost_proto::id::TeamId;
use agentpost_proto::record::{Message, Receivers, TeamHead};
use agentpost_proto::time;

use super::check::parsed;
use super::inbox::{release_message, remove_entry};
use super::message::IDEMPOTENCY_TTL_MS;
use super::{Context, Stop, cursor, delivery, login};
use crate::core::keys::{self, ReadState};
use crate::core::kv::{Fatal, Kv, Order, Row};
use crate::core::query;
use crate::core::view::{View, decode};

/// The maximal number of rows that a Sweep entry removes, so that applying it takes little time.
const ROWS_MAX: usize = 256;

/// Removes old messages of one team, or, without a team, the aged idempotency keys, messages, deliveries, leases,
/// logins and cursors of the shard.
pub fn sweep(view: &mut View<'_>, context: &Context<'_>, op: &Sweep) -> Result<SweepReply, Stop> {
    let rows = if op.team_id.is_empty() {
        let left = |rows: usize| ROWS_MAX.saturating_sub(rows);
        let mut rows = sweep_idempotency(view, context.cluster_ms)?;
        rows += sweep_expired(view, context.wall_ms, left(rows))?;
        rows += delivery::sweep_aged(view, context.cluster_ms, left(rows))?;
        rows += sweep_leases(view, context.wall_ms, left(rows))?;
        rows += login::sweep(view, context.cluster_ms, left(rows))?;
        rows + cursor::sweep(view, context.cluster_ms, left(rows))?
    } else {
        sweep_team(view, parsed(TeamId::from_slice(&op.team_id))?, context.cluster_ms)?
    };
    Ok(SweepReply { rows: rows as u32 })
}

fn take(view: &View<'_>, range: std::ops::Range<Vec<u8>>, rows: usize) -> Result<Vec<Row>, Fatal> {
    view.range(range, Order::Ascending).take(rows).collect()
}

fn sweep_idempotency(view: &mut View<'_>, cluster_ms: u64) -> Result<usize, Fatal> {
    let due = take(view, keys::idempotency_expiries_until(cluster_ms), ROWS_MAX)?;
    for (expiry, _) in &due {
        let key = keys::idempotency_of_expiry(expiry).ok_or_else(|| Fatal::Invariant("a short ix key".to_owned()))?;
        // If the key was used again since, its row is newer and has a later expiry row.
        let row: Option<agentpost_proto::record::Idempotency> = view.load(&key)?;
        if row.is_some_and(|row| row.created_ct_ms + IDEMPOTENCY_TTL_MS <= cluster_ms) {
            view.delete(key);
        }
        view.delete(expiry.clone());
    }
    Ok(due.len())
}

fn sweep_expired(view: &mut View<'_>, wall_ms: u64, rows: usize) -> Result<usize, Fatal> {
    let mut removed = 0;
    for (expiry, _) in take(view, keys::message_expiries_until(wall_ms), rows)? {
        if removed >= rows {
            break;
        }
        let (team, seq) =
            keys::parse_message_expiry(&expiry).ok_or_else(|| Fatal::Invariant("a short mx key".to_owned()))?;
        let done = match view.load::<Message>(&keys::message(team, seq))? {
            // A fan-out job is not finished. Its last chunk writes this expiry row again.
            Some(message) if query::topic::fanout_pending(view, team, &message.topic, seq)? => true,
            Some(message) => {
                let mut head: TeamHead = view.load(&keys::team_head(team))?.unwrap_or_default();
                let (entries, done) = give_up(view, team, &mut head, &message, rows - removed)?;
                view.store(keys::team_head(team), &head);
                removed += entries;
                done
            }
            None => true,
        };
        if done {
            removed += 1;
            view.delete(expiry);
        }
    }
    Ok(removed)
}

/// Removes leases of past days that nobody returned.
fn sweep_leases(view: &mut View<'_>, wall_ms: u64, rows: usize) -> Result<usize, Fatal> {
    let old = take(view, keys::leases_before(time::day(wall_ms)), rows)?;
    for (lease, _) in &old {
        view.delete(lease.clone());
    }
    Ok(old.len())
}

fn sweep_team(view: &mut View<'_>, team: TeamId, cluster_ms: u64) -> Result<usize, Fatal> {
    let mut head: TeamHead = view.load(&keys::team_head(team))?.unwrap_or_default();
    let mut removed = 0;
    while removed < ROWS_MAX
        && let Some(message) = query::due::retention(view, team, head.swept_seq, cluster_ms)?
    {
        let (rows, done) = give_up(view, team, &mut head, &message, ROWS_MAX - removed)?;
        removed += rows;
        if done {
            removed += 1;
            // A dead letter may still refer to the message, but retention is done with it.
            head.swept_seq = message.seq;
        }
    }
    if removed > 0 {
        view.store(keys::team_head(team), &head);
    }
    Ok(removed)
}

/// Removes a message from the inboxes that have it. For a topic message each step removes the entries of one `rc` row,
/// and the last step also removes the publish's own reference. No step begins after `rows` removed rows. Returns how
/// many rows were removed, and whether the message is removed from all inboxes.
fn give_up(
    view: &mut View<'_>,
    team: TeamId,
    head: &mut TeamHead,
    message: &Message,
    rows: usize,
) -> Result<(usize, bool), Fatal> {
    if message.topic.is_empty() {
        return remove_from(view, team, head, &message.to, message.seq).map(|()| (0, true));
    }
    let mut removed = 0;
    let mut rest = keys::receivers_of(team, message.seq);
    loop {
        let last = view.range(rest.clone(), Order::Descending).next().transpose()?;
        let Some((key, value)) = last else {
            return Ok((removed, true));
        };
        if removed >= rows {
            return Ok((removed, false));
        }
        let receivers: Receivers = decode(value)?;
        let entry_seq = keys::trailing_number(&key).unwrap_or_default();
        for agent in &receivers.agents {
            remove_from(view, team, head, agent, entry_seq)?;
        }
        removed += receivers.agents.len() + 1;
        rest.end = key.to_vec();
        view.delete(key);
        if entry_seq == message.seq {
            release_message(view, team, head, message.seq)?;
        }
    }
}

fn remove_from(view: &mut View<'_>, team: TeamId, head: &mut TeamHead, agent: &str, seq: u64) -> Result<(), Fatal> {
    for state in [ReadState::Unread, ReadState::Read] {
        remove_entry(view, team, head, agent, state, seq)?;
    }
    Ok(())
}
