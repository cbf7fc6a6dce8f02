//! Leases of inbox reads. A node leases a block of an agent's daily reads through the log and then counts reads against
//! the block locally. A read therefore needs no log entry. The limit of a day still holds, because a unit counts as
//! used from its grant on, and a node returns only units that it has not spent.
//!
//! A lease has a row until it is returned. The row of a node that crashed stays until its day is over, because its
//! units may have been spent.

use agentpost_proto::command::{ErrorCode, LeaseReads, LeaseReply, LeaseReturn, Permission, ReturnLeases};
use agentpost_proto::id::{AgentId, TeamId};
use agentpost_proto::limits::LEASES_PER_ENTRY_MAX;
use agentpost_proto::record::{DayCount, Lease};
use agentpost_proto::time;

use super::check::parsed;
use super::principal::Caller;
use super::team::limits_of;
use super::{Context, Stop, quota, reject};
use crate::core::keys;
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
        Some(first) if first.agent == op.agent && first.node == op.node => first.units,
        Some(_) => return reject(ErrorCode::Conflict, "this lease is another agent's or node's"),
        None if limit == 0 => 0,
        None => {
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

fn end(view: &mut View<'_>, context: &Context<'_>, returned: &LeaseReturn) -> Result<(), Stop> {
    let team = parsed(TeamId::from_slice(&returned.team_id))?;
    let row = keys::lease(returned.day, team, &returned.lease_id);
    let Some(lease) = view.load::<Lease>(&row)? else {
        return Ok(());
    };
    view.delete(row);
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
