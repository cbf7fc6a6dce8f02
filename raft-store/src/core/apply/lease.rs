//! Leases of inbox reads. A node leases a block of an agent's daily reads through the log and then counts reads against
//! the block locally. A read therefore needs no log entry. The limit of a day still holds, because a unit counts as
//! used from its grant on, and a node returns only units that it has not spent.
//!
//! A lease has a row until its day is over. A returned lease has no units; one of a node that crashed keeps them, because
//! they may have been spent.

use agentpost_proto::command::{ErrorCode, LeaseReads, LeaseReply, LeaseReturn, Permission, ReturnLeases};
use agentpost_proto::id::{AgentId, TeamId};
use agentpost_proto::limits::LEASES_PER_ENTRY_MAX;
use agentpost_proto::record::{DayCount, Lease};
use agentpost_proto::time;

use super::check::parsed;
use super::principal::Caller;
use super::team::limits_of;
use super::{Context, Stop, queue, quota, reject};
use crate::core::keys::{self, Queue};
use crate::core::kv::Fatal;
use crate::core::query::queue::Now;
use crate::core::view::View;

/// The maximal number of an agent's reads that a node leases at a time.
const LEASE_UNITS_MAX: u64 = 64;

/// Grants a node a block of an agent's reads of today. Repeating the command returns the first grant. For a team
/// without a limit the reply has 0 units and the limit 0.
pub fn grant(view: &mut View<'_>, context: &Context<'_>, op: &LeaseReads) -> Result<LeaseReply, Stop> {
    let caller = Caller::with(view, context, Permission::Read)?;
    parsed(op.agent.parse::<AgentId>())?;
    caller.acts_as(&op.agent)?;
    if op.agent == AgentId::SYSTEM {
        return reject(ErrorCode::Forbidden, "nobody reads as the reserved agent \"system\"");
    }
    if op.lease_id.len() != 16 {
        return reject(ErrorCode::Invalid, "a lease id has 16 bytes");
    }
    let limit = limits_of(view, caller.team)?.daily_reads;
    let count_row = keys::read_count(caller.team, &op.agent);
    let mut count: DayCount = view.load(&count_row)?.unwrap_or_default();
    quota::turn(&mut count, context.wall_ms);
    let lease_row = keys::lease(count.day, caller.team, &op.lease_id);
    let units = match view.load::<Lease>(&lease_row)? {
        Some(first) if first.units > 0 && first.agent == op.agent && first.node == op.node => first.units,
        Some(first) if first.units > 0 => {
            return reject(ErrorCode::Conflict, "this lease is another agent's or node's");
        }
        _ if limit == 0 => 0,
        _ => {
            let units = block(limit.saturating_sub(count.used), op.nodes);
            if units == 0 {
                return Err(quota::used_up(context, &op.agent, limit, "inbox reads"));
            }
            count.used += units;
            view.store(count_row, &count);
            let (agent, node) = (op.agent.clone(), op.node);
            view.store(lease_row, &Lease { agent, node, units });
            units
        }
    };
    Ok(LeaseReply {
        units,
        day: count.day,
        used: count.used,
        limit,
    })
}

/// The size of a block: a part of the remaining units, small enough that every node gets some.
fn block(remaining: u64, nodes: u32) -> u64 {
    let part = remaining / (4 * u64::from(nodes.max(1)));
    part.clamp(1, LEASE_UNITS_MAX).min(remaining)
}

/// Ends leases and credits their unused units. A lease that has already ended is skipped, so repeating the command
/// credits nothing.
pub fn give_back(view: &mut View<'_>, context: &Context<'_>, op: &ReturnLeases) -> Result<(), Stop> {
    if context.principal.is_some() {
        return reject(ErrorCode::Forbidden, "only a node returns leases");
    }
    if op.leases.len() > LEASES_PER_ENTRY_MAX {
        return reject(ErrorCode::Invalid, "too many leases in one entry");
    }
    for lease in &op.leases {
        end(view, context, lease)?;
    }
    Ok(())
}

/// Removes the leases of past days. Returns how many, at most `rows`.
pub(super) fn sweep(view: &mut View<'_>, now: Now, rows: usize) -> Result<usize, Fatal> {
    let due = queue::take(view, Queue::Leases, now, rows)?;
    let removed = due.len();
    queue::remove(view, Queue::Leases, due.into_iter().map(|(key, _)| key));
    Ok(removed)
}

fn end(view: &mut View<'_>, context: &Context<'_>, returned: &LeaseReturn) -> Result<(), Stop> {
    let team = parsed(TeamId::from_slice(&returned.team_id))?;
    let row = keys::lease(returned.day, team, &returned.lease_id);
    let Some(lease) = view.load::<Lease>(&row)?.filter(|lease| lease.units > 0) else {
        return Ok(());
    };
    let ended = Lease {
        units: 0,
        ..lease.clone()
    };
    view.store(row, &ended);
    let count_row = keys::read_count(team, &lease.agent);
    let mut count: DayCount = view.load(&count_row)?.unwrap_or_default();
    // Units of a past day are worth nothing, and no more can be returned than were granted.
    let counts = count.day == returned.day && returned.day >= time::day(context.wall_ms);
    if counts && (1..=lease.units).contains(&returned.unused) {
        count.used = count.used.saturating_sub(returned.unused);
        view.store(count_row, &count);
    }
    Ok(())
}
