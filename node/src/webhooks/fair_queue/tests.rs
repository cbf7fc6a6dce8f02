#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

fn team(n: u8) -> TeamId {
    TeamId([n; 16])
}

/// Takes slots until none is granted.
fn all(queue: &mut FairQueue) -> Vec<Endpoint> {
    std::iter::from_fn(|| queue.take_slot()).collect()
}

#[test]
fn slots_alternate_between_teams_and_then_between_endpoints() {
    let mut queue = FairQueue::default();
    for generation in [1, 2, 3] {
        queue.set_due((team(1), generation), Some(5));
    }
    queue.set_due((team(2), 9), Some(5));
    queue.advance(4);
    assert_eq!((queue.take_slot(), queue.next_due_ms()), (None, Some(5)));
    queue.advance(5);
    let turns: Vec<_> = (0..6).map(|_| queue.take_slot().unwrap()).collect();
    let of = |t, g| (team(t), g);
    assert_eq!(turns, [of(1, 1), of(2, 9), of(1, 2), of(2, 9), of(1, 3), of(2, 9)]);
}

#[test]
fn an_endpoint_a_team_and_the_node_have_their_limits() {
    let mut queue = FairQueue::default();
    queue.set_due((team(1), 1), Some(0));
    queue.advance(0);
    assert_eq!(all(&mut queue).len(), ENDPOINT_CALLS_MAX);
    for generation in 2..20 {
        queue.set_due((team(1), generation), Some(0));
    }
    queue.advance(0);
    assert_eq!(all(&mut queue).len(), TEAM_CALLS_MAX - ENDPOINT_CALLS_MAX);
    for t in 2..20 {
        for generation in 0..20 {
            queue.set_due((team(t), generation), Some(0));
        }
    }
    queue.advance(0);
    all(&mut queue);
    assert!(queue.in_use() <= NODE_CALLS_MAX);
    assert!(queue.in_use() > NODE_CALLS_MAX - NODE_CALLS_SCARCE);
}

#[test]
fn teams_whose_endpoints_hang_leave_room_for_one_that_comes_later() {
    let mut queue = FairQueue::default();
    for t in 1..=30 {
        for generation in 0..10 {
            queue.set_due((team(t), generation), Some(0));
        }
    }
    queue.advance(0);
    let hanging = all(&mut queue);
    assert!(hanging.len() <= NODE_CALLS_MAX);
    queue.set_due((team(99), 1), Some(1));
    queue.advance(1);
    // Every team holds at most its share, so the newcomer gets the next free slot.
    let got = queue.take_slot().or_else(|| {
        queue.release(hanging[0], Reachability::Reached);
        queue.take_slot()
    });
    assert_eq!(got, Some((team(99), 1)));
}

#[test]
fn an_unreachable_endpoint_gets_one_call_at_a_time_until_it_answers() {
    let mut queue = FairQueue::default();
    let dead = (team(1), 1);
    queue.set_due(dead, Some(0));
    queue.advance(0);
    for _ in 0..CONNECT_FAILURES_MAX {
        assert_eq!(queue.take_slot(), Some(dead));
        queue.release(dead, Reachability::Unreachable);
    }
    assert_eq!(all(&mut queue), [dead]);
    queue.release(dead, Reachability::Untried);
    assert_eq!(all(&mut queue), [dead]);
    queue.release(dead, Reachability::Reached);
    assert_eq!(all(&mut queue).len(), ENDPOINT_CALLS_MAX);
}

#[test]
fn an_endpoint_without_work_is_forgotten() {
    let mut queue = FairQueue::default();
    let endpoint = (team(1), 1);
    queue.set_due(endpoint, Some(0));
    queue.advance(0);
    assert_eq!(queue.take_slot(), Some(endpoint));
    queue.set_due(endpoint, None);
    assert_eq!(queue.take_slot(), None);
    queue.release(endpoint, Reachability::Reached);
    assert_eq!(queue.take_slot(), None);
    assert!(queue.endpoints.is_empty() && queue.teams.is_empty() && queue.waiting.is_empty());
    assert_eq!((queue.in_use(), queue.due_teams), (0, 0));
}

