//! Read-only questions to the state. All take any [`Kv`]: a view in `apply`, a database on a node.

pub mod agent;
pub mod delivery;
pub mod login;
pub mod receipt;
pub mod topic;

use std::ops::Range;

use agentpost_proto::command::Sweep;
use agentpost_proto::id::{KeyId, MessageId, TeamId};
use agentpost_proto::record::{
    Applied, Cursor, DayCount, InboxEntry, InboxHead, Key, Message, NodeIds, Team, TeamHead,
};
use agentpost_proto::{limits, time};

use crate::apply::inbox::find_entry;
use crate::apply::principal::is_valid;
use crate::keys::{self, ReadState};
use crate::kv::{Fatal, Kv, Order, Row};
use crate::mutant::{self, Mutant};
use crate::view::{decode, load};

/// An entry of an inbox with its message.
#[derive(Debug, Clone)]
pub struct InboxItem {
    /// The entry's place: rises along the inbox, on every node the same.
    pub seq: u64,
    /// Its dense number.
    pub position: u64,
    /// 0 while unread.
    pub read_at_ms: u64,
    /// What was sent.
    pub message: Message,
}

/// What a page shall hold.
#[derive(Debug, Clone)]
pub struct PageQuery<'a> {
    /// Continue behind this entry.
    pub after_seq: Option<u64>,
    /// Oldest or newest first.
    pub order: Order,
    /// Messages at most.
    pub limit: usize,
    /// Only unread, only read ones, or both.
    pub state: Option<ReadState>,
    /// Only from this agent.
    pub from: Option<&'a str>,
    /// Only of this topic.
    pub topic: Option<&'a str>,
}

/// A page of an inbox.
#[derive(Debug, Clone)]
pub struct Page {
    /// In the order asked for.
    pub items: Vec<InboxItem>,
    /// Where the next page continues; that of the query when nothing was examined.
    pub last_seq: Option<u64>,
}

/// Every node that was ever a member.
pub fn node_ids(kv: &(impl Kv + ?Sized)) -> Result<Vec<u64>, Fatal> {
    let ids: Option<NodeIds> = load(kv, &keys::node_ids())?;
    Ok(ids.unwrap_or_default().used)
}

/// A page of an inbox; examines at most `limits::PAGE_EXAMINED_MAX` entries.
pub fn inbox_page(kv: &impl Kv, team: TeamId, agent: &str, query: &PageQuery<'_>) -> Result<Page, Fatal> {
    let frozen = kv.frozen();
    let kv = frozen.as_ref();
    let mut bytes = 0;
    let mut page = Page {
        items: Vec::new(),
        last_seq: query.after_seq,
    };
    for row in entries(kv, team, agent, query)?.take(limits::PAGE_EXAMINED_MAX) {
        if page.items.len() == query.limit || bytes > limits::PAGE_BYTES_MAX {
            break;
        }
        let (seq, entry) = row?;
        page.last_seq = Some(seq);
        let item = item(kv, team, seq, entry)?;
        if query.from.is_none_or(|from| item.message.from == from)
            && query.topic.is_none_or(|topic| item.message.topic == topic)
        {
            bytes += item.message.body.len();
            page.items.push(item);
        }
    }
    Ok(page)
}

/// Entries of an inbox behind `after_seq`, oldest first, at most `limit`.
pub fn inbox_after(
    kv: &impl Kv,
    team: TeamId,
    agent: &str,
    after_seq: u64,
    limit: usize,
) -> Result<Vec<InboxItem>, Fatal> {
    entries_beyond(kv, team, agent, Order::Ascending, after_seq)?
        .take(limit)
        .map(|row| row.and_then(|(seq, entry)| item(kv, team, seq, entry)))
        .collect()
}

/// Seqs of an inbox behind `after_seq`, oldest first, at most `limit`, each with the seq of its message: for one
/// who joins several inboxes and needs few of their messages.
pub fn inbox_seqs_after(
    kv: &impl Kv,
    team: TeamId,
    agent: &str,
    after_seq: u64,
    limit: usize,
) -> Result<Vec<(u64, u64)>, Fatal> {
    entries_beyond(kv, team, agent, Order::Ascending, after_seq)?
        .take(limit)
        .map(|row| row.map(|(seq, entry)| (seq, entry.message_seq)))
        .collect()
}

/// All entries of an inbox beyond `seq` in this order.
fn entries_beyond<'a>(
    kv: &'a (impl Kv + ?Sized),
    team: TeamId,
    agent: &str,
    order: Order,
    seq: u64,
) -> Result<Entries<'a>, Fatal> {
    let query = PageQuery {
        after_seq: Some(seq),
        order,
        limit: usize::MAX,
        state: None,
        from: None,
        topic: None,
    };
    entries(kv, team, agent, &query)
}

