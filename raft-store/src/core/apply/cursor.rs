//! Cursors: the positions of readers. A cursor that nobody used for long is removed. Each has an index row at its first
//! use, in a [`queue`]; when it is due, the sweep moves it to the last use. So an ack writes only the cursor, which notes
//! its last use once in `limits::CURSOR_TOUCH_MS`.
//!
//! An implied ack (an answered ping) may create a cursor too. Otherwise a client that lost its connection before its
//! first ack would begin at a later position and miss messages.

use agentpost_proto::command::{AckCursors, CursorAck, ErrorCode};
use agentpost_proto::id::TeamId;
use agentpost_proto::limits;
use agentpost_proto::record::{Cursor, TeamHead};
use bytes::Bytes;

use super::{Context, Stop, queue, reject};
use crate::core::keys::{self, Queue};
use crate::core::kv::Fatal;
use crate::core::query;
use crate::core::query::queue::Now;
use crate::core::view::View;

/// Moves cursors forward. Acks come from nodes, which have checked them against what they delivered; here an ack is
/// only capped at the team's last seq. An ack that cannot be stored is skipped, because the others belong to other
/// clients.
pub fn ack(view: &mut View<'_>, context: &Context<'_>, op: &AckCursors) -> Result<(), Stop> {
    if context.principal.is_some() {
        return reject(ErrorCode::Forbidden, "only a node moves cursors");
    }
    if op.acks.len() > limits::ACKS_PER_ENTRY_MAX {
        return reject(ErrorCode::Invalid, "too many cursors in one entry");
    }
    for ack in &op.acks {
        if let Some(team) = team_of(ack) {
            move_forward(view, context, team, ack)?;
        }
    }
    Ok(())
}

/// The team of an ack, if its agent and client id can be part of a key.
fn team_of(ack: &CursorAck) -> Option<TeamId> {
    let fits = |name: &str, bytes_max: usize| name.len() <= bytes_max && !name.contains('\0');
    let named = fits(&ack.agent, limits::AGENT_ID_BYTES_MAX) && fits(&ack.client_id, limits::CLIENT_ID_BYTES_MAX);
    TeamId::from_slice(&ack.team_id).ok().filter(|_| named)
}

fn move_forward(view: &mut View<'_>, context: &Context<'_>, team: TeamId, ack: &CursorAck) -> Result<(), Fatal> {
    let mut head: TeamHead = query::team::head(view, team)?;
    let key = keys::cursor(team, &ack.agent, &ack.client_id);
    let stored: Option<Cursor> = view.load(&key)?;
    let is_named = !ack.client_id.is_empty();
    if stored.is_none() && is_named && head.cursors >= limits::CURSORS_MAX {
        return Ok(());
    }
    let mut cursor = stored.unwrap_or_default();
    if !(ack.implied && cursor.acked) {
        cursor.seq = ack.seq.min(head.last_seq).max(cursor.seq);
        cursor.acked |= !ack.implied;
    }
    // 0 means that the cursor is new and has no index row.
    let is_noted = cursor.used_ct_ms != 0;
    if !is_noted || cursor.used_ct_ms + limits::CURSOR_TOUCH_MS <= context.cluster_ms {
        cursor.used_ct_ms = context.cluster_ms.max(1);
    }
    if !is_noted {
        let note = keys::cursor_use(cursor.used_ct_ms, team, &ack.agent, &ack.client_id);
        view.put(note, Bytes::new());
        if is_named {
            head.cursors += 1;
            view.store(keys::team_head(team), &head);
        }
    }
    // A cursor at 0 is stored too: with it a client resumes at the beginning, without it at the end.
    if stored != Some(cursor) {
        view.store(key, &cursor);
    }
    Ok(())
}

/// Removes cursors that nobody used for `limits::CURSOR_TTL_MS`. The index row of one that was used moves to its last
/// use. Returns how many index rows were due, at most `rows`.
pub(super) fn sweep(view: &mut View<'_>, now: Now, rows: usize) -> Result<usize, Fatal> {
    let due = queue::take(view, Queue::Cursors, now, rows)?;
    for (note, _) in &due {
        let short = || Fatal::Invariant("a short cx key".to_owned());
        let (team, is_named) = keys::parse_cursor_use(note).ok_or_else(short)?;
        let key = keys::cursor_of_use(note).ok_or_else(short)?;
        let cursor: Cursor = view.load(&key)?.unwrap_or_default();
        if cursor.used_ct_ms + limits::CURSOR_TTL_MS > now.cluster_ms {
            view.put(keys::cursor_used_at(note, cursor.used_ct_ms), Bytes::new());
            continue;
        }
        view.delete(key);
        if is_named {
            let mut head: TeamHead = query::team::head(view, team)?;
            head.cursors = head.cursors.saturating_sub(1);
            view.store(keys::team_head(team), &head);
        }
    }
    let removed = due.len();
    queue::remove(view, Queue::Cursors, due.into_iter().map(|(key, _)| key));
    Ok(removed)
}