#[derive(Debug, Clone)]
enum Step {
    SetDue(Endpoint, Option<u64>),
    Advance(u64),
    Next(usize),
    Release(usize, Reachability),
    Others(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let endpoint = || (1..12u8, 0..12u64).prop_map(|(t, g)| (team(t), g));
    let reachability = prop_oneof![
        Just(Reachability::Reached),
        Just(Reachability::Unreachable),
        Just(Reachability::Untried)
    ];
    prop_oneof![
        4 => (endpoint(), proptest::option::of(0..50u64)).prop_map(|(e, due)| Step::SetDue(e, due)),
        2 => (1..20u64).prop_map(Step::Advance),
        3 => (1..200usize).prop_map(Step::Next),
        3 => (any::<usize>(), reachability).prop_map(|(n, reachability)| Step::Release(n, reachability)),
        1 => (0..3usize).prop_map(Step::Others),
    ]
}

/// A model of the queue that is simple rather than fast.
#[derive(Default)]
struct Model {
    now_ms: u64,
    due: HashMap<Endpoint, u64>,
    failures: HashMap<Endpoint, u32>,
    held: Vec<Endpoint>,
    others: usize,
}

impl Model {
    fn held_by(&self, of: impl Fn(&Endpoint) -> bool) -> usize {
        self.held.iter().filter(|e| of(e)).count()
    }

    fn is_due(&self, endpoint: &Endpoint) -> bool {
        self.due.get(endpoint).is_some_and(|due| *due <= self.now_ms)
    }

    fn has_slot(&self, endpoint: &Endpoint) -> bool {
        let dead = self.failures.get(endpoint).is_some_and(|n| *n >= CONNECT_FAILURES_MAX);
        self.held_by(|e| e == endpoint) < if dead { 1 } else { ENDPOINT_CALLS_MAX }
    }

    fn share(&self) -> usize {
        let mut teams: Vec<TeamId> = self.due.keys().filter(|e| self.is_due(e)).map(|e| e.0).collect();
        teams.sort_unstable();
        teams.dedup();
        let callers = 1 + self.others;
        match self.calls_max().saturating_sub(self.held.len()) < NODE_CALLS_SCARCE * callers {
            true => (TEAM_CALLS_MAX * callers).min(self.calls_max() / teams.len().max(1)),
            false => TEAM_CALLS_MAX * callers,
        }
    }

    fn calls_max(&self) -> usize {
        NODE_CALLS_MAX * (1 + self.others)
    }

    fn may_have(&self, endpoint: &Endpoint) -> bool {
        self.held.len() < self.calls_max()
            && self.is_due(endpoint)
            && self.has_slot(endpoint)
            && self.held_by(|e| e.0 == endpoint.0) < self.share()
    }
}

proptest! {
    #[test]
    fn slots_go_exactly_to_the_endpoints_that_may_have_them(steps in proptest::collection::vec(step(), 1..120)) {
        let mut queue = FairQueue::default();
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::SetDue(endpoint, due) => {
                    let due = due.map(|after| model.now_ms + after);
                    queue.set_due(endpoint, due);
                    match due {
                        Some(due) => model.due.insert(endpoint, due),
                        None => model.due.remove(&endpoint),
                    };
                }
                Step::Advance(by) => model.now_ms += by,
                Step::Next(times) => for _ in 0..times {
                    queue.advance(model.now_ms);
                    match queue.take_slot() {
                        Some(endpoint) => {
                            prop_assert!(model.may_have(&endpoint), "{endpoint:?} got a slot");
                            model.held.push(endpoint);
                        }
                        None => {
                            let passed_over = model.due.keys().find(|e| model.may_have(e));
                            prop_assert_eq!(passed_over, None);
                            break;
                        }
                    }
                },
                Step::Release(n, reachability) if !model.held.is_empty() => {
                    let endpoint = model.held.swap_remove(n % model.held.len());
                    queue.release(endpoint, reachability);
                    let failures = model.failures.entry(endpoint).or_default();
                    match reachability {
                        Reachability::Reached => *failures = 0,
                        Reachability::Unreachable => *failures += 1,
                        Reachability::Untried => {}
                    }
                }
                Step::Release(..) => {}
                Step::Others(others) => {
                    model.others = others;
                    queue.set_others(others);
                }
            }
            prop_assert_eq!(queue.in_use(), model.held.len());
        }
    }

    /// However long the other queues are, every team with a free slot is served within one round of turns.
    #[test]
    fn nobody_waits_for_more_than_one_turn_of_each_other(teams in proptest::collection::vec(1..20u64, 1..8)) {
        let mut queue = FairQueue::default();
        for (t, endpoints) in teams.iter().enumerate() {
            for generation in 0..*endpoints {
                queue.set_due((team(t as u8), generation), Some(0));
            }
        }
        queue.advance(0);
        let mut seen = HashMap::new();
        for turn in 0..teams.len() * 5 {
            let Some(endpoint) = queue.take_slot() else { break };
            *seen.entry(endpoint.0).or_insert(0usize) += 1;
            queue.release(endpoint, Reachability::Reached);
            let (least, most) = (seen.values().min().unwrap(), seen.values().max().unwrap());
            prop_assert!(seen.len() < teams.len() || most - least <= 1, "turn {}: {:?}", turn, seen);
        }
        prop_assert_eq!(seen.len(), teams.len());
    }
}

