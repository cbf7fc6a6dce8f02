//! The whole key space of the state database, on one page.
//!
//! A key is a tag of two ASCII bytes, then fields in an encoding that keeps their order: ids as their 16 bytes, numbers
//! in big endian, texts with a zero byte at the end (no text in a key contains one). The team comes first, so that a
//! team's rows are a few contiguous ranges. A tag is never reused. Values are messages of `record.proto` unless noted.
//!
//! A team numbers its messages with one `seq`. It orders every inbox and is the cursor of both public interfaces, so no
//! second number has to be translated, and the index of unread mail needs no row of its own.
//!
//! | tag | fields | value |
//! |---|---|---|
//! | `ap` | | `Applied`: last applied entry, time, state hash |
//! | `mb` | | `peer::SnapshotMeta` with only the membership |
//! | `te` | team | `Team` |
//! | `th` | team | `TeamHead`: counters |
//! | `ke` | team, key id | `Key` |
//! | `ag` | team, agent | `Agent` |
//! | `sc` | team, agent | `DayCount` of sends |
//! | `rd` | team, agent | `DayCount` of inbox reads, leased ones included |
//! | `rg` | team, agent | `DayCount` of webhook registrations |
//! | `ih` | team, agent | `InboxHead`: counters, the first `iu` and the first `ir` |
//! | `iu` | team, agent, seq | `InboxEntry`, unread |
//! | `ir` | team, agent, seq | `InboxEntry`, read |
//! | `me` | team, seq | `Message` |
//! | `mi` | team, message id | seq, 8 bytes |
//! | `rf` | team, seq | number of references to the message, 8 bytes; absent means one |
//! | `rc` | team, seq of the publish, seq of the entries | `Receivers` of a topic message |
//! | `tp` | team, topic | `Topic` |
//! | `su` | team, topic, serial | `Subscription` |
//! | `sa` | team, agent, topic | serial of the open subscription, 8 bytes |
//! | `wh` | team, agent | `Webhook` |
//! | `ep` | team, agent, url | `Endpoint` |
//! | `dl` | team, number | `Delivery` |
//! | `di` | team, delivery id | number, 8 bytes |
//! | `dm` | team, seq of the message, number | empty |
//! | `dd` | team, number | `DeadLetter` |
//! | `du` | team, generation, due cluster ms, number | empty: scheduled deliveries |
//! | `id` | team, agent, idempotency key | `Idempotency` |
//! | `cu` | team, agent, client id | `Cursor`; an empty client id is the agent's mailbox |
//!
//! A team has one sequence of numbers, `seq`. It numbers messages and inbox entries, and the cursors of both APIs are
//! positions in it, so no number has to be translated, and the rows of unread entries need no second index.
//!
//! These do not begin with the team, because they index the whole shard:
//!
//! | tag | fields | value |
//! |---|---|---|
//! | `tn` | team name | team, 16 bytes |
//! | `kh` | hash of a presented key | team and key id, 32 bytes |
//! | `ki` | key id | team, 16 bytes |
//! | `ix` | cluster ms of expiry, team, agent, idempotency key | empty |
//! | `mx` | wall ms of expiry, team, seq | empty |
//! | `rt` | cluster ms of the end of retention, team | empty: one for each team with messages |
//! | `fj` | team, topic, seq of the publish | `FanoutJob` |
//! | `eh` | team, generation | `EndpointHead`: the earliest `du` |
//! | `ec` | team, generation | `Closing` |
//! | `cl` | slot | `ClaimSlot`: a claimed delivery, or the next free slot |
//! | `ch` | | `ClaimTable` |
//! | `dx` | cluster ms of ageing, team, number | empty: terminal deliveries |
//! | `le` | day, team, lease id | `Lease` |
//! | `cx` | cluster ms of use, team, agent, client id | empty: one for each `cu`, perhaps of an earlier use |
//! | `lh` | | `LoginHead` |
//! | `lo` | user code | `Login` |
//! | `ld` | hash of a device code | user code |
//! | `lx` | cluster ms of expiry, user code | empty |
//! | `nu` | | `NodeIds`: every node id that was ever used |
//! | `qf` | tag of a queue | the key below which the queue has no row: see `queue.rs` |

