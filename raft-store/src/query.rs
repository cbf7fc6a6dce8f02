//! Read-only questions to the state. All take any [`Kv`]: a view in `apply`, a database on a node.

use agentpost_proto::id::{MessageId, TeamId};
use agentpost_proto::record;

use crate::kv::{Fatal, Kv, Order};

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
    pub message: record::Message,
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
    /// Only unread ones.
    pub unread_only: bool,
    /// Only from this agent.
    pub from: Option<&'a str>,
}

/// A page of an inbox.
#[derive(Debug, Clone)]
pub struct Page {
    /// In the order asked for.
    pub items: Vec<InboxItem>,
    /// Where the next page continues; unchanged when nothing was examined.
    pub last_seq: Option<u64>,
}

/// A page of an inbox; examines at most `limits::PAGE_EXAMINED_MAX` entries.
pub fn inbox_page(kv: &impl Kv, team: TeamId, agent: &str, query: &PageQuery<'_>) -> Result<Page, Fatal> {
    unimplemented!("{:?}", (team, agent, query, kv.get(&[])?))
}

/// Entries of an inbox behind `after_seq`, oldest first, at most `limit`.
pub fn inbox_after(kv: &impl Kv, team: TeamId, agent: &str, after_seq: u64, limit: usize) -> Result<Vec<InboxItem>, Fatal> {
    unimplemented!("{:?}", (team, agent, after_seq, limit, kv.get(&[])?))
}

/// Messages of a whole team behind `after_seq`, oldest first, at most `limit`.
pub fn team_after(kv: &impl Kv, team: TeamId, after_seq: u64, limit: usize) -> Result<Vec<record::Message>, Fatal> {
    unimplemented!("{:?}", (team, after_seq, limit, kv.get(&[])?))
}

/// The message that `agent` received under this id.
pub fn received(kv: &impl Kv, team: TeamId, agent: &str, id: MessageId) -> Result<Option<InboxItem>, Fatal> {
    unimplemented!("{:?}", (team, agent, id, kv.get(&[])?))
}

/// A message by id, whoever received it.
pub fn message(kv: &impl Kv, team: TeamId, id: MessageId) -> Result<Option<record::Message>, Fatal> {
    unimplemented!("{:?}", (team, id, kv.get(&[])?))
}

/// The key with this keyed hash, revoked and expired ones included.
pub fn key_by_hash(kv: &impl Kv, hash: &[u8]) -> Result<Option<record::Key>, Fatal> {
    unimplemented!("{:?}", (hash, kv.get(&[])?))
}

/// The keys of a team, by id.
pub fn keys(kv: &impl Kv, team: TeamId) -> Result<Vec<record::Key>, Fatal> {
    unimplemented!("{:?}", (team, kv.get(&[])?))
}

/// A team.
pub fn team(kv: &impl Kv, team: TeamId) -> Result<Option<record::Team>, Fatal> {
    unimplemented!("{:?}", (team, kv.get(&[])?))
}

/// All teams but the reserved one, by id.
pub fn teams(kv: &impl Kv) -> Result<Vec<record::Team>, Fatal> {
    unimplemented!("{:?}", kv.get(&[])?)
}

/// The counters of a team; zeros for one that never sent.
pub fn team_head(kv: &impl Kv, team: TeamId) -> Result<record::TeamHead, Fatal> {
    unimplemented!("{:?}", (team, kv.get(&[])?))
}

/// The counters of an inbox; zeros for one that never received.
pub fn inbox_head(kv: &impl Kv, team: TeamId, agent: &str) -> Result<record::InboxHead, Fatal> {
    unimplemented!("{:?}", (team, agent, kv.get(&[])?))
}

/// The cursor of (team, agent, client id); an empty client id is the mailbox cursor of `agent`.
pub fn cursor(kv: &impl Kv, team: TeamId, agent: &str, client_id: &str) -> Result<Option<record::Cursor>, Fatal> {
    unimplemented!("{:?}", (team, agent, client_id, kv.get(&[])?))
}

/// What the state says about itself: the last applied entry, time, the state hash.
pub fn applied(kv: &impl Kv) -> Result<record::Applied, Fatal> {
    unimplemented!("{:?}", kv.get(&[])?)
}
