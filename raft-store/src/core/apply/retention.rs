//! The end of messages by time: each expires at the time that its sender named, and retention ends for it at an age.
//!
//! Expiry is wall time, and each message that expires has a row of its own in a queue. An age is cluster time, in which
//! the messages of a team are ordered by their seq, so a team has one row in a queue: the time at which retention ends
//! for its oldest message. When it is due, the sweep gives the team a turn: it walks from `swept_seq` on by number, and
//! then puts the row where the team's next message is due. A team without messages has no row. Nothing here looks at
//! a team that has nothing due, and a busy team waits behind every team whose oldest message is due earlier.

use agentpost_proto::id::TeamId;
use agentpost_proto::limits::RETENTION_MS;
use agentpost_proto::record::{Message, Receivers, TeamHead};
use bytes::Bytes;

use super::inbox::{release_message, remove_entry};
use super::{Context, queue};
use crate::core::keys::{self, Queue, ReadState};
use crate::core::kv::{Fatal, Kv, Order};
use crate::core::query;
use crate::core::query::queue::{Now, first_due};
use crate::core::view::{View, decode};

/// Upper bound on the rows that a team removes in one turn.
const TURN_ROWS_MAX: usize = 64;
/// Upper bound on the numbers without a message that a team passes in one turn. Each costs one read.
const TURN_GAPS_MAX: usize = 512;
/// How long a team waits when its oldest message has an unfinished fan-out job.
const FANOUT_WAIT_MS: u64 = 1_000;

/// Puts a message that is about to be stored into the queues.
pub(super) fn watch(view: &mut View<'_>, context: &Context<'_>, team: TeamId, head: &mut TeamHead, message: &Message) {
    if !head.in_retention {
        head.in_retention = true;
        view.put(
            keys::retention_end(context.cluster_ms + RETENTION_MS, team),
            Bytes::new(),
        );
    }
    watch_expiry(view, context, team, message);
}

/// Puts a message into the queue of those that expire. One that lives for longer than retention needs no row.
pub(super) fn watch_expiry(view: &mut View<'_>, context: &Context<'_>, team: TeamId, message: &Message) {
    let expires_at_ms = message.expires_at_ms;
    if expires_at_ms == 0 || expires_at_ms >= context.wall_ms.saturating_add(RETENTION_MS) {
        return;
    }
    // Later than now: the queue's floor may lie at the present.
    let at_ms = expires_at_ms.max(context.wall_ms + 1);
    view.put(keys::message_expiry(at_ms, team, message.seq), Bytes::new());
}

/// Removes messages that have expired from the inboxes. Returns how many rows were removed; no message is begun after
/// `rows` of them.
pub(super) fn sweep_expired(view: &mut View<'_>, now: Now, rows: usize) -> Result<usize, Fatal> {
    let (mut removed, mut over) = (0, Vec::new());
    for (expiry, _) in queue::take(view, Queue::Expiry, now, rows)? {
        if removed >= rows {
            break;
        }
        let (team, seq) =
            keys::parse_message_expiry(&expiry).ok_or_else(|| Fatal::Invariant("a short mx key".to_owned()))?;
        let done = match view.load::<Message>(&keys::message(team, seq))? {
            // A fan-out job is not finished. Its last chunk writes a row again.
            Some(message) if query::topic::fanout_pending(view, team, &message.topic, seq)? => true,
            Some(message) => {
                let mut head: TeamHead = view.load(&keys::team_head(team))?.unwrap_or_default();
                let (entries, done) = give_up(view, team, &mut head, &message, rows - removed)?;
                view.store(keys::team_head(team), &head);
                removed += entries;
                done
            }
            None => true,
        };
        if !done {
            break;
        }
        removed += 1;
        over.push(expiry);
    }
    queue::remove(view, Queue::Expiry, over);
    Ok(removed)
}