/// Three nodes make three times as many calls for a team and in total, and when slots are scarce each team still gets its
/// share of all of them.
#[test]
fn limits_and_shares_grow_with_the_nodes_that_call_and_shrink_with_them() {
    let mut queue = FairQueue::default();
    queue.set_others(2);
    let fill = |queue: &mut FairQueue, teams: std::ops::RangeInclusive<u8>| {
        for t in teams {
            for generation in 0..30 {
                queue.set_due((team(t), generation), Some(0));
            }
        }
        queue.advance(0);
        all(queue)
    };
    let of = |held: &[Endpoint], t: u8| held.iter().filter(|endpoint| endpoint.0 == team(t)).count();
    let mut held = fill(&mut queue, 1..=1);
    assert_eq!(held.len(), 3 * TEAM_CALLS_MAX);
    held.extend(fill(&mut queue, 2..=20));
    assert!((1..=20).all(|t| of(&held, t) <= 3 * TEAM_CALLS_MAX));
    assert!(held.len() > 3 * (NODE_CALLS_MAX - NODE_CALLS_SCARCE) && held.len() <= 3 * NODE_CALLS_MAX);
    queue.set_due((team(99), 1), Some(0));
    queue.advance(0);
    for _ in 0..=20 {
        queue.release(held.remove(0), Reachability::Reached);
        held.extend(queue.take_slot());
    }
    assert!(of(&held, 99) > 0, "a newcomer gets a slot within one round of turns");

    queue.set_others(0);
    assert_eq!(queue.take_slot(), None, "more slots are in use than one node has");
    while queue.in_use() >= NODE_CALLS_MAX {
        queue.release(held.pop().unwrap(), Reachability::Reached);
    }
    assert!(queue.has_turns());
}

/// Calls of an earlier leadership may be more than the limits allow, when its own were not all over at its beginning.
#[test]
fn slots_of_earlier_calls_count_even_beyond_the_limits() {
    let mut queue = FairQueue::default();
    for _ in 0..ENDPOINT_CALLS_MAX + 2 {
        queue.occupy((team(1), 1));
    }
    queue.set_due((team(1), 1), Some(0));
    queue.set_due((team(1), 2), Some(0));
    queue.advance(0);
    assert_eq!(all(&mut queue), [(team(1), 2); ENDPOINT_CALLS_MAX]);
    for _ in 0..2 {
        queue.release((team(1), 1), Reachability::Untried);
        assert_eq!(queue.take_slot(), None);
    }
    queue.release((team(1), 1), Reachability::Untried);
    assert_eq!(queue.take_slot(), Some((team(1), 1)));

    for n in 0..NODE_CALLS_MAX {
        queue.occupy((team(2), n as u64));
    }
    assert!(queue.in_use() > NODE_CALLS_MAX);
    queue.set_due((team(3), 1), Some(0));
    queue.advance(0);
    assert_eq!(queue.take_slot(), None, "the node has no slot");
}
