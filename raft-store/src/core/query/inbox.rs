//! Inboxes, messages and cursors.

use agentpost_proto::id::{MessageId, TeamId};
use agentpost_proto::limits;
use agentpost_proto::record::{Cursor, InboxEntry, InboxHead, Message};

use crate::core::keys::{self, ReadState};
use crate::core::kv::{Fatal, Kv, Lookup, Order, Row};
use crate::core::mutant::{self, Mutant};
use crate::core::view::{decode, load};

/// An entry of an inbox with its message.
#[derive(Debug, Clone)]
pub struct InboxItem {
    /// The position of the entry in the team's sequence. It rises along the inbox and is the same on every node.
    pub seq: u64,
    /// The number of the entry in its inbox, without gaps.
    pub position: u64,
    /// The wall clock time at which the message was read, or 0 while it is unread.
    pub read_at_ms: u64,
    pub message: Message,
}

/// The parameters of a page.
#[derive(Debug, Clone)]
pub struct PageQuery<'a> {
    /// Continue after this entry.
    pub after_seq: Option<u64>,
    /// Whether the oldest or the newest come first.
    pub order: Order,
    /// How many matching messages to leave out before the first of the page.
    pub skip: usize,
    /// The maximal number of messages.
    pub limit: usize,
    /// Only unread or only read messages; `None` for both.
    pub state: Option<ReadState>,
    /// Only messages from this agent.
    pub from: Option<&'a str>,
    /// Only messages of this topic.
    pub topic: Option<&'a str>,
    /// The wall clock time: a message that has expired by then is left out.
    pub wall_ms: u64,
}

/// A page of an inbox.
#[derive(Debug, Clone)]
pub struct Page {
    /// The entries, in the order of the query.
    pub items: Vec<InboxItem>,
    /// The `after_seq` of the next page. It equals that of the query if nothing was examined.
    pub last_seq: Option<u64>,
    /// How many of `skip` matching messages were left out.
    pub skipped: usize,
    /// Whether the inbox has no entry after `last_seq`. Otherwise the page ended because it is full, or because enough
    /// was examined for one read.
    pub at_end: bool,
}

/// Whether a message that expires at `expires_at_ms`, or never if that is 0, has expired at `wall_ms`. From then on it is
/// shown to nobody, whether a sweep has removed it or not.
pub fn has_expired(expires_at_ms: u64, wall_ms: u64) -> bool {
    expires_at_ms != 0 && expires_at_ms <= wall_ms
}

/// A page of an inbox. It examines at most `limits::PAGE_EXAMINED_MAX` entries, and reads no message but those of the
/// page, with bodies of at most some `limits::PAGE_EXAMINED_BYTES_MAX`: it may have fewer messages than requested.
pub fn page(kv: &impl Kv, team: TeamId, agent: &str, query: &PageQuery<'_>) -> Result<Page, Fatal> {
    let frozen = kv.frozen();
    let kv = frozen.as_ref();
    let (mut bytes, mut examined) = (0, 0);
    let mut page = Page {
        items: Vec::new(),
        last_seq: query.after_seq,
        skipped: 0,
        at_end: true,
    };
    for row in entries(kv, team, agent, query)? {
        if page.items.len() == query.limit
            || bytes > limits::PAGE_EXAMINED_BYTES_MAX
            || examined == limits::PAGE_EXAMINED_MAX
        {
            page.at_end = false;
            break;
        }
        let (seq, entry) = row?;
        examined += 1;
        page.last_seq = Some(seq);
        if has_expired(entry.expires_at_ms, query.wall_ms) {
            continue;
        }
        if query.from.is_some_and(|from| entry.from != from) || query.topic.is_some_and(|topic| entry.topic != topic) {
            continue;
        }
        if page.skipped < query.skip {
            page.skipped += 1;
            continue;
        }
        let item = item(kv, team, seq, entry)?;
        bytes += item.message.body.len();
        page.items.push(item);
    }
    Ok(page)
}

/// The entries of an inbox after `after_seq`, oldest first, at most `limit`.
pub fn after(kv: &impl Kv, team: TeamId, agent: &str, after_seq: u64, limit: usize) -> Result<Vec<InboxItem>, Fatal> {
    entries_beyond(kv, team, agent, Order::Ascending, after_seq)?
        .take(limit)
        .map(|row| row.and_then(|(seq, entry)| item(kv, team, seq, entry)))
        .collect()
}

/// The entries of an inbox before `before_seq`, newest first, at most `limit`. See [`team_before`] for their size.
pub fn before(kv: &impl Kv, team: TeamId, agent: &str, before_seq: u64, limit: usize) -> Result<Vec<InboxItem>, Fatal> {
    let frozen = kv.frozen();
    let kv = frozen.as_ref();
    entries_beyond(kv, team, agent, Order::Descending, before_seq)?
        .take(limit)
        .map(|row| row.and_then(|(seq, entry)| item(kv, team, seq, entry)))
        .collect()
}

/// The seqs of the entries of an inbox after `after_seq`, oldest first, at most `limit`, each with the seq of its
/// message. It is for callers that merge several inboxes and load only few of the messages.
pub fn seqs_after(
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

/// The seqs of the entries of an inbox before `before_seq`, newest first, at most `limit`. See [`seqs_after`].
pub fn seqs_before(
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

/// All entries of an inbox after `seq`, in the direction of `order`.
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
        skip: 0,
        limit: usize::MAX,
        state: None,
        from: None,
        topic: None,
        wall_ms: 0,
    };
    entries(kv, team, agent, &query)
}

