//! Leased units of inbox reads.

use agentpost_proto::command::{ErrorCode, LeaseReads, LeaseReply, ReturnLeases};

use super::{Context, Stop, reject};
use crate::view::View;

/// Grants a block of an agent's reads of this day to a node.
pub fn grant(_view: &mut View<'_>, _context: &Context<'_>, _op: &LeaseReads) -> Result<LeaseReply, Stop> {
    reject(ErrorCode::Invalid, "not built yet")
}

/// Credits what a node did not spend.
pub fn give_back(_view: &mut View<'_>, _context: &Context<'_>, _op: &ReturnLeases) -> Result<(), Stop> {
    reject(ErrorCode::Invalid, "not built yet")
}
