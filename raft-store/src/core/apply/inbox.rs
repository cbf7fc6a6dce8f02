//! Inboxes: appending entries, marking them read, removing them.

use agentpost_proto::command::{ErrorCode, MarkRead, Permission};
use agentpost_proto::id::{AgentId, MessageId, TeamId};
use agentpost_proto::limits;
use agentpost_proto::record::{InboxEntry, InboxHead, Message, TeamHead};

use super::check::parsed;
use super::principal::Caller;
use super::{Context, Stop, reject};
use crate::core::keys::{self, ReadState};
use crate::core::kv::{Fatal, Kv, Order};
use crate::core::query;
use crate::core::view::View;

/// Appends an entry at `seq` for the message at `message_seq`. The two differ when a chunk of a fan-out job appends it.
/// An inbox over its bound loses its oldest read entry, or its oldest entry if none is read, so that a sender is never
/// rejected because a receiver does not read.
pub fn append(
    view: &mut View<'_>,
    team: TeamId,
    team_head: &mut TeamHead,
    agent: &str,
    seq: u64,
    message_seq: u64,
) -> Result<(), Fatal> {
    let mut head: InboxHead = view.load(&keys::inbox_head(team, agent))?.unwrap_or_default();
    head.last_position += 1;
    head.entries += 1;
    head.unread += 1;
    let entry = InboxEntry {
        position: head.last_position,
        message_seq,
        read_at_ms: 0,
    };
    view.store(keys::inbox_entry(ReadState::Unread, team, agent, seq), &entry);
    view.store(keys::inbox_head(team, agent), &head);
    if head.entries > limits::INBOX_ENTRIES_MAX {
        remove_oldest(view, team, team_head, agent, &head)?;
    }
    Ok(())
}

/// Marks a received message read or unread. Marking it read again keeps the first `read_at_ms`.
pub fn mark_read(view: &mut View<'_>, context: &Context<'_>, op: &MarkRead) -> Result<(), Stop> {
    let caller = Caller::with(view, context, Permission::Read)?;
    caller.acts_as(&op.agent)?;
    parsed(op.agent.parse::<AgentId>())?;
    let id = parsed(MessageId::from_slice(&op.message_id))?;
    let team = caller.team;
    let Some((seq, state, mut entry)) = query::inbox::find_entry(view, team, &op.agent, id)? else {
        return reject(ErrorCode::NotFound, "no such message in this inbox");
    };
    let wanted = if op.read { ReadState::Read } else { ReadState::Unread };
    if state == wanted {
        return Ok(());
    }
    let mut head: InboxHead = view.load(&keys::inbox_head(team, &op.agent))?.unwrap_or_default();
    match wanted {
        ReadState::Read => {
            head.unread -= 1;
            head.read_floor = head.read_floor.min(seq);
            entry.read_at_ms = context.wall_ms.max(1);
        }
        ReadState::Unread => {
            head.unread += 1;
            head.unread_floor = head.unread_floor.min(seq);
            entry.read_at_ms = 0;
        }
    }
    view.delete(keys::inbox_entry(state, team, &op.agent, seq));
    view.store(keys::inbox_entry(wanted, team, &op.agent, seq), &entry);
    view.store(keys::inbox_head(team, &op.agent), &head);
    Ok(())
}

/// Removes the oldest read entry of an inbox, or its oldest entry if none is read.
fn remove_oldest(
    view: &mut View<'_>,
    team: TeamId,
    team_head: &mut TeamHead,
    agent: &str,
    head: &InboxHead,
) -> Result<(), Fatal> {
    for (state, floor) in [
        (ReadState::Read, head.read_floor),
        (ReadState::Unread, head.unread_floor),
    ] {
        let first = view
            .range(keys::inbox_from(state, team, agent, floor), Order::Ascending)
            .next()
            .transpose()?;
        if let Some(seq) = first.and_then(|(key, _)| keys::trailing_number(&key)) {
            return remove_entry(view, team, team_head, agent, state, seq);
        }
    }
    Ok(())
}

/// Removes one entry, and the message if nothing else refers to it.
pub(super) fn remove_entry(
    view: &mut View<'_>,
    team: TeamId,
    team_head: &mut TeamHead,
    agent: &str,
    state: ReadState,
    seq: u64,
) -> Result<(), Fatal> {
    let key = keys::inbox_entry(state, team, agent, seq);
    let Some(entry) = view.load::<InboxEntry>(&key)? else {
        return Ok(());
    };
    view.delete(key);
    let mut head: InboxHead = view.load(&keys::inbox_head(team, agent))?.unwrap_or_default();
    head.entries -= 1;
    head.max_removed_seq = head.max_removed_seq.max(seq);
    match state {
        // Only the removal of the first row raises the floor, because the rows above it still exist.
        ReadState::Read if is_first(view, team, agent, state, head.read_floor, seq)? => head.read_floor = seq + 1,
        ReadState::Read => {}
        ReadState::Unread => {
            head.unread -= 1;
            if is_first(view, team, agent, state, head.unread_floor, seq)? {
                head.unread_floor = seq + 1;
            }
        }
    }
    view.store(keys::inbox_head(team, agent), &head);
    release_message(view, team, team_head, entry.message_seq)
}

/// Whether there is no row between the floor and `seq`.
fn is_first(view: &View<'_>, team: TeamId, agent: &str, state: ReadState, floor: u64, seq: u64) -> Result<bool, Fatal> {
    let range = keys::inbox_from(state, team, agent, floor);
    let first = view.range(range, Order::Ascending).next().transpose()?;
    Ok(first
        .and_then(|(key, _)| keys::trailing_number(&key))
        .is_none_or(|next| next > seq))
}

/// Removes one reference to a message. The last one deletes the message. The count is a row of its own, so that the
/// body is not written again.
pub(super) fn release_message(
    view: &mut View<'_>,
    team: TeamId,
    team_head: &mut TeamHead,
    seq: u64,
) -> Result<(), Fatal> {
    let references = query::inbox::references(view, team, seq)?;
    if references > 1 {
        set_references(view, team, seq, references - 1);
        return Ok(());
    }
    let key = keys::message(team, seq);
    let message: Message = view
        .load(&key)?
        .ok_or_else(|| Fatal::Invariant(format!("a reference of {team} to the missing message {seq}")))?;
    view.delete(key);
    let id = MessageId::from_slice(&message.id).map_err(|e| Fatal::Invariant(e.to_string()))?;
    view.delete(keys::message_id(team, id));
    if message.expires_at_ms != 0 {
        view.delete(keys::message_expiry(message.expires_at_ms, team, seq));
    }
    team_head.max_removed_seq = team_head.max_removed_seq.max(seq);
    Ok(())
}

/// Adds references to a message. Inbox entries, open and dead deliveries and the publish itself hold references.
pub(super) fn retain_message(view: &mut View<'_>, team: TeamId, seq: u64, more: u64) -> Result<(), Fatal> {
    let references = query::inbox::references(view, team, seq)?;
    set_references(view, team, seq, references + more);
    Ok(())
}

fn set_references(view: &mut View<'_>, team: TeamId, seq: u64, references: u64) {
    let key = keys::references(team, seq);
    if references == 1 {
        view.delete(key);
    } else {
        view.put(key, keys::number(references));
    }
}
