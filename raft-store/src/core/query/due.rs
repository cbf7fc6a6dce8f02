//! Queries about what is due.

use std::ops::Range;

use agentpost_proto::command::Sweep;
use agentpost_proto::id::TeamId;
use agentpost_proto::record::Message;
use agentpost_proto::{limits, time};

use super::{team, topic};
use crate::core::keys;
use crate::core::kv::{Fatal, Kv, Order};
use crate::core::view::decode;

/// Whether the state has any row that ages: a delivery, an idempotency key, a message, a lease or a login. Only then
/// must the leader carry time forward. Cursors do not count: two months of commands that only carry time would cost
/// more than the row of an unused cursor.
pub fn ages(kv: &impl Kv) -> Result<bool, Fatal> {
    for range in [
        keys::endpoint_heads(),
        keys::claims(),
        keys::idempotency_expiries_until(u64::MAX),
        keys::delivery_ageings_until(u64::MAX),
        keys::leases_before(u32::MAX),
        keys::login_expiries_until(u64::MAX),
    ] {
        if has_row(kv, range)? {
            return Ok(true);
        }
    }
    for team in team::all(kv)? {
        if let Ok(id) = TeamId::from_slice(&team.id) {
            let head = team::head(kv, id)?;
            if has_row(kv, keys::messages_from(id, head.swept_seq + 1))? {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn has_row(kv: &(impl Kv + ?Sized), range: Range<Vec<u8>>) -> Result<bool, Fatal> {
    let first = kv.range(range, Order::Ascending).next().transpose()?;
    Ok(first.is_some())
}

/// The next sweep that would remove something at these times, or `None`.
pub fn sweep(kv: &impl Kv, cluster_ms: u64, wall_ms: u64) -> Result<Option<Sweep>, Fatal> {
    if has_row(kv, keys::idempotency_expiries_until(cluster_ms))?
        || has_row(kv, keys::message_expiries_until(wall_ms))?
        || has_row(kv, keys::delivery_ageings_until(cluster_ms))?
        || has_row(kv, keys::leases_before(time::day(wall_ms)))?
        || has_row(kv, keys::login_expiries_until(cluster_ms))?
        || has_row(
            kv,
            keys::cursor_uses_until(cluster_ms.saturating_sub(limits::CURSOR_TTL_MS)),
        )?
    {
        return Ok(Some(Sweep::default()));
    }
    for team in team::all(kv)? {
        let Ok(id) = TeamId::from_slice(&team.id) else {
            continue;
        };
        let head = team::head(kv, id)?;
        if retention(kv, id, head.swept_seq, cluster_ms)?.is_some() {
            return Ok(Some(Sweep { team_id: team.id }));
        }
    }
    Ok(None)
}

/// The oldest message after `swept_seq`, if retention is over for it. The messages of a team are in the order of their
/// age. A message with an unfinished fan-out job delays the messages after it.
pub(crate) fn retention(
    kv: &(impl Kv + ?Sized),
    team: TeamId,
    swept_seq: u64,
    cluster_ms: u64,
) -> Result<Option<Message>, Fatal> {
    let oldest = kv
        .range(keys::messages_from(team, swept_seq + 1), Order::Ascending)
        .next()
        .transpose()?;
    let Some((_, value)) = oldest else {
        return Ok(None);
    };
    let message: Message = decode(value)?;
    let is_kept = message.created_ct_ms + limits::RETENTION_MS > cluster_ms
        || topic::fanout_pending(kv, team, &message.topic, message.seq)?;
    Ok(Some(message).filter(|_| !is_kept))
}
