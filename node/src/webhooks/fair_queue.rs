//! The fair queue of endpoints: a pure data structure, without a clock and without the state.
//!
//! It knows one fact about each endpoint with work: when its earliest delivery is due. Slots are granted one at a time,
//! in turns over the teams, and within a team over its endpoints, so that a long queue of one endpoint does not delay
//! another. A slot is held from the claim until the outcome is recorded.
//!
//! The limits: per endpoint [`ENDPOINT_CALLS_MAX`]; and for each node that makes calls, [`TEAM_CALLS_MAX`] more per team
//! and [`NODE_CALLS_MAX`] more in total. A slot is not bound to a node. When slots are scarce, a team holds no more than
//! its share among the teams with due work, so that a team whose endpoints hang cannot take the slots that others need.
//! An endpoint that could not be reached [`CONNECT_FAILURES_MAX`] times in a row gets one call at a time; its retry
//! schedule is not changed.

use std::collections::{BTreeSet, HashMap, VecDeque};

use agentpost_proto::id::TeamId;

/// Attempts of one endpoint between claim and recorded outcome.
const ENDPOINT_CALLS_MAX: usize = 8;
/// Attempts of one team between claim and recorded outcome, for each node that makes calls.
pub const TEAM_CALLS_MAX: usize = 64;
/// Attempts that a node makes, between claim and recorded outcome.
pub const NODE_CALLS_MAX: usize = 512;
/// If there are fewer free slots than this for each node that makes calls, no team gets more than its share of all slots.
const NODE_CALLS_SCARCE: usize = 128;
/// Consecutive failures to connect after which an endpoint gets only one call at a time.
const CONNECT_FAILURES_MAX: u32 = 10;

/// An endpoint: its team and its generation.
pub type Endpoint = (TeamId, u64);

/// Whether a call got through to its endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reachability {
    /// The endpoint answered, or at least accepted the connection.
    Reached,
    /// No connection could be made.
    Unreachable,
    /// No call was made.
    Untried,
}

/// The endpoints with work, and the slots in use.
#[derive(Debug, Default)]
pub struct FairQueue {
    endpoints: HashMap<Endpoint, Place>,
    /// Endpoints that are not due yet.
    waiting: BTreeSet<(u64, Endpoint)>,
    /// Teams with slots in use or work due.
    teams: HashMap<TeamId, Team>,
    /// Teams in the order of their turns; each has an endpoint in `Team::turns`.
    turns: VecDeque<TeamId>,
    in_use: usize,
    /// Teams with work due.
    due_teams: usize,
    /// The nodes that make calls beside the leader.
    others: usize,
}

#[derive(Debug, Default)]
struct Place {
    due_ms: Option<u64>,
    /// Whether it is due.
    is_due: bool,
    /// Whether it is listed in its team's turns.
    in_turns: bool,
    in_use: usize,
    /// Failures to connect in a row.
    unreachable: u32,
}

#[derive(Debug, Default)]
struct Team {
    in_use: usize,
    /// Endpoints with work due, whether or not they have a free slot.
    due: usize,
    /// Endpoints with work due and a free slot, in the order of their turns.
    turns: VecDeque<Endpoint>,
    in_turns: bool,
}

impl Place {
    fn has_slot(&self) -> bool {
        let most = if self.unreachable >= CONNECT_FAILURES_MAX {
            1
        } else {
            ENDPOINT_CALLS_MAX
        };
        self.in_use < most
    }

    fn is_idle(&self) -> bool {
        self.due_ms.is_none() && self.in_use == 0 && self.unreachable == 0 && !self.in_turns
    }
}

impl FairQueue {
    /// Sets how many nodes make calls beside the leader. If they become fewer, no slot is granted until enough of those in
    /// use are released.
    pub fn set_others(&mut self, others: usize) {
        self.others = others;
    }

    /// Sets the due time of an endpoint's earliest delivery; `None` if it has no work.
    pub fn set_due(&mut self, endpoint: Endpoint, due_ms: Option<u64>) {
        let place = self.endpoints.entry(endpoint).or_default();
        if place.due_ms == due_ms {
            self.forget_idle(endpoint);
            return;
        }
        if let Some(before) = place.due_ms {
            self.waiting.remove(&(before, endpoint));
        }
        place.due_ms = due_ms;
        let was_due = std::mem::take(&mut place.is_due);
        if let Some(due_ms) = due_ms {
            self.waiting.insert((due_ms, endpoint));
        }
        if was_due {
            self.count_due(endpoint.0, false);
        }
        self.forget_idle(endpoint);
    }

    /// Admits the endpoints that are due at `now_ms`.
    pub fn advance(&mut self, now_ms: u64) {
        while let Some(&(due_ms, endpoint)) = self.waiting.first()
            && due_ms <= now_ms
        {
            self.waiting.pop_first();
            if let Some(place) = self.endpoints.get_mut(&endpoint) {
                place.is_due = true;
            }
            self.count_due(endpoint.0, true);
            self.take_turns(endpoint);
        }
    }

