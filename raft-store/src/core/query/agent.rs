//! The agents of a team: those in the directory, and those that only have an inbox.

use agentpost_proto::id::TeamId;
use agentpost_proto::record::Agent;

use crate::core::keys;
use crate::core::kv::{Fatal, Kv, Lookup, Order};
use crate::core::view::{decode, load};

/// An agent of a team.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed {
    /// The agent's id.
    pub id: String,
    /// The row in the directory, or `None` for an agent that only received mail.
    pub registered: Option<Agent>,
}

/// The row of an agent in the directory.
pub fn registered(kv: &impl Lookup, team: TeamId, id: &str) -> Result<Option<Agent>, Fatal> {
    load(kv, &keys::agent(team, id))
}

/// The agents whose ids follow `after`, in the order of their ids, at most `limit`. An empty `after` begins with the
/// first.
pub fn agents(kv: &impl Kv, team: TeamId, after: &str, limit: usize) -> Result<Vec<Listed>, Fatal> {
    let frozen = kv.frozen();
    let kv = frozen.as_ref();
    let mut listed = Vec::new();
    for row in kv.range(keys::agents_after(team, after), Order::Ascending).take(limit) {
        let agent: Agent = decode(row?.1)?;
        listed.push(Listed {
            id: agent.id.clone(),
            registered: Some(agent),
        });
    }
    for row in kv
        .range(keys::inbox_heads_after(team, after), Order::Ascending)
        .take(limit)
    {
        let (key, _) = row?;
        let id = keys::trailing_text(&key).ok_or_else(|| Fatal::Invariant("a short ih key".to_owned()))?;
        listed.push(Listed {
            id: id.to_owned(),
            registered: None,
        });
    }
    // The sort is stable, so `dedup_by` keeps the registered one of two with the same id.
    listed.sort_by(|a, b| a.id.cmp(&b.id));
    listed.dedup_by(|later, first| later.id == first.id);
    listed.truncate(limit);
    Ok(listed)
}
