//! Receipts: who received a message, and who read it.

use agentpost_proto::id::TeamId;
use agentpost_proto::record::{InboxEntry, Message, Receivers};

use crate::core::keys::{self, ReadState};
use crate::core::kv::{Fatal, Kv, Order};
use crate::core::view::{decode, load};

/// The receivers of a message.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Readers {
    /// How many agents received the message so far.
    pub receivers: u64,
    /// The first of them, with the time at which each read it: 0 while it is unread, and after its inbox entry was
    /// removed.
    pub first: Vec<(String, u64)>,
}

/// Who received a message, and when the first `examined` of them read it.
pub fn readers(kv: &(impl Kv + ?Sized), team: TeamId, message: &Message, examined: usize) -> Result<Readers, Fatal> {
    let mut readers = Readers::default();
    if message.topic.is_empty() {
        look(kv, team, &mut readers, message.seq, vec![message.to.clone()], examined)?;
        return Ok(readers);
    }
    for row in kv.range(keys::receivers_of(team, message.seq), Order::Ascending) {
        let (key, value) = row?;
        let entry_seq = keys::trailing_number(&key).ok_or_else(|| Fatal::Invariant("a malformed rc key".to_owned()))?;
        let chunk: Receivers = decode(value)?;
        look(kv, team, &mut readers, entry_seq, chunk.agents, examined)?;
    }
    Ok(readers)
}

fn look(
    kv: &(impl Kv + ?Sized),
    team: TeamId,
    readers: &mut Readers,
    entry_seq: u64,
    agents: Vec<String>,
    examined: usize,
) -> Result<(), Fatal> {
    readers.receivers += agents.len() as u64;
    for agent in agents {
        if readers.first.len() == examined {
            break;
        }
        let read: Option<InboxEntry> = load(kv, &keys::inbox_entry(ReadState::Read, team, &agent, entry_seq))?;
        readers.first.push((agent, read.map_or(0, |entry| entry.read_at_ms)));
    }
    Ok(())
}