    /// The time at which the next endpoint is due.
    pub fn next_due_ms(&self) -> Option<u64> {
        self.waiting.first().map(|(due_ms, _)| *due_ms)
    }

    /// Grants a slot to the endpoint whose turn it is.
    pub fn take_slot(&mut self) -> Option<Endpoint> {
        if self.in_use >= self.calls_max() {
            return None;
        }
        for _ in 0..self.turns.len() {
            let id = self.turns.pop_front()?;
            let share = self.share();
            let Some(team) = self.teams.get_mut(&id) else { continue };
            if team.in_use >= share {
                self.turns.push_back(id);
                continue;
            }
            let given = Self::next_of(team, &mut self.endpoints);
            if given.is_some() {
                team.in_use += 1;
                self.in_use += 1;
            }
            if team.turns.is_empty() {
                team.in_turns = false;
                self.forget_idle_team(id);
            } else {
                self.turns.push_back(id);
            }
            if given.is_some() {
                return given;
            }
        }
        None
    }

    /// The endpoint of a team whose turn it is. Endpoints without work or a free slot are dropped from the turns.
    fn next_of(team: &mut Team, endpoints: &mut HashMap<Endpoint, Place>) -> Option<Endpoint> {
        while let Some(endpoint) = team.turns.pop_front() {
            let Some(place) = endpoints.get_mut(&endpoint) else {
                continue;
            };
            place.in_turns = false;
            if place.is_due && place.has_slot() {
                place.in_use += 1;
                if place.has_slot() {
                    place.in_turns = true;
                    team.turns.push_back(endpoint);
                }
                return Some(endpoint);
            }
            if place.is_idle() {
                endpoints.remove(&endpoint);
            }
        }
        None
    }

    /// Takes a slot for a call that an earlier leadership began. It may exceed the limits; then no slot is granted
    /// until enough of them are released.
    pub fn occupy(&mut self, endpoint: Endpoint) {
        self.endpoints.entry(endpoint).or_default().in_use += 1;
        self.teams.entry(endpoint.0).or_default().in_use += 1;
        self.in_use += 1;
    }

    /// Releases a slot.
    pub fn release(&mut self, endpoint: Endpoint, reachability: Reachability) {
        let Some(place) = self.endpoints.get_mut(&endpoint).filter(|place| place.in_use > 0) else {
            debug_assert!(false, "a slot is given back once");
            return;
        };
        place.in_use -= 1;
        match reachability {
            Reachability::Reached => place.unreachable = 0,
            Reachability::Unreachable => place.unreachable = place.unreachable.saturating_add(1),
            Reachability::Untried => {}
        }
        self.in_use -= 1;
        if let Some(team) = self.teams.get_mut(&endpoint.0) {
            team.in_use -= 1;
        }
        self.take_turns(endpoint);
        self.forget_idle(endpoint);
        self.forget_idle_team(endpoint.0);
    }

    /// Slots in use.
    pub fn in_use(&self) -> usize {
        self.in_use
    }

    /// Whether some endpoint is due and has a free slot. Its team may still have to wait.
    pub fn has_turns(&self) -> bool {
        !self.turns.is_empty() && self.in_use < self.calls_max()
    }

    /// Upper bound on the slots in use.
    fn calls_max(&self) -> usize {
        NODE_CALLS_MAX * (1 + self.others)
    }

    /// The number of slots that a team may hold at the moment.
    fn share(&self) -> usize {
        let callers = 1 + self.others;
        if self.calls_max().saturating_sub(self.in_use) < NODE_CALLS_SCARCE * callers {
            (TEAM_CALLS_MAX * callers).min(self.calls_max() / self.due_teams.max(1))
        } else {
            TEAM_CALLS_MAX * callers
        }
    }

    fn take_turns(&mut self, endpoint: Endpoint) {
        let Some(place) = self.endpoints.get_mut(&endpoint) else {
            return;
        };
        if !place.is_due || place.in_turns || !place.has_slot() {
            return;
        }
        place.in_turns = true;
        let team = self.teams.entry(endpoint.0).or_default();
        team.turns.push_back(endpoint);
        if !std::mem::replace(&mut team.in_turns, true) {
            self.turns.push_back(endpoint.0);
        }
    }

    fn count_due(&mut self, id: TeamId, more: bool) {
        let team = self.teams.entry(id).or_default();
        if more {
            self.due_teams += usize::from(team.due == 0);
            team.due += 1;
        } else {
            team.due -= 1;
            self.due_teams -= usize::from(team.due == 0);
        }
    }

    fn forget_idle(&mut self, endpoint: Endpoint) {
        if self.endpoints.get(&endpoint).is_some_and(Place::is_idle) {
            self.endpoints.remove(&endpoint);
        }
    }

    fn forget_idle_team(&mut self, id: TeamId) {
        let is_idle = |team: &Team| team.in_use == 0 && team.due == 0 && !team.in_turns;
        if self.teams.get(&id).is_some_and(is_idle) {
            self.teams.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests;