type Entries<'a> = Box<dyn Iterator<Item = Result<(u64, InboxEntry), Fatal>> + 'a>;

/// The entries that a query reads. Read and unread entries are in two ranges, which are merged by seq.
fn entries<'a>(
    kv: &'a (impl Kv + ?Sized),
    team: TeamId,
    agent: &str,
    query: &PageQuery<'_>,
) -> Result<Entries<'a>, Fatal> {
    let head = head(kv, team, agent)?;
    let range = |state: ReadState, floor: u64| match (query.order, query.after_seq) {
        (Order::Ascending, after) => keys::inbox_from(
            state,
            team,
            agent,
            floor.max(after.map_or(0, |seq| seq.saturating_add(1 + u64::from(mutant::on(Mutant::PageEdge))))),
        ),
        (Order::Descending, Some(before)) => keys::inbox_between(state, team, agent, floor, before),
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

/// The inbox entry of `agent` for the message with this id.
pub fn received(kv: &impl Kv, team: TeamId, agent: &str, id: MessageId) -> Result<Option<InboxItem>, Fatal> {
    let frozen = kv.frozen();
    let kv = frozen.as_ref();
    match find_entry(kv, team, agent, id)? {
        Some((seq, _, entry)) => item(kv, team, seq, entry).map(Some),
        None => Ok(None),
    }
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

/// The counters of an inbox. They are zero if it never received a message.
pub fn head(kv: &(impl Lookup + ?Sized), team: TeamId, agent: &str) -> Result<InboxHead, Fatal> {
    Ok(load(kv, &keys::inbox_head(team, agent))?.unwrap_or_default())
}

/// The cursor of a client of an agent. An empty client id stands for the cursor of the agent's mailbox.
pub fn cursor(kv: &impl Lookup, team: TeamId, agent: &str, client_id: &str) -> Result<Option<Cursor>, Fatal> {
    load(kv, &keys::cursor(team, agent, client_id))
}

/// The message of a team with this id.
pub fn message(kv: &impl Kv, team: TeamId, id: MessageId) -> Result<Option<Message>, Fatal> {
    let Some(seq) = kv
        .get(&keys::message_id(team, id))?
        .and_then(|row| keys::trailing_number(&row))
    else {
        return Ok(None);
    };
    load(kv, &keys::message(team, seq))
}

/// The message of a team at this seq.
pub fn message_at(kv: &impl Kv, team: TeamId, seq: u64) -> Result<Option<Message>, Fatal> {
    load(kv, &keys::message(team, seq))
}

/// The messages of a team after `after_seq`, oldest first, at most `limit`.
pub fn team_after(kv: &impl Kv, team: TeamId, after_seq: u64, limit: usize) -> Result<Vec<Message>, Fatal> {
    let from = after_seq.saturating_add(1);
    kv.range(keys::messages_from(team, from), Order::Ascending)
        .take(limit)
        .map(|row| row.and_then(|(_, value)| decode(value)))
        .collect()
}

/// The messages of a team before `before_seq`, newest first, at most `limit`. Each may have a body of
/// `limits::BODY_BYTES_MAX`, so a caller that needs many should ask for a few at a time.
pub fn team_before(kv: &impl Kv, team: TeamId, before_seq: u64, limit: usize) -> Result<Vec<Message>, Fatal> {
    kv.range(keys::messages_until(team, before_seq), Order::Descending)
        .take(limit)
        .map(|row| row.and_then(|(_, value)| decode(value)))
        .collect()
}

/// The number of references to a stored message: by inbox entries, by open and dead deliveries, and by its publish.
pub fn references(kv: &(impl Lookup + ?Sized), team: TeamId, seq: u64) -> Result<u64, Fatal> {
    let row = kv.get(&keys::references(team, seq))?;
    Ok(row.and_then(|row| keys::trailing_number(&row)).unwrap_or(1))
}

/// The inbox entry of a message: its seq, whether it is read, and its value.
pub(crate) fn find_entry(
    kv: &(impl Kv + ?Sized),
    team: TeamId,
    agent: &str,
    id: MessageId,
) -> Result<Option<(u64, ReadState, InboxEntry)>, Fatal> {
    let Some(seq) = kv
        .get(&keys::message_id(team, id))?
        .and_then(|row| keys::trailing_number(&row))
    else {
        return Ok(None);
    };
    let at = |seq: u64| -> Result<_, Fatal> {
        for state in [ReadState::Unread, ReadState::Read] {
            if let Some(row) = kv.get(&keys::inbox_entry(state, team, agent, seq))? {
                return Ok(Some((seq, state, decode(row)?)));
            }
        }
        Ok(None)
    };
    if let Some(found) = at(seq)? {
        return Ok(Some(found));
    }
    // The entries of a fan-out job have the seqs of its chunks.
    for row in kv.range(keys::receivers_of(team, seq), Order::Ascending) {
        let entry_seq = keys::trailing_number(&row?.0).unwrap_or_default();
        if entry_seq != seq
            && let Some(found) = at(entry_seq)?
        {
            return Ok(Some(found));
        }
    }
    Ok(None)
}
