//! Removing what has aged, a bounded number of rows an entry. What is due is a range of an index, so the
//! leader proposes a sweep only when [`crate::query::sweep_due`] finds something.

use agentpost_proto::command::{Sweep, SweepReply};
use agentpost_proto::id::TeamId;
use agentpost_proto::record::{Message, TeamHead};
use agentpost_proto::{limits, time};

use super::inbox::remove_entry;
use super::team::parsed;
use super::{Context, Stop, delivery};
use crate::keys::{self, ReadState};
use crate::kv::{Fatal, Kv, Order, Row};
use crate::view::{View, decode};

/// Removes old mail of one team, or the shard's expired idempotency keys, messages and deliveries.
pub fn sweep(view: &mut View<'_>, context: &Context<'_>, op: &Sweep) -> Result<SweepReply, Stop> {
    let rows = if op.team_id.is_empty() {
        let mut rows = sweep_idempotency(view, context.cluster_ms)?;
        rows += sweep_expired(view, context.wall_ms, limits::SWEEP_ROWS_MAX - rows)?;
        rows += delivery::sweep_aged(view, context.cluster_ms, limits::SWEEP_ROWS_MAX - rows)?;
        rows + sweep_leases(view, context.wall_ms, limits::SWEEP_ROWS_MAX - rows)?
    } else {
        sweep_team(view, parsed(TeamId::from_slice(&op.team_id))?, context.cluster_ms)?
    };
    Ok(SweepReply { rows: rows as u32 })
}

fn take(view: &View<'_>, range: std::ops::Range<Vec<u8>>, rows: usize) -> Result<Vec<Row>, Fatal> {
    view.range(range, Order::Ascending).take(rows).collect()
}

fn sweep_idempotency(view: &mut View<'_>, cluster_ms: u64) -> Result<usize, Fatal> {
    let due = take(
        view,
        keys::idempotency_expiries_until(cluster_ms),
        limits::SWEEP_ROWS_MAX,
    )?;
    for (expiry, _) in &due {
        let key = keys::idempotency_of_expiry(expiry).ok_or_else(|| Fatal::Invariant("a short ix key".to_owned()))?;
        // The key may have been used again since: its row then has a later expiry of its own.
        let row: Option<agentpost_proto::record::Idempotency> = view.load(&key)?;
        if row.is_some_and(|row| row.created_ct_ms + limits::IDEMPOTENCY_TTL_MS <= cluster_ms) {
            view.delete(key);
        }
        view.delete(expiry.clone());
    }
    Ok(due.len())
}

fn sweep_expired(view: &mut View<'_>, wall_ms: u64, rows: usize) -> Result<usize, Fatal> {
    let due = take(view, keys::message_expiries_until(wall_ms), rows)?;
    for (expiry, _) in &due {
        let (team, seq) =
            keys::parse_message_expiry(expiry).ok_or_else(|| Fatal::Invariant("a short mx key".to_owned()))?;
        match view.load::<Message>(&keys::message(team, seq))? {
            Some(message) => remove_message(view, team, &message)?,
            None => view.delete(expiry.clone()),
        }
    }
    Ok(due.len())
}

/// What nobody returned of days that are over.
fn sweep_leases(view: &mut View<'_>, wall_ms: u64, rows: usize) -> Result<usize, Fatal> {
    let old = take(view, keys::leases_before(time::day(wall_ms)), rows)?;
    for (lease, _) in &old {
        view.delete(lease.clone());
    }
    Ok(old.len())
}

/// A team's messages stand in the order of their age.
fn sweep_team(view: &mut View<'_>, team: TeamId, cluster_ms: u64) -> Result<usize, Fatal> {
    let oldest = take(view, keys::messages_from(team, 0), limits::SWEEP_ROWS_MAX)?;
    let mut removed = 0;
    for (_, row) in oldest {
        let message: Message = decode(row)?;
        if message.created_ct_ms + limits::RETENTION_MS > cluster_ms {
            break;
        }
        remove_message(view, team, &message)?;
        removed += 1;
    }
    Ok(removed)
}

fn remove_message(view: &mut View<'_>, team: TeamId, message: &Message) -> Result<(), Fatal> {
    let mut head: TeamHead = view.load(&keys::team_head(team))?.unwrap_or_default();
    for state in [ReadState::Unread, ReadState::Read] {
        remove_entry(view, team, &mut head, &message.to, state, message.seq)?;
    }
    view.store(keys::team_head(team), &head);
    Ok(())
}