/// Removes messages for which retention is over from the inboxes, in turns of one team. Returns how many rows were
/// removed; no turn is begun after `rows` of them.
pub(super) fn sweep_old(view: &mut View<'_>, now: Now, rows: usize) -> Result<usize, Fatal> {
    let mut removed = 0;
    while removed < rows
        && let Some((key, _)) = first_due(view, Queue::Retention, now)?
    {
        removed += turn(view, now.cluster_ms, key, TURN_ROWS_MAX.min(rows - removed))?;
    }
    Ok(removed)
}

/// The turn of the team that is first in the queue. Returns how many rows were removed, at least one.
fn turn(view: &mut View<'_>, cluster_ms: u64, key: Bytes, rows: usize) -> Result<usize, Fatal> {
    let short = || Fatal::Invariant("a short rt key".to_owned());
    let team = keys::parse_retention_end(&key).ok_or_else(short)?;
    let mut queued_ms = keys::time_of(&key).ok_or_else(short)?;
    let mut head: TeamHead = view.load(&keys::team_head(team))?.unwrap_or_default();
    let (mut removed, mut gaps) = (0, 0);
    let next_ms = loop {
        if removed >= rows || gaps >= TURN_GAPS_MAX {
            break Some(queued_ms);
        }
        let seq = head.swept_seq + 1;
        if seq > head.last_seq {
            break None;
        }
        let Some(message) = view.load::<Message>(&keys::message(team, seq))? else {
            head.swept_seq = seq;
            gaps += 1;
            continue;
        };
        let ends_ms = message.created_ct_ms + RETENTION_MS;
        if ends_ms > cluster_ms {
            break Some(ends_ms);
        }
        queued_ms = queued_ms.max(ends_ms);
        // It delays the messages after it.
        if query::topic::fanout_pending(view, team, &message.topic, seq)? {
            break Some(cluster_ms + FANOUT_WAIT_MS);
        }
        let (entries, done) = give_up(view, team, &mut head, &message, rows - removed)?;
        removed += entries;
        if done {
            removed += 1;
            // A dead letter may still refer to the message, but retention is done with it.
            head.swept_seq = seq;
        }
    };
    head.in_retention = next_ms.is_some();
    view.store(keys::team_head(team), &head);
    if next_ms != keys::time_of(&key) {
        queue::remove(view, Queue::Retention, [key]);
        if let Some(ends_ms) = next_ms {
            view.put(keys::retention_end(ends_ms, team), Bytes::new());
        }
    }
    Ok(removed.max(1))
}

/// Removes a message from the inboxes that have it. For a topic message each step removes the entries of one `rc` row,
/// and the last step also removes the publish's own reference. No step begins after `rows` removed rows. Returns how
/// many rows were removed, and whether the message is removed from all inboxes.
fn give_up(
    view: &mut View<'_>,
    team: TeamId,
    head: &mut TeamHead,
    message: &Message,
    rows: usize,
) -> Result<(usize, bool), Fatal> {
    if message.topic.is_empty() {
        return remove_from(view, team, head, &message.to, message.seq).map(|()| (0, true));
    }
    let mut removed = 0;
    let mut rest = keys::receivers_of(team, message.seq);
    loop {
        let last = view.range(rest.clone(), Order::Descending).next().transpose()?;
        let Some((key, value)) = last else {
            return Ok((removed, true));
        };
        if removed >= rows {
            return Ok((removed, false));
        }
        let receivers: Receivers = decode(value)?;
        let entry_seq = keys::trailing_number(&key).unwrap_or_default();
        for agent in &receivers.agents {
            remove_from(view, team, head, agent, entry_seq)?;
        }
        removed += receivers.agents.len() + 1;
        rest.end = key.to_vec();
        view.delete(key);
        if entry_seq == message.seq {
            release_message(view, team, head, message.seq)?;
        }
    }
}

fn remove_from(view: &mut View<'_>, team: TeamId, head: &mut TeamHead, agent: &str, seq: u64) -> Result<(), Fatal> {
    for state in [ReadState::Unread, ReadState::Read] {
        remove_entry(view, team, head, agent, state, seq)?;
    }
    Ok(())
}