/// The message at a seq.
pub fn message_at(kv: &impl Kv, team: TeamId, seq: u64) -> Result<Option<Message>, Fatal> {
    load(kv, &keys::message(team, seq))
}

type Entries<'a> = Box<dyn Iterator<Item = Result<(u64, InboxEntry), Fatal>> + 'a>;

/// The entries that a query walks: read and unread ones stand in two ranges, joined here by seq.
fn entries<'a>(
    kv: &'a (impl Kv + ?Sized),
    team: TeamId,
    agent: &str,
    query: &PageQuery<'_>,
) -> Result<Entries<'a>, Fatal> {
    let head = inbox_head(kv, team, agent)?;
    let range = |state: ReadState, floor: u64| match (query.order, query.after_seq) {
        (Order::Ascending, after) => keys::inbox_from(
            state,
            team,
            agent,
            floor.max(after.map_or(0, |seq| seq.saturating_add(1 + u64::from(mutant::on(Mutant::PageEdge))))),
        ),
        (Order::Descending, Some(before)) => keys::inbox_until(state, team, agent, before),
        (Order::Descending, None) => keys::inbox_from(state, team, agent, floor),
    };
    let rows = |state, floor| kv.range(range(state, floor), query.order).map(parse_entry);
    Ok(match query.state {
        Some(ReadState::Unread) => Box::new(rows(ReadState::Unread, head.unread_floor)),
        Some(ReadState::Read) => Box::new(rows(ReadState::Read, head.read_floor)),
        None => {
            let mut unread = rows(ReadState::Unread, head.unread_floor).peekable();
            let mut read = rows(ReadState::Read, head.read_floor).peekable();
            let order = query.order;
            Box::new(std::iter::from_fn(move || match (unread.peek(), read.peek()) {
                (Some(Ok((a, _))), Some(Ok((b, _)))) if (a < b) == (order == Order::Ascending) => unread.next(),
                (_, Some(_)) => read.next(),
                (_, None) => unread.next(),
            }))
        }
    })
}

fn parse_entry(row: Result<Row, Fatal>) -> Result<(u64, InboxEntry), Fatal> {
    let (key, value) = row?;
    let seq = keys::trailing_number(&key).ok_or_else(|| Fatal::Invariant("a short inbox key".to_owned()))?;
    Ok((seq, decode(value)?))
}

fn item(kv: &(impl Kv + ?Sized), team: TeamId, seq: u64, entry: InboxEntry) -> Result<InboxItem, Fatal> {
    let message = load(kv, &keys::message(team, entry.message_seq))?.ok_or_else(|| {
        Fatal::Invariant(format!(
            "an inbox entry of {team} without its message {}",
            entry.message_seq
        ))
    })?;
    Ok(InboxItem {
        seq,
        position: entry.position,
        read_at_ms: entry.read_at_ms,
        message,
    })
}

/// Messages of a whole team behind `after_seq`, oldest first, at most `limit`.
pub fn team_after(kv: &impl Kv, team: TeamId, after_seq: u64, limit: usize) -> Result<Vec<Message>, Fatal> {
    let from = after_seq.saturating_add(1);
    kv.range(keys::messages_from(team, from), Order::Ascending)
        .take(limit)
        .map(|row| row.and_then(|(_, value)| decode(value)))
        .collect()
}

/// Messages of a whole team before `before_seq`, newest first, at most `limit`. Each may have a body of
/// `limits::BODY_BYTES_MAX`: who shows many asks for a few at a time.
pub fn team_before(kv: &impl Kv, team: TeamId, before_seq: u64, limit: usize) -> Result<Vec<Message>, Fatal> {
    kv.range(keys::messages_until(team, before_seq), Order::Descending)
        .take(limit)
        .map(|row| row.and_then(|(_, value)| decode(value)))
        .collect()
}

/// Entries of an inbox before `before_seq`, newest first, at most `limit`. See [`team_before`] for their size.
pub fn inbox_before(
    kv: &impl Kv,
    team: TeamId,
    agent: &str,
    before_seq: u64,
    limit: usize,
) -> Result<Vec<InboxItem>, Fatal> {
    let frozen = kv.frozen();
    let kv = frozen.as_ref();
    entries_beyond(kv, team, agent, Order::Descending, before_seq)?
        .take(limit)
        .map(|row| row.and_then(|(seq, entry)| item(kv, team, seq, entry)))
        .collect()
}

