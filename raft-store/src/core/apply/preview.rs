//! The reply of a command that would change nothing, without applying it.

use agentpost_proto::command::Reply;
use agentpost_proto::record;
use bytes::Bytes;

use super::apply_command;
use crate::core::kv::{Fatal, Kv};
use crate::core::view::{HotCache, View};

/// Applies a command to a view of `base` that is thrown away. Returns its reply if it writes nothing and makes nothing
/// possible: a rejection, a repeat that is answered with the first result, a change to what is so already. `None` means
/// that the command must go through the log.
///
/// This is [`apply_command`] itself, so both always agree about one state, but it stops where the answer is known: a batch
/// ends after the first message that writes. `base` must not change meanwhile.
pub fn preview(base: &(dyn Kv + Sync), command: &Bytes) -> Result<Option<Reply>, Fatal> {
    let mut cache = HotCache::default();
    let mut view = View::preview(base, &mut cache)?;
    let last = view.applied.last.unwrap_or_default();
    let next = record::LogId {
        index: last.index + 1,
        ..last
    };
    let mut effects = Vec::new();
    let reply = apply_command(&mut view, &next, command, &mut effects)?;
    Ok((view.is_unwritten() && effects.is_empty()).then_some(reply))
}
