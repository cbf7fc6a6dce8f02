//! Tells that a message id is new without asking the database.
//!
//! Every send has to know whether its message id is stored already, and the answer is nearly always no: the
//! dearest kind of look-up, because every file may have to say so. But ids are UUIDv7, minted in the order of
//! time, so a new id is nearly always greater than all that were stored a moment ago. Remembering the last
//! few thousand ids of a team, and the greatest of those before them, answers the rest exactly. A wrong guess
//! is only ever "perhaps", and then the row decides.
#![expect(
    clippy::disallowed_types,
    reason = "looked up by key, never walked, so its order cannot show"
)]

use std::collections::{HashMap, HashSet};

use agentpost_proto::id::{MessageId, TeamId};

/// Ids remembered for a team; ids that arrive out of order by more than that are looked up.
const IDS_MAX: usize = 8_192;
/// Teams remembered; beyond it all start afresh.
const TEAMS_MAX: usize = 1_000;

/// The newest ids of the teams that send.
#[derive(Debug, Default)]
pub(super) struct RecentIds {
    teams: HashMap<TeamId, Recent>,
}

#[derive(Debug)]
struct Recent {
    /// No stored id that is not in `ids` is greater.
    bound: Option<MessageId>,
    ids: HashSet<MessageId>,
}

impl RecentIds {
    /// Whether a row of this id may exist, and remembers the id; none if the team is not watched yet.
    pub fn note(&mut self, team: TeamId, id: MessageId) -> Option<bool> {
        let recent = self.teams.get_mut(&team)?;
        if recent.ids.len() >= IDS_MAX {
            recent.bound = recent.bound.max(recent.ids.drain().max());
        }
        let is_new = recent.bound.is_none_or(|bound| id > bound) && recent.ids.insert(id);
        Some(!is_new)
    }

    /// Watches a team, whose greatest stored id is `bound`.
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
