//! Proves that a message id is new without a read of the database.
//!
//! Every send must know whether its message id is already stored. The answer is nearly always no, which is the most
//! expensive answer of a lookup, because every file of the database may have to be asked. But ids are UUIDv7, which
//! sort by time, so a new id is nearly always greater than every stored one. This module remembers the last few
//! thousand ids of each team and an upper bound for all ids before them. An id above the bound that is not among the
//! remembered ones is certainly new; for every other id the caller reads the row.
#![expect(
    clippy::disallowed_types,
    reason = "looked up by key, never walked, so its order cannot show"
)]

use std::collections::{HashMap, HashSet};

use agentpost_proto::id::{MessageId, TeamId};

/// Upper bound on the ids remembered per team. An id that arrives later than this many others is looked up.
const IDS_MAX: usize = 8_192;
/// Upper bound on the teams remembered. All are forgotten when one more comes.
const TEAMS_MAX: usize = 1_000;

/// The newest message ids of each team that sends.
#[derive(Debug, Default)]
pub(super) struct RecentIds {
    teams: HashMap<TeamId, Recent>,
}

#[derive(Debug)]
struct Recent {
    /// No stored id outside `ids` is greater than this.
    bound: Option<MessageId>,
    ids: HashSet<MessageId>,
}

impl RecentIds {
    /// Remembers the id, and says whether it may have been stored before. `None` if the team is not watched yet.
    pub fn note(&mut self, team: TeamId, id: MessageId) -> Option<bool> {
        let recent = self.teams.get_mut(&team)?;
        if recent.ids.len() >= IDS_MAX {
            recent.bound = recent.bound.max(recent.ids.drain().max());
        }
        let is_new = recent.bound.is_none_or(|bound| id > bound) && recent.ids.insert(id);
        Some(!is_new)
    }

    /// Begins to watch a team whose greatest stored id is `bound`.
    pub fn watch(&mut self, team: TeamId, bound: Option<MessageId>) {
        if self.teams.len() >= TEAMS_MAX {
            self.teams.clear();
        }
        self.teams.insert(
            team,
            Recent {
                bound,
                ids: HashSet::new(),
            },
        );
    }

    pub fn clear(&mut self) {
        self.teams.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEAM: TeamId = TeamId([1; 16]);

    fn id(n: u128) -> MessageId {
        MessageId(uuid::Uuid::from_u128(n))
    }

    #[test]
    fn only_ids_that_cannot_be_stored_are_new() {
        let mut recent = RecentIds::default();
        assert_eq!(recent.note(TEAM, id(5)), None);
        recent.watch(TEAM, Some(id(10)));
        assert_eq!(recent.note(TEAM, id(10)), Some(true), "stored");
        assert_eq!(recent.note(TEAM, id(9)), Some(true), "perhaps stored");
        assert_eq!(recent.note(TEAM, id(11)), Some(false));
        assert_eq!(recent.note(TEAM, id(11)), Some(true), "seen");
    }

    #[test]
    fn forgetting_raises_the_bound() {
        let mut recent = RecentIds::default();
        recent.watch(TEAM, None);
        for n in 0..IDS_MAX as u128 {
            assert_eq!(recent.note(TEAM, id(2 * n)), Some(false));
        }
        assert_eq!(
            recent.note(TEAM, id(3)),
            Some(true),
            "between forgotten ones: the row decides"
        );
        assert_eq!(recent.note(TEAM, id(2 * IDS_MAX as u128)), Some(false));
    }
}