/// Seqs of an inbox before `before_seq`, newest first, at most `limit`, each with the seq of its message: see
/// [`inbox_seqs_after`].
pub fn inbox_seqs_before(
    kv: &impl Kv,
    team: TeamId,
    agent: &str,
    before_seq: u64,
    limit: usize,
) -> Result<Vec<(u64, u64)>, Fatal> {
    entries_beyond(kv, team, agent, Order::Descending, before_seq)?
        .take(limit)
        .map(|row| row.map(|(seq, entry)| (seq, entry.message_seq)))
        .collect()
}

/// The message that `agent` received under this id.
pub fn received(kv: &impl Kv, team: TeamId, agent: &str, id: MessageId) -> Result<Option<InboxItem>, Fatal> {
    let frozen = kv.frozen();
    let kv = frozen.as_ref();
    match find_entry(kv, team, agent, id)? {
        Some((seq, _, entry)) => item(kv, team, seq, entry).map(Some),
        None => Ok(None),
    }
}

/// A message by id, whoever received it.
pub fn message(kv: &impl Kv, team: TeamId, id: MessageId) -> Result<Option<Message>, Fatal> {
    let Some(seq) = kv
        .get(&keys::message_id(team, id))?
        .and_then(|row| keys::trailing_number(&row))
    else {
        return Ok(None);
    };
    load(kv, &keys::message(team, seq))
}

/// How many refer to a stored message: inbox entries, open and dead deliveries, its publish.
pub fn references(kv: &(impl Kv + ?Sized), team: TeamId, seq: u64) -> Result<u64, Fatal> {
    let row = kv.get(&keys::references(team, seq))?;
    Ok(row.and_then(|row| keys::trailing_number(&row)).unwrap_or(1))
}

/// The key with this keyed hash, revoked and expired ones included.
pub fn key_by_hash(kv: &impl Kv, hash: &[u8]) -> Result<Option<Key>, Fatal> {
    let Some(route) = kv.get(&keys::key_hash(hash))? else {
        return Ok(None);
    };
    match (
        TeamId::from_slice(&route[..route.len().min(16)]),
        KeyId::from_slice(&route[route.len().min(16)..]),
    ) {
        (Ok(team), Ok(id)) => load(kv, &keys::key(team, id)),
        _ => Err(Fatal::Invariant("a key route that is not a team and a key".to_owned())),
    }
}

/// A key of a team, revoked and expired ones included.
pub fn key(kv: &impl Kv, team: TeamId, id: KeyId) -> Result<Option<Key>, Fatal> {
    load(kv, &keys::key(team, id))
}

/// The keys of a team, by id.
pub fn keys(kv: &impl Kv, team: TeamId) -> Result<Vec<Key>, Fatal> {
    kv.range(keys::keys_of(team), Order::Ascending)
        .map(|row| row.and_then(|(_, value)| decode(value)))
        .collect()
}

/// How many keys of a team are neither revoked nor expired at `wall_ms`.
pub fn active_keys(kv: &impl Kv, team: TeamId, wall_ms: u64) -> Result<u64, Fatal> {
    let keys = keys(kv, team)?;
    Ok(keys.iter().filter(|key| is_valid(key, wall_ms)).count() as u64)
}

/// A team.
pub fn team(kv: &impl Kv, team: TeamId) -> Result<Option<Team>, Fatal> {
    load(kv, &keys::team(team))
}

/// The team of this name, which may be any text.
pub fn team_named(kv: &impl Kv, name: &str) -> Result<Option<TeamId>, Fatal> {
    // No team is named so, and no key can hold it.
    if name.contains('\0') {
        return Ok(None);
    }
    let id = kv.get(&keys::team_name(name))?;
    id.map(|id| TeamId::from_slice(&id).map_err(|e| Fatal::Invariant(e.to_string())))
        .transpose()
}

/// All teams but the reserved one, by id.
pub fn teams(kv: &impl Kv) -> Result<Vec<Team>, Fatal> {
    let all: Vec<Team> = kv
        .range(keys::teams(), Order::Ascending)
        .map(|row| row.and_then(|(_, value)| decode(value)))
        .collect::<Result<_, _>>()?;
    Ok(all
        .into_iter()
        .filter(|team| team.id != TeamId::SYSTEM.0.as_slice())
        .collect())
}

/// Whether the first admin key exists.
pub fn has_admin(kv: &impl Kv) -> Result<bool, Fatal> {
    Ok(kv.get(&keys::team(TeamId::SYSTEM))?.is_some())
}

/// The counters of a team; zeros for one that never sent.
pub fn team_head(kv: &impl Kv, team: TeamId) -> Result<TeamHead, Fatal> {
    Ok(load(kv, &keys::team_head(team))?.unwrap_or_default())
}

