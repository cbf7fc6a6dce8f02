//! The table of open claims, which the leader compares with the calls that run.
//!
//! A claim holds a slot from its grant until it is closed, and a free slot is given to the next claim. So the table has
//! as many rows as there were ever claims open at a time, and reading it costs that much, however many claims came and
//! went. A row for each claim that is removed at its end would leave a tombstone for each.

use agentpost_proto::id::TeamId;
use agentpost_proto::record::{ClaimSlot, ClaimTable};

use crate::core::keys;
use crate::core::kv::Fatal;
use crate::core::view::View;

/// Gives a slot to a claim.
pub(super) fn hold(view: &mut View<'_>, epoch: u64, team: TeamId, number: u64) -> Result<u64, Fatal> {
    let mut table: ClaimTable = view.load(&keys::claim_table())?.unwrap_or_default();
    let slot = match table.first_free {
        0 => {
            table.slots += 1;
            table.slots
        }
        free => {
            let row: Option<ClaimSlot> = view.load(&keys::claim_slot(free))?;
            let row = row.ok_or_else(|| Fatal::Invariant(format!("the free claim slot {free} is missing")))?;
            table.first_free = row.next_free;
            free
        }
    };
    table.open += 1;
    view.store(keys::claim_table(), &table);
    let held = ClaimSlot {
        epoch,
        team_id: team.to_bytes(),
        number,
        next_free: 0,
    };
    view.store(keys::claim_slot(slot), &held);
    Ok(slot)
}

/// Frees the slot of a claim that is closed. A slot that another claim holds is left alone.
pub(super) fn free(view: &mut View<'_>, slot: u64, epoch: u64, team: TeamId, number: u64) -> Result<(), Fatal> {
    let key = keys::claim_slot(slot);
    let held: Option<ClaimSlot> = view.load(&key)?;
    if held.is_none_or(|held| (held.epoch, &held.team_id[..], held.number) != (epoch, &team.0[..], number)) {
        return Ok(());
    }
    let mut table: ClaimTable = view.load(&keys::claim_table())?.unwrap_or_default();
    let row = ClaimSlot {
        next_free: table.first_free,
        ..ClaimSlot::default()
    };
    table.first_free = slot;
    table.open = table.open.saturating_sub(1);
    view.store(keys::claim_table(), &table);
    view.store(key, &row);
    Ok(())
}
