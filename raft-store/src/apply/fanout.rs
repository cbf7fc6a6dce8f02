//! Giving a topic message to its receivers.

use agentpost_proto::command::{ErrorCode, FanoutChunk, FanoutReply};

use super::{Context, Stop, reject};
use crate::effect::Effect;
use crate::view::View;

/// The next receivers of a publish.
pub fn chunk(
    _view: &mut View<'_>,
    _context: &Context<'_>,
    _op: &FanoutChunk,
    _effects: &mut Vec<Effect>,
) -> Result<FanoutReply, Stop> {
    reject(ErrorCode::Invalid, "not built yet")
}
