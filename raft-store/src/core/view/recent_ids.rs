//! Proves that a message id is new without a read of the database.
//!
//! Every send must know whether its message id is already stored. The answer is nearly always no, which is the most
//! expensive answer of a lookup, because every file of the database may have to be asked. But ids are UUIDv7, which
//! sort by time, so a new id is nearly always greater than every stored one. This module remembers the greatest ids of
//! each team and an upper bound for all ids below them. An id above the bound that is not among the remembered ones is
//! certainly new; for every other id the caller reads the row.
//!
//! Memory is bounded in bytes. When the ids need too much, those of the team that has not sent for longest are replaced
//! by a higher bound, so its next ids, which are greater, still need no lookup. When the bounds need too much, that of
//! the team that has not sent for longest goes, and that team costs one lookup when it sends again.

use std::collections::VecDeque;

use agentpost_proto::id::{MessageId, TeamId};
use lru::LruCache;

/// The limits of the memory.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// Ids remembered per team. An id that is less than this many others is looked up.
    ids: usize,
    /// The most memory that the ids of all teams may take.
    ids_bytes: usize,
    /// Teams with a bound.
    teams: usize,
}

/// A bound takes about 100 bytes, so all together take at most some 20 MB.
const LIMITS: Limits = Limits {
    ids: 8_192,
    ids_bytes: 8 << 20,
    teams: 120_000,
};

/// The greatest message ids of each team that sends.
#[derive(Debug)]
pub(super) struct RecentIds {
    limits: Limits,
    /// For each team: no stored id outside its `ids` is greater than this.
    bounds: LruCache<TeamId, Option<MessageId>>,
    /// The ids above the bound of their team, in ascending order. Most new ids belong to the end.
    ids: LruCache<TeamId, VecDeque<MessageId>>,
    ids_bytes: usize,
}

impl Default for RecentIds {
    fn default() -> Self {
        Self::of(LIMITS)
    }
}

impl RecentIds {
    fn of(limits: Limits) -> Self {
        RecentIds {
            limits,
            bounds: LruCache::unbounded(),
            ids: LruCache::unbounded(),
            ids_bytes: 0,
        }
    }

    /// Remembers the id, and says whether it may have been stored before. `None` if the team is not watched yet.
    pub(super) fn note(&mut self, team: TeamId, id: MessageId) -> Option<bool> {
        let bound = self.bounds.get_mut(&team)?;
        if bound.is_some_and(|bound| id <= bound) {
            return Some(true);
        }
        let ids = self.ids.get_or_insert_mut(team, VecDeque::new);
        let Err(place) = ids.binary_search(&id) else {
            return Some(true);
        };
        let before = bytes_of(ids);
        if ids.len() < self.limits.ids {
            ids.insert(place, id);
        } else if let Some(after_first) = place.checked_sub(1) {
            *bound = ids.pop_front();
            ids.insert(after_first, id);
        } else {
            *bound = Some(id);
        }
        self.ids_bytes += bytes_of(ids) - before;
        self.raise_bounds();
        Some(false)
    }

    /// Begins to watch a team whose greatest stored id is `bound`.
    pub(super) fn watch(&mut self, team: TeamId, bound: Option<MessageId>) {
        self.bounds.push(team, bound);
        self.forget_ids(team);
        if self.bounds.len() > self.limits.teams
            && let Some((team, _)) = self.bounds.pop_lru()
        {
            self.forget_ids(team);
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::of(self.limits);
    }

    /// Replaces ids by bounds while the ids need too much memory.
    fn raise_bounds(&mut self) {
        while self.ids_bytes > self.limits.ids_bytes
            && let Some((team, ids)) = self.ids.pop_lru()
        {
            self.ids_bytes -= bytes_of(&ids);
            if let Some(bound) = self.bounds.peek_mut(&team) {
                *bound = ids.back().copied().max(*bound);
            }
        }
    }

    fn forget_ids(&mut self, team: TeamId) {
        if let Some(ids) = self.ids.pop(&team) {
            self.ids_bytes -= bytes_of(&ids);
        }
    }
}

fn bytes_of(ids: &VecDeque<MessageId>) -> usize {
    ids.capacity() * size_of::<MessageId>()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

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
        for n in 0..LIMITS.ids as u128 + 2 {
            assert_eq!(recent.note(TEAM, id(2 * n)), Some(false));
        }
        assert_eq!(
            recent.note(TEAM, id(1)),
            Some(true),
            "between forgotten ones: the row decides"
        );
        assert_eq!(recent.note(TEAM, id(2)), Some(true), "forgotten");
        assert_eq!(
            recent.note(TEAM, id(3)),
            Some(false),
            "only the least ones are forgotten"
        );
        assert_eq!(recent.note(TEAM, id(2 * LIMITS.ids as u128 + 4)), Some(false));
    }

    #[test]
    fn ids_of_a_clock_that_is_ahead_do_not_make_the_others_suspect() {
        let mut recent = RecentIds::default();
        recent.watch(TEAM, None);
        let ahead = 1 << 40;
        for n in 0..LIMITS.ids as u128 / 2 {
            assert_eq!(recent.note(TEAM, id(ahead + n)), Some(false));
        }
        for n in 0..2 * LIMITS.ids as u128 {
            assert_eq!(recent.note(TEAM, id(n)), Some(false));
        }
    }

    #[test]
    fn a_team_that_was_quiet_while_many_others_sent_needs_no_lookup() {
        let mut recent = RecentIds::of(Limits {
            ids: 8,
            ids_bytes: 10 * 8 * size_of::<MessageId>(),
            teams: 100,
        });
        let team = |n: u8| TeamId([n; 16]);
        for n in 0..100 {
            recent.watch(team(n), None);
        }
        for round in 1..20 {
            for n in 0..100 {
                assert_eq!(recent.note(team(n), id(round)), Some(false), "team {n}");
                assert!(recent.ids_bytes <= recent.limits.ids_bytes);
            }
        }
        recent.watch(team(100), None);
        assert_eq!(
            recent.note(team(0), id(20)),
            None,
            "the team that has not sent for longest"
        );
        assert_eq!(recent.note(team(1), id(20)), Some(false));
    }

    proptest! {
        #[test]
        fn an_id_that_was_noted_is_never_new(
            steps in proptest::collection::vec((0..6u8, 0..40u128), 0..300),
        ) {
            let mut recent = RecentIds::of(Limits { ids: 4, ids_bytes: 2 * 8 * size_of::<MessageId>(), teams: 4 });
            let mut stored: BTreeMap<u8, BTreeSet<u128>> = BTreeMap::new();
            for (n, number) in steps {
                let (team, ids) = (TeamId([n; 16]), stored.entry(n).or_default());
                let answer = recent.note(team, id(number)).or_else(|| {
                    recent.watch(team, ids.last().map(|greatest| id(*greatest)));
                    recent.note(team, id(number))
                });
                let is_stored = !ids.insert(number);
                prop_assert!(answer == Some(true) || (answer == Some(false) && !is_stored));
                let held: usize = recent.ids.iter().map(|(_, ids)| bytes_of(ids)).sum();
                prop_assert_eq!(recent.ids_bytes, held);
                prop_assert!(recent.bounds.len() <= 4 && recent.ids.len() <= 4);
            }
        }
    }
}