/// Events that a team's members made in the UTC day of `wall_ms`. A day that the state has left never comes back:
/// the state's own day counts for a clock that is behind it.
pub fn events_today(kv: &impl Kv, team: TeamId, wall_ms: u64) -> Result<u64, Fatal> {
    let head = team_head(kv, team)?;
    let over = head.day < time::day(wall_ms);
    Ok(if over { 0 } else { head.events_today })
}

/// A counter of an agent's day: the row of [`keys::send_count`], [`keys::read_count`] or
/// [`keys::registration_count`]. It is the count of its own day, which may be over.
pub fn day_count(kv: &impl Kv, row: &[u8]) -> Result<DayCount, Fatal> {
    Ok(load(kv, row)?.unwrap_or_default())
}

/// The counters of an inbox; zeros for one that never received.
pub fn inbox_head(kv: &(impl Kv + ?Sized), team: TeamId, agent: &str) -> Result<InboxHead, Fatal> {
    Ok(load(kv, &keys::inbox_head(team, agent))?.unwrap_or_default())
}

/// The cursor of (team, agent, client id); an empty client id is the mailbox cursor of `agent`.
pub fn cursor(kv: &impl Kv, team: TeamId, agent: &str, client_id: &str) -> Result<Option<Cursor>, Fatal> {
    load(kv, &keys::cursor(team, agent, client_id))
}

/// What the state says about itself: the last applied entry, time, the state hash.
pub fn applied(kv: &impl Kv) -> Result<Applied, Fatal> {
    Ok(load(kv, &keys::applied())?.unwrap_or_default())
}

/// Whether time matters to anything here: a delivery, an idempotency key, mail, a lease, a login. An unused cursor
/// is in no hurry: two months of commands that only carry time would cost more than its row.
pub fn ages(kv: &impl Kv) -> Result<bool, Fatal> {
    for range in [
        keys::endpoint_heads(),
        keys::claims(),
        keys::idempotency_expiries_until(u64::MAX),
        keys::delivery_ageings_until(u64::MAX),
        keys::leases_before(u32::MAX),
        keys::login_expiries_until(u64::MAX),
    ] {
        if has_row(kv, range)? {
            return Ok(true);
        }
    }
    for team in teams(kv)? {
        if let Ok(id) = TeamId::from_slice(&team.id) {
            let head = team_head(kv, id)?;
            if has_row(kv, keys::messages_from(id, head.swept_seq + 1))? {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn has_row(kv: &(impl Kv + ?Sized), range: Range<Vec<u8>>) -> Result<bool, Fatal> {
    let first = kv.range(range, Order::Ascending).next().transpose()?;
    Ok(first.is_some())
}

/// The next sweep that has something to remove at these times, if any.
pub fn sweep_due(kv: &impl Kv, cluster_ms: u64, wall_ms: u64) -> Result<Option<Sweep>, Fatal> {
    if has_row(kv, keys::idempotency_expiries_until(cluster_ms))?
        || has_row(kv, keys::message_expiries_until(wall_ms))?
        || has_row(kv, keys::delivery_ageings_until(cluster_ms))?
        || has_row(kv, keys::leases_before(time::day(wall_ms)))?
        || has_row(kv, keys::login_expiries_until(cluster_ms))?
        || has_row(
            kv,
            keys::cursor_uses_until(cluster_ms.saturating_sub(limits::CURSOR_TTL_MS)),
        )?
    {
        return Ok(Some(Sweep::default()));
    }
    for team in teams(kv)? {
        let Ok(id) = TeamId::from_slice(&team.id) else {
            continue;
        };
        let head = team_head(kv, id)?;
        if retention_due(kv, id, head.swept_seq, cluster_ms)?.is_some() {
            return Ok(Some(Sweep { team_id: team.id }));
        }
    }
    Ok(None)
}

/// The next message behind `swept_seq` that retention gives up. A team's messages stand in the order of their
/// age; one that still has receivers to come holds up those behind it.
pub(crate) fn retention_due(
    kv: &(impl Kv + ?Sized),
    team: TeamId,
    swept_seq: u64,
    cluster_ms: u64,
) -> Result<Option<Message>, Fatal> {
    let oldest = kv
        .range(keys::messages_from(team, swept_seq + 1), Order::Ascending)
        .next()
        .transpose()?;
    let Some((_, value)) = oldest else {
        return Ok(None);
    };
    let message: Message = decode(value)?;
    let is_kept = message.created_ct_ms + limits::RETENTION_MS > cluster_ms
        || topic::fanout_pending(kv, team, &message.topic, message.seq)?;
    Ok(Some(message).filter(|_| !is_kept))
}