mod queue;
mod shard;

use std::ops::Range;

use agentpost_proto::id::{DeliveryId, KeyId, MessageId, TeamId};
use bytes::Bytes;

pub use queue::*;
pub use shard::*;

/// The first two bytes of a key, which name its kind of row.
pub type Tag = [u8; 2];

const APPLIED: Tag = *b"ap";
const MEMBERSHIP: Tag = *b"mb";
const TEAM: Tag = *b"te";
const TEAM_HEAD: Tag = *b"th";
const TEAM_NAME: Tag = *b"tn";
const KEY: Tag = *b"ke";
const KEY_HASH: Tag = *b"kh";
const KEY_TEAM: Tag = *b"ki";
const AGENT: Tag = *b"ag";
const SEND_COUNT: Tag = *b"sc";
const INBOX_HEAD: Tag = *b"ih";
const UNREAD: Tag = *b"iu";
const READ: Tag = *b"ir";
const MESSAGE: Tag = *b"me";
const MESSAGE_ID: Tag = *b"mi";
const MESSAGE_EXPIRY: Tag = *b"mx";
const IDEMPOTENCY: Tag = *b"id";
const IDEMPOTENCY_EXPIRY: Tag = *b"ix";
const CURSOR: Tag = *b"cu";
const READ_COUNT: Tag = *b"rd";
const REGISTRATION_COUNT: Tag = *b"rg";
const REFERENCES: Tag = *b"rf";
const RECEIVERS: Tag = *b"rc";
const TOPIC: Tag = *b"tp";
const SUBSCRIPTION: Tag = *b"su";
const SUBSCRIBED: Tag = *b"sa";
const WEBHOOK: Tag = *b"wh";
const ENDPOINT: Tag = *b"ep";
const DELIVERY: Tag = *b"dl";
const DELIVERY_ID: Tag = *b"di";
const DELIVERY_OF_MESSAGE: Tag = *b"dm";
const DEAD_LETTER: Tag = *b"dd";
const DUE: Tag = *b"du";
const FANOUT_JOB: Tag = *b"fj";
const ENDPOINT_HEAD: Tag = *b"eh";
const CLOSING: Tag = *b"ec";
const CLAIM_SLOT: Tag = *b"cl";
const CLAIM_TABLE: Tag = *b"ch";
const DELIVERY_AGEING: Tag = *b"dx";
const LEASE: Tag = *b"le";
const CURSOR_USE: Tag = *b"cx";
const LOGIN_HEAD: Tag = *b"lh";
const LOGIN: Tag = *b"lo";
const LOGIN_DEVICE: Tag = *b"ld";
const LOGIN_EXPIRY: Tag = *b"lx";
const NODE_IDS: Tag = *b"nu";
const RETENTION_END: Tag = *b"rt";
const QUEUE_FLOOR: Tag = *b"qf";

/// Whether nearly every command reads a row of this kind, so that it is worth a copy in memory.
pub fn is_hot(key: &[u8]) -> bool {
    const HOT: [Tag; 9] = [
        TEAM,
        TEAM_HEAD,
        KEY,
        SEND_COUNT,
        INBOX_HEAD,
        WEBHOOK,
        ENDPOINT,
        TOPIC,
        CLAIM_TABLE,
    ];
    HOT.iter().any(|tag| key.starts_with(tag))
}

/// Builds one key.
struct Builder(Vec<u8>);

