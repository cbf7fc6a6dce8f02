//! Inboxes: appending entries, marking them read, removing them.
//!
//! An inbox is two queues, its unread and its read entries. The head of the inbox knows the first row of each, so that
//! no command has to look for it: a scan would step over everything that was removed before. Only the command that
//! removes a first row looks for the next one, which is near.

use agentpost_proto::command::{ErrorCode, MarkRead, Permission};
use agentpost_proto::id::{AgentId, MessageId, TeamId};
use agentpost_proto::limits;
use agentpost_proto::record::{InboxEntry, InboxHead, Message, TeamHead};
use bytes::Bytes;

use super::check::parsed;
use super::principal::Caller;
use super::{Context, Stop, reject};
use crate::core::keys::{self, ReadState};
use crate::core::kv::{Fatal, Kv, Order};
use crate::core::query;
use crate::core::view::View;

/// Appends an entry for a message at `seq`, which differs from the message's own when a chunk of a fan-out job appends it.
/// An inbox over its bound loses its oldest read entry, or its oldest entry if none is read, so that a sender is never
/// rejected because a receiver does not read.
pub fn append(
    view: &mut View<'_>,
    team: TeamId,
    team_head: &mut TeamHead,
    agent: &str,
    seq: u64,
    message: &Message,
) -> Result<(), Fatal> {
    let mut head: InboxHead = query::inbox::head(view, team, agent)?;
    head.last_position += 1;
    let entry = InboxEntry {
        position: head.last_position,
        message_seq: message.seq,
        read_at_ms: 0,
        from: message.from.clone(),
        topic: message.topic.clone(),
        expires_at_ms: message.expires_at_ms,
    };
    let inbox = Inbox { team, agent };
    inbox.add(view, &mut head, ReadState::Unread, seq, &entry);
    if head.entries > limits::INBOX_ENTRIES_MAX {
        inbox.remove_oldest(view, team_head, &mut head)?;
    }
    view.store(keys::inbox_head(team, agent), &head);
    Ok(())
}

/// Marks a received message read or unread. Marking it read again keeps the first `read_at_ms`.
pub fn mark_read(view: &mut View<'_>, context: &Context<'_>, op: &MarkRead) -> Result<(), Stop> {
    let caller = Caller::with(view, context, Permission::Read)?;
    caller.acts_as(&op.agent)?;
    parsed(op.agent.parse::<AgentId>())?;
    let id = parsed(MessageId::from_slice(&op.message_id))?;
    let team = caller.team;
    let found = query::inbox::find_entry(view, team, &op.agent, id)?;
    let Some((seq, state, mut entry)) =
        found.filter(|(_, _, entry)| !query::inbox::has_expired(entry.expires_at_ms, context.wall_ms))
    else {
        return reject(ErrorCode::NotFound, "no such message in this inbox");
    };
    let wanted = if op.read { ReadState::Read } else { ReadState::Unread };
    if state == wanted {
        return Ok(());
    }
    entry.read_at_ms = match wanted {
        ReadState::Read => context.wall_ms.max(1),
        ReadState::Unread => 0,
    };
    let mut head: InboxHead = query::inbox::head(view, team, &op.agent)?;
    let inbox = Inbox { team, agent: &op.agent };
    inbox.remove(view, &mut head, state, seq)?;
    inbox.add(view, &mut head, wanted, seq, &entry);
    view.store(keys::inbox_head(team, &op.agent), &head);
    Ok(())
}

/// Removes one entry, if it exists, and the message if nothing else refers to it.
pub(super) fn remove_entry(
    view: &mut View<'_>,
    team: TeamId,
    team_head: &mut TeamHead,
    agent: &str,
    state: ReadState,
    seq: u64,
) -> Result<(), Fatal> {
    let Some(entry) = view.load::<InboxEntry>(&keys::inbox_entry(state, team, agent, seq))? else {
        return Ok(());
    };
    let mut head: InboxHead = query::inbox::head(view, team, agent)?;
    Inbox { team, agent }.remove(view, &mut head, state, seq)?;
    head.max_removed_seq = head.max_removed_seq.max(seq);
    view.store(keys::inbox_head(team, agent), &head);
    release_message(view, team, team_head, entry.message_seq)
}

/// The inbox of an agent. The caller loads its head and stores it again.
struct Inbox<'a> {
    team: TeamId,
    agent: &'a str,
}

impl Inbox<'_> {
    fn key(&self, state: ReadState, seq: u64) -> Bytes {
        keys::inbox_entry(state, self.team, self.agent, seq)
    }

    /// Adds a row.
    fn add(&self, view: &mut View<'_>, head: &mut InboxHead, state: ReadState, seq: u64, entry: &InboxEntry) {
        let is_alone = rows(head, state) == 0;
        head.entries += 1;
        head.unread += u64::from(state == ReadState::Unread);
        let first = first(head, state);
        *first = if is_alone { seq } else { seq.min(*first) };
        view.store(self.key(state, seq), entry);
    }

    /// Removes a row.
    fn remove(&self, view: &mut View<'_>, head: &mut InboxHead, state: ReadState, seq: u64) -> Result<(), Fatal> {
        view.delete(self.key(state, seq));
        head.entries -= 1;
        head.unread -= u64::from(state == ReadState::Unread);
        if *first(head, state) == seq {
            let next = match rows(head, state) {
                0 => None,
                _ => self.first_row(view, state, seq + 1)?,
            };
            *first(head, state) = next.unwrap_or(seq + 1);
        }
        Ok(())
    }

    /// The seq of the first row from `seq` on.
    fn first_row(&self, view: &View<'_>, state: ReadState, seq: u64) -> Result<Option<u64>, Fatal> {
        let range = keys::inbox_from(state, self.team, self.agent, seq);
        let first = view.range(range, Order::Ascending).next().transpose()?;
        Ok(first.and_then(|(key, _)| keys::trailing_number(&key)))
    }

    /// Removes the oldest read entry, or the oldest entry if none is read, with its message if nothing else refers to
    /// it.
    fn remove_oldest(&self, view: &mut View<'_>, team_head: &mut TeamHead, head: &mut InboxHead) -> Result<(), Fatal> {
        let state = match rows(head, ReadState::Read) {
            0 => ReadState::Unread,
            _ => ReadState::Read,
        };
        let mut seq = *first(head, state);
        let mut entry: Option<InboxEntry> = view.load(&self.key(state, seq))?;
        if entry.is_none() {
            // The first row is above the floor. That is no reason to stop every node.
            let Some(next) = self.first_row(view, state, seq)? else {
                return Ok(());
            };
            seq = next;
            entry = view.load(&self.key(state, seq))?;
        }
        let entry = entry.ok_or_else(|| Fatal::Invariant(format!("an inbox row {seq} that cannot be read again")))?;
        *first(head, state) = seq;
        self.remove(view, head, state, seq)?;
        head.max_removed_seq = head.max_removed_seq.max(seq);
        release_message(view, self.team, team_head, entry.message_seq)
    }
}

/// The number of read or of unread rows.
fn rows(head: &InboxHead, state: ReadState) -> u64 {
    match state {
        ReadState::Unread => head.unread,
        ReadState::Read => head.entries - head.unread,
    }
}

/// The seq of the first read or unread row. While there is none, no such row lies below it.
fn first(head: &mut InboxHead, state: ReadState) -> &mut u64 {
    match state {
        ReadState::Unread => &mut head.unread_floor,
        ReadState::Read => &mut head.read_floor,
    }
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
