//! The whole key space of the state database, on one page.
//!
//! A key is two ASCII tag bytes, then fields that sort as they should: ids as their 16 bytes, numbers big
//! endian, texts ended by a zero byte (no text that gets here contains one). The team comes first, so that
//! a team is a few contiguous ranges. A tag is never reused. Values are `record.proto` unless named.
//!
//! | tag | fields | value |
//! |---|---|---|
//! | `ap` | | `Applied`: last applied entry, time, state hash |
//! | `mb` | | `peer::SnapshotMeta` with only the membership |
//! | `te` | team | `Team` |
//! | `th` | team | `TeamHead`: counters |
//! | `ke` | team, key id | `Key` |
//! | `ag` | team, agent | `Agent` |
//! | `sc` | team, agent | `SendCount` of a day |
//! | `ih` | team, agent | `InboxHead`: counters |
//! | `iu` | team, agent, seq | `InboxEntry`, unread |
//! | `ir` | team, agent, seq | `InboxEntry`, read |
//! | `me` | team, seq | `Message` |
//! | `mi` | team, message id | seq, 8 bytes |
//! | `id` | team, agent, idempotency key | `Idempotency` |
//! | `cu` | team, agent, client id | `Cursor`; an empty client id is the agent's mailbox |
//!
//! Not team-first, because they answer a question about the whole shard:
//!
//! | tag | fields | value |
//! |---|---|---|
//! | `tn` | team name | team, 16 bytes |
//! | `kh` | hash of a presented key | team and key id, 32 bytes |
//! | `ki` | key id | team, 16 bytes |
//! | `ix` | cluster ms of expiry, team, agent, idempotency key | empty |
//! | `mx` | wall ms of expiry, team, seq | empty |

use std::ops::Range;

use agentpost_proto::id::{KeyId, MessageId, TeamId};
use bytes::Bytes;

/// Two bytes that name a kind of row.
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

/// Rows that nearly every command reads: worth a copy in memory.
pub fn is_hot(key: &[u8]) -> bool {
    const HOT: [Tag; 5] = [TEAM, TEAM_HEAD, KEY, SEND_COUNT, INBOX_HEAD];
    HOT.iter().any(|tag| key.starts_with(tag))
}

/// Builds one key; capacity fits all but the longest texts.
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

    /// Every key that starts with what was built.
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

/// The number that ends a key.
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