impl Builder {
    fn new(tag: Tag) -> Self {
        let mut key = Vec::with_capacity(64);
        key.extend_from_slice(&tag);
        Builder(key)
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn team(self, team: TeamId) -> Self {
        self.bytes(&team.0)
    }

    fn text(self, text: &str) -> Self {
        debug_assert!(!text.as_bytes().contains(&0), "texts in keys have no zero byte");
        self.bytes(text.as_bytes()).bytes(&[0])
    }

    fn number(self, number: u64) -> Self {
        self.bytes(&number.to_be_bytes())
    }

    fn key(self) -> Bytes {
        Bytes::from(self.0)
    }

    /// The range of all keys that begin with the fields so far.
    fn prefix(self) -> Range<Vec<u8>> {
        let mut end = self.0.clone();
        while let Some(last) = end.pop() {
            if last < u8::MAX {
                end.push(last + 1);
                break;
            }
        }
        self.0..end
    }

    /// The keys that continue with a number in `from..`.
    fn numbers_from(self, from: u64) -> Range<Vec<u8>> {
        let start = [self.0.as_slice(), &from.to_be_bytes()].concat();
        start..self.prefix().end
    }

    /// The keys that continue with a number in `..until`.
    fn numbers_until(self, until: u64) -> Range<Vec<u8>> {
        let end = [self.0.as_slice(), &until.to_be_bytes()].concat();
        self.0..end
    }
}

/// A number, encoded as a value.
pub fn number(number: u64) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

/// The number at the end of a key, or in a value that is a number.
pub fn trailing_number(key: &[u8]) -> Option<u64> {
    key.last_chunk::<8>().map(|bytes| u64::from_be_bytes(*bytes))
}

/// `ap`.
pub fn applied() -> Bytes {
    Builder::new(APPLIED).key()
}

/// `mb`.
pub fn membership() -> Bytes {
    Builder::new(MEMBERSHIP).key()
}

/// `te`.
pub fn team(team: TeamId) -> Bytes {
    Builder::new(TEAM).team(team).key()
}

/// All of `te`.
pub fn teams() -> Range<Vec<u8>> {
    Builder::new(TEAM).prefix()
}

/// `th`.
pub fn team_head(team: TeamId) -> Bytes {
    Builder::new(TEAM_HEAD).team(team).key()
}

/// `ke`.
pub fn key(team: TeamId, key: KeyId) -> Bytes {
    Builder::new(KEY).team(team).bytes(&key.0).key()
}

/// The `ke` of a team.
pub fn keys_of(team: TeamId) -> Range<Vec<u8>> {
    Builder::new(KEY).team(team).prefix()
}

/// `ag`.
pub fn agent(team: TeamId, agent: &str) -> Bytes {
    Builder::new(AGENT).team(team).text(agent).key()
}

/// The `ag` of a team that follow `after`; all of them after an empty one.
pub fn agents_after(team: TeamId, after: &str) -> Range<Vec<u8>> {
    texts_after(AGENT, team, after)
}

/// The text that follows the team in a key of two fields, such as `ag` and `ih`.
pub fn trailing_text(key: &[u8]) -> Option<&str> {
    std::str::from_utf8(key.get(18..key.len().checked_sub(1)?)?).ok()
}

/// The keys `tag, team, text` with a text greater than `after`.
fn texts_after(tag: Tag, team: TeamId, after: &str) -> Range<Vec<u8>> {
    let all = Builder::new(tag).team(team);
    let end = all.prefix().end;
    // `after` may be any text of a request, so the rule that a key's text has no zero byte does not hold for it.
    let mut start = Builder::new(tag).team(team).bytes(after.as_bytes()).bytes(&[0]).0;
    if !after.is_empty() {
        start.push(0);
    }
    start..end
}

/// `sc`.
pub fn send_count(team: TeamId, agent: &str) -> Bytes {
    Builder::new(SEND_COUNT).team(team).text(agent).key()
}

/// `ih`.
pub fn inbox_head(team: TeamId, agent: &str) -> Bytes {
    Builder::new(INBOX_HEAD).team(team).text(agent).key()
}

/// The `ih` of a team whose agents follow `after`; all of them after an empty one.
pub fn inbox_heads_after(team: TeamId, after: &str) -> Range<Vec<u8>> {
    texts_after(INBOX_HEAD, team, after)
}

/// Whether an inbox entry is read. Read and unread entries have different tags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadState {
    /// `iu`.
    Unread,
    /// `ir`.
    Read,
}

fn inbox(state: ReadState, team: TeamId, agent: &str) -> Builder {
    let tag = match state {
        ReadState::Unread => UNREAD,
        ReadState::Read => READ,
    };
    Builder::new(tag).team(team).text(agent)
}

/// `iu` or `ir`.
pub fn inbox_entry(state: ReadState, team: TeamId, agent: &str, seq: u64) -> Bytes {
    inbox(state, team, agent).number(seq).key()
}

/// The entries of an inbox with `from <= seq`.
pub fn inbox_from(state: ReadState, team: TeamId, agent: &str, from: u64) -> Range<Vec<u8>> {
    inbox(state, team, agent).numbers_from(from)
}

/// The entries of an inbox with `from <= seq < until`.
pub fn inbox_between(state: ReadState, team: TeamId, agent: &str, from: u64, until: u64) -> Range<Vec<u8>> {
    let start = inbox_entry(state, team, agent, from).to_vec();
    start..inbox_entry(state, team, agent, until).to_vec()
}

/// `me`.
pub fn message(team: TeamId, seq: u64) -> Bytes {
    Builder::new(MESSAGE).team(team).number(seq).key()
}

/// The messages of a team with `from <= seq`.
pub fn messages_from(team: TeamId, from: u64) -> Range<Vec<u8>> {
    Builder::new(MESSAGE).team(team).numbers_from(from)
}

/// The messages of a team with `seq < until`.
pub fn messages_until(team: TeamId, until: u64) -> Range<Vec<u8>> {
    Builder::new(MESSAGE).team(team).numbers_until(until)
}

/// `mi`.
pub fn message_id(team: TeamId, id: MessageId) -> Bytes {
    Builder::new(MESSAGE_ID).team(team).bytes(id.0.as_bytes()).key()
}

/// All `mi` of a team.
pub fn message_ids(team: TeamId) -> Range<Vec<u8>> {
    Builder::new(MESSAGE_ID).team(team).prefix()
}

/// The message id that ends an `mi` key.
pub fn trailing_message_id(key: &[u8]) -> Option<MessageId> {
    MessageId::from_slice(key.last_chunk::<16>()?).ok()
}

/// `id`.
pub fn idempotency(team: TeamId, agent: &str, key: &str) -> Bytes {
    Builder::new(IDEMPOTENCY).team(team).text(agent).text(key).key()
}

/// `cu`.
pub fn cursor(team: TeamId, agent: &str, client_id: &str) -> Bytes {
    Builder::new(CURSOR).team(team).text(agent).text(client_id).key()
}

/// `rd`.
pub fn read_count(team: TeamId, agent: &str) -> Bytes {
    Builder::new(READ_COUNT).team(team).text(agent).key()
}

/// `rg`.
pub fn registration_count(team: TeamId, agent: &str) -> Bytes {
    Builder::new(REGISTRATION_COUNT).team(team).text(agent).key()
}

/// `rf`.
pub fn references(team: TeamId, seq: u64) -> Bytes {
    Builder::new(REFERENCES).team(team).number(seq).key()
}

/// `rc`.
pub fn receivers(team: TeamId, seq: u64, entry_seq: u64) -> Bytes {
    Builder::new(RECEIVERS).team(team).number(seq).number(entry_seq).key()
}

/// The `rc` of a topic message; the seq of the entries ends each key.
pub fn receivers_of(team: TeamId, seq: u64) -> Range<Vec<u8>> {
    Builder::new(RECEIVERS).team(team).number(seq).prefix()
}

/// `tp`.
pub fn topic(team: TeamId, topic: &str) -> Bytes {
    Builder::new(TOPIC).team(team).text(topic).key()
}

/// `su`.
pub fn subscription(team: TeamId, topic: &str, serial: u64) -> Bytes {
    Builder::new(SUBSCRIPTION).team(team).text(topic).number(serial).key()
}