/// `tn`.
pub fn team_name(name: &str) -> Bytes {
    Builder::new(TEAM_NAME).text(name).key()
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

/// `kh`.
pub fn key_hash(hash: &[u8]) -> Bytes {
    Builder::new(KEY_HASH).bytes(hash).key()
}

/// `ki`.
pub fn key_team(key: KeyId) -> Bytes {
    Builder::new(KEY_TEAM).bytes(&key.0).key()
}

/// `ag`.
pub fn agent(team: TeamId, agent: &str) -> Bytes {
    Builder::new(AGENT).team(team).text(agent).key()
}

/// `sc`.
pub fn send_count(team: TeamId, agent: &str) -> Bytes {
    Builder::new(SEND_COUNT).team(team).text(agent).key()
}

/// `ih`.
pub fn inbox_head(team: TeamId, agent: &str) -> Bytes {
    Builder::new(INBOX_HEAD).team(team).text(agent).key()
}

/// Whether an inbox entry is read; decides its tag.
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

/// The entries of an inbox with `seq < until`.
pub fn inbox_until(state: ReadState, team: TeamId, agent: &str, until: u64) -> Range<Vec<u8>> {
    inbox(state, team, agent).numbers_until(until)
}

/// `me`.
pub fn message(team: TeamId, seq: u64) -> Bytes {
    Builder::new(MESSAGE).team(team).number(seq).key()
}

/// The messages of a team with `from <= seq`.
pub fn messages_from(team: TeamId, from: u64) -> Range<Vec<u8>> {
    Builder::new(MESSAGE).team(team).numbers_from(from)
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

/// `mx`.
pub fn message_expiry(expires_at_ms: u64, team: TeamId, seq: u64) -> Bytes {
    Builder::new(MESSAGE_EXPIRY)
        .number(expires_at_ms)
        .team(team)
        .number(seq)
        .key()
}

/// The `mx` that are due at `wall_ms`.
pub fn message_expiries_until(wall_ms: u64) -> Range<Vec<u8>> {
    Builder::new(MESSAGE_EXPIRY).numbers_until(wall_ms.saturating_add(1))
}

/// The team and seq of an `mx` key.
pub fn parse_message_expiry(key: &[u8]) -> Option<(TeamId, u64)> {
    let team = key.get(10..26)?.try_into().ok()?;
    Some((TeamId(team), trailing_number(key)?))
}

/// `id`.
pub fn idempotency(team: TeamId, agent: &str, key: &str) -> Bytes {
    Builder::new(IDEMPOTENCY).team(team).text(agent).text(key).key()
}

/// `ix`.
pub fn idempotency_expiry(expires_ct_ms: u64, team: TeamId, agent: &str, key: &str) -> Bytes {
    Builder::new(IDEMPOTENCY_EXPIRY)
        .number(expires_ct_ms)
        .team(team)
        .text(agent)
        .text(key)
        .key()
}

/// The `ix` that are due at `cluster_ms`.
pub fn idempotency_expiries_until(cluster_ms: u64) -> Range<Vec<u8>> {
    Builder::new(IDEMPOTENCY_EXPIRY).numbers_until(cluster_ms.saturating_add(1))
}

/// The `id` key that an `ix` key speaks of: the same fields behind the time.
pub fn idempotency_of_expiry(key: &[u8]) -> Option<Bytes> {
    Some(Builder::new(IDEMPOTENCY).bytes(key.get(10..)?).key())
}

/// `cu`.
pub fn cursor(team: TeamId, agent: &str, client_id: &str) -> Bytes {
    Builder::new(CURSOR).team(team).text(agent).text(client_id).key()
}

/// The keys of the log database (`log_store.rs`), which has nothing to do with the state database above.
///
/// | family | key | value |
/// |---|---|---|
/// | `entries` | index, 8 bytes big endian | CRC32C of the rest, 4 bytes big endian; `peer::Entry` |
/// | `meta` | `vote` | `peer::Vote` |
/// | `meta` | `committed` | `LogId`: a hint that saves time after a restart |
/// | `meta` | `purged` | `LogId`: the last entry that is gone |
pub mod log {
    /// The family of the entries.
    pub const ENTRIES: &str = "entries";
    /// The family of the three single rows.
    pub const META: &str = "meta";
    /// Row of `meta`.
    pub const VOTE: &[u8] = b"vote";
    /// Row of `meta`.
    pub const COMMITTED: &[u8] = b"committed";
    /// Row of `meta`.
    pub const PURGED: &[u8] = b"purged";

    /// Key of an entry.
    pub fn entry(index: u64) -> [u8; 8] {
        index.to_be_bytes()
    }

    /// Index of an entry, from its key.
    pub fn index(key: &[u8]) -> Option<u64> {
        key.try_into().ok().map(u64::from_be_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: TeamId = TeamId([1; 16]);

    #[test]
    fn an_inbox_is_one_range_in_seq_order() {
        let range = inbox_from(ReadState::Unread, A, "bob", 0);
        let inside = [1, 255, 256, u64::MAX].map(|seq| inbox_entry(ReadState::Unread, A, "bob", seq));
        assert!(inside.is_sorted());
        for key in &inside {
            assert!(range.contains(&key.to_vec()));
        }
        for key in [
            inbox_entry(ReadState::Read, A, "bob", 1),
            inbox_entry(ReadState::Unread, A, "bobby", 1),
            inbox_entry(ReadState::Unread, A, "bo", 1),
            inbox_entry(ReadState::Unread, TeamId([2; 16]), "bob", 1),
        ] {
            assert!(!range.contains(&key.to_vec()));
        }
        assert!(inbox_until(ReadState::Unread, A, "bob", 256).contains(&inside[1].to_vec()));
        assert!(!inbox_until(ReadState::Unread, A, "bob", 256).contains(&inside[2].to_vec()));
    }

    #[test]
    fn a_prefix_of_ff_bytes_ends_where_its_parent_ends() {
        let range = keys_of(TeamId([0xff; 16]));
        assert!(range.contains(&key(TeamId([0xff; 16]), KeyId([0xff; 16])).to_vec()));
        assert_eq!(range.end, b"kf".to_vec());
    }

    #[test]
    fn expiry_keys_lead_back_to_their_rows() {
        let expiry = idempotency_expiry(77, A, "bob", "k1");
        assert_eq!(idempotency_of_expiry(&expiry), Some(idempotency(A, "bob", "k1")));
        assert!(idempotency_expiries_until(77).contains(&expiry.to_vec()));
        assert!(!idempotency_expiries_until(76).contains(&expiry.to_vec()));
        assert_eq!(parse_message_expiry(&message_expiry(5, A, 9)), Some((A, 9)));
    }
}