/// The subscription rows of a topic with `from <= serial <= last`.
pub fn subscriptions_between(team: TeamId, topic: &str, from: u64, last: u64) -> Range<Vec<u8>> {
    let end = subscription(team, topic, last.saturating_add(1)).to_vec();
    subscription(team, topic, from).to_vec()..end
}

/// `sa`.
pub fn subscribed(team: TeamId, agent: &str, topic: &str) -> Bytes {
    Builder::new(SUBSCRIBED).team(team).text(agent).text(topic).key()
}

/// The `sa` of an agent.
pub fn subscribed_of(team: TeamId, agent: &str) -> Range<Vec<u8>> {
    Builder::new(SUBSCRIBED).team(team).text(agent).prefix()
}

/// `wh`.
pub fn webhook(team: TeamId, agent: &str) -> Bytes {
    Builder::new(WEBHOOK).team(team).text(agent).key()
}

/// `ep`.
pub fn endpoint(team: TeamId, agent: &str, url: &str) -> Bytes {
    Builder::new(ENDPOINT).team(team).text(agent).text(url).key()
}

/// `dl`.
pub fn delivery(team: TeamId, number: u64) -> Bytes {
    Builder::new(DELIVERY).team(team).number(number).key()
}

/// The deliveries of a team with `from <= number`.
pub fn deliveries_from(team: TeamId, from: u64) -> Range<Vec<u8>> {
    Builder::new(DELIVERY).team(team).numbers_from(from)
}

/// The deliveries of a team with `number < until`.
pub fn deliveries_until(team: TeamId, until: u64) -> Range<Vec<u8>> {
    Builder::new(DELIVERY).team(team).numbers_until(until)
}

/// `di`.
pub fn delivery_id(team: TeamId, id: DeliveryId) -> Bytes {
    Builder::new(DELIVERY_ID).team(team).bytes(&id.0).key()
}

/// `dm`.
pub fn delivery_of_message(team: TeamId, seq: u64, number: u64) -> Bytes {
    Builder::new(DELIVERY_OF_MESSAGE)
        .team(team)
        .number(seq)
        .number(number)
        .key()
}

/// The `dm` of a message; the delivery's number ends each key.
pub fn deliveries_of_message(team: TeamId, seq: u64) -> Range<Vec<u8>> {
    Builder::new(DELIVERY_OF_MESSAGE).team(team).number(seq).prefix()
}

/// `dd`.
pub fn dead_letter(team: TeamId, number: u64) -> Bytes {
    Builder::new(DEAD_LETTER).team(team).number(number).key()
}

/// The dead letters of a team with `from <= number`.
pub fn dead_letters_from(team: TeamId, from: u64) -> Range<Vec<u8>> {
    Builder::new(DEAD_LETTER).team(team).numbers_from(from)
}

/// The dead letters of a team with `number < until`.
pub fn dead_letters_until(team: TeamId, until: u64) -> Range<Vec<u8>> {
    Builder::new(DEAD_LETTER).team(team).numbers_until(until)
}

/// `du`.
pub fn due(team: TeamId, generation: u64, due_ms: u64, number: u64) -> Bytes {
    Builder::new(DUE)
        .team(team)
        .number(generation)
        .number(due_ms)
        .number(number)
        .key()
}

/// The scheduled deliveries of an endpoint from a due time and number on, the earliest first.
pub fn due_from(team: TeamId, generation: u64, due_ms: u64, number: u64) -> Range<Vec<u8>> {
    let end = Builder::new(DUE).team(team).number(generation).prefix().end;
    due(team, generation, due_ms, number).to_vec()..end
}

/// The due time and number that end a `du` key.
pub fn parse_due(key: &[u8]) -> Option<(u64, u64)> {
    let due_ms = u64::from_be_bytes(key.get(26..34)?.try_into().ok()?);
    Some((due_ms, trailing_number(key)?))
}

#[cfg(test)]
mod tests;
