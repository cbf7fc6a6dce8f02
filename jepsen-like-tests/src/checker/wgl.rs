//! Whether concurrent operations on one small object can be put into a linear order that explains every response and
//! respects real time: the search of Wing and Gong with Lowe's memoization.
//!
//! It walks through begins and ends in the order of time. At a begin it tries to let the operation take effect now;
//! at the end of an operation that has not taken effect it backtracks to the last choice. A configuration, that is,
//! the set of operations done and the state reached, is tried only once. An operation with an unknown end may take
//! effect at any later time, or never.

use std::collections::HashSet;
use std::hash::Hash;

/// Choices before the search gives up: histories of one key are small, and a bug must not make a check endless.
const CHOICES_MAX: usize = 1_000_000;

/// An operation as its client saw it.
#[derive(Debug, Clone)]
pub struct TimedOperation<O> {
    pub began: u64,
    /// When it was answered; `None` if it is unknown whether it took effect.
    pub ended: Option<u64>,
    /// The request and its response.
    pub what: O,
}

/// The result of the search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SearchResult {
    /// There is an order that explains everything.
    Order,
    /// There is no such order.
    None,
    /// The search gave up.
    GaveUp,
}

/// Searches for an order. `step` returns the state after an operation, or `None` if its response does not fit the
/// state.
pub fn search<S: Clone + Eq + Hash, O>(
    initial: S,
    calls: &[TimedOperation<O>],
    step: impl Fn(&S, &O) -> Option<S>,
) -> SearchResult {
    let mut line = Line::of(calls);
    let mut missing = calls.iter().filter(|call| call.ended.is_some()).count();
    let mut done = vec![0_u64; calls.len().div_ceil(64)];
    let mut tried: HashSet<(Vec<u64>, S)> = HashSet::new();
    let mut choices: Vec<(usize, S)> = Vec::new();
    let mut state = initial;
    let mut at = line.first();
    while missing > 0 {
        let Some(mark) = line.mark(at) else {
            unreachable!("the end of a call comes after its begin until it took effect");
        };
        if mark.begins
            && let Some(next) = step(&state, &calls[mark.call].what)
        {
            flip(&mut done, mark.call);
            if tried.insert((done.clone(), next.clone())) {
                if tried.len() > CHOICES_MAX {
                    return SearchResult::GaveUp;
                }
                missing -= usize::from(calls[mark.call].ended.is_some());
                choices.push((at, std::mem::replace(&mut state, next)));
                line.take(at);
                at = line.first();
                continue;
            }
            flip(&mut done, mark.call);
        }
        if mark.begins {
            at = line.after(at);
            continue;
        }
        let Some((choice, before)) = choices.pop() else {
            return SearchResult::None;
        };
        state = before;
        line.put_back(choice);
        let call = line.marks[choice].call;
        missing += usize::from(calls[call].ended.is_some());
        flip(&mut done, call);
        at = line.after(choice);
    }
    SearchResult::Order
}

fn flip(bits: &mut [u64], place: usize) {
    bits[place / 64] ^= 1 << (place % 64);
}

/// The begin or the end of an operation.
#[derive(Clone, Copy)]
struct Mark {
    call: usize,
    begins: bool,
}

/// Begins and ends sorted by time, from which operations are removed and put back in the opposite order.
struct Line {
    marks: Vec<Mark>,
    /// The position of each operation's end.
    end: Vec<Option<usize>>,
    /// The next and the previous position of each; one extra position stands for both ends of the list.
    next: Vec<usize>,
    last: Vec<usize>,
}

impl Line {
    fn of<O>(calls: &[TimedOperation<O>]) -> Self {
        let mut times: Vec<(u64, bool, usize)> = Vec::new();
        for (number, call) in calls.iter().enumerate() {
            times.push((call.began, false, number));
            times.extend(call.ended.map(|ended| (ended, true, number)));
        }
        // At equal times begins come first: such operations may overlap.
        times.sort_unstable();
        let mut end = vec![None; calls.len()];
        for (place, (_, ends, call)) in times.iter().enumerate() {
            if *ends {
                end[*call] = Some(place);
            }
        }
        let count = times.len() + 1;
        Line {
            marks: times
                .into_iter()
                .map(|(_, ends, call)| Mark { call, begins: !ends })
                .collect(),
            end,
            next: (0..count).map(|place| (place + 1) % count).collect(),
            last: (0..count).map(|place| (place + count - 1) % count).collect(),
        }
    }

    fn first(&self) -> usize {
        self.next[self.marks.len()]
    }

    fn after(&self, place: usize) -> usize {
        self.next[place]
    }

    fn mark(&self, place: usize) -> Option<Mark> {
        self.marks.get(place).copied()
    }

    fn take(&mut self, begin: usize) {
        self.unlink(begin);
        if let Some(end) = self.end[self.marks[begin].call] {
            self.unlink(end);
        }
    }

    fn put_back(&mut self, begin: usize) {
        if let Some(end) = self.end[self.marks[begin].call] {
            self.link(end);
        }
        self.link(begin);
    }

    fn unlink(&mut self, place: usize) {
        let (last, next) = (self.last[place], self.next[place]);
        self.next[last] = next;
        self.last[next] = last;
    }

    fn link(&mut self, place: usize) {
        let (last, next) = (self.last[place], self.next[place]);
        self.next[last] = place;
        self.last[next] = place;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Operations on a register that holds a number.
    #[derive(Debug, Clone, Copy)]
    enum Do {
        Write(u8),
        Read(u8),
        /// Writes the second value if it reads the first.
        Swap(u8, u8),
    }

    fn step(state: &u8, what: &Do) -> Option<u8> {
        match *what {
            Do::Write(value) => Some(value),
            Do::Read(value) => (value == *state).then_some(value),
            Do::Swap(from, to) => (from == *state).then_some(to),
        }
    }

    fn call(began: u64, ended: u64, what: Do) -> TimedOperation<Do> {
        TimedOperation {
            began,
            ended: Some(ended),
            what,
        }
    }

    fn unknown(began: u64, what: Do) -> TimedOperation<Do> {
        TimedOperation {
            began,
            ended: None,
            what,
        }
    }

    fn found(calls: &[TimedOperation<Do>]) -> SearchResult {
        search(0, calls, step)
    }

    #[test]
    fn reads_see_the_last_write_before_them() {
        assert_eq!(found(&[]), SearchResult::Order);
        assert_eq!(
            found(&[call(1, 2, Do::Write(1)), call(3, 4, Do::Read(1))]),
            SearchResult::Order
        );
        assert_eq!(
            found(&[call(1, 2, Do::Write(1)), call(3, 4, Do::Read(0))]),
            SearchResult::None
        );
        assert_eq!(
            found(&[call(1, 2, Do::Read(1)), call(3, 4, Do::Write(1))]),
            SearchResult::None
        );
    }

    #[test]
    fn overlapping_calls_may_take_any_one_order() {
        for seen in [0, 1] {
            assert_eq!(
                found(&[call(1, 4, Do::Write(1)), call(2, 3, Do::Read(seen))]),
                SearchResult::Order
            );
        }
        let back = [
            call(1, 8, Do::Write(1)),
            call(2, 3, Do::Read(1)),
            call(4, 5, Do::Read(0)),
        ];
        assert_eq!(found(&back), SearchResult::None);
        let both = [
            call(1, 8, Do::Write(1)),
            call(1, 8, Do::Write(2)),
            call(2, 3, Do::Read(2)),
            call(4, 5, Do::Read(1)),
        ];
        assert_eq!(found(&both), SearchResult::Order);
        let thrice = [&both[..], &[call(6, 7, Do::Read(2))]].concat();
        assert_eq!(found(&thrice), SearchResult::None);
    }

    #[test]
    fn an_unknown_call_may_take_effect_late_or_never_but_not_early() {
        assert_eq!(
            found(&[unknown(1, Do::Write(1)), call(5, 6, Do::Read(0))]),
            SearchResult::Order
        );
        assert_eq!(
            found(&[unknown(1, Do::Write(1)), call(5, 6, Do::Read(1))]),
            SearchResult::Order
        );
        let twice = [
            unknown(1, Do::Write(1)),
            call(5, 6, Do::Read(0)),
            call(7, 8, Do::Read(1)),
        ];
        assert_eq!(found(&twice), SearchResult::Order);
        assert_eq!(
            found(&[call(1, 2, Do::Read(1)), unknown(3, Do::Write(1))]),
            SearchResult::None
        );
        let again = [
            unknown(1, Do::Write(1)),
            call(3, 4, Do::Read(1)),
            call(5, 6, Do::Read(0)),
        ];
        assert_eq!(found(&again), SearchResult::None);
    }

    #[test]
    fn a_search_goes_back_as_far_as_it_must() {
        // Only 0 -> 3 -> 2 -> 1 explains all, and the operations begin in the opposite order.
        let chain = [
            call(1, 20, Do::Swap(2, 1)),
            call(2, 20, Do::Swap(3, 2)),
            call(3, 20, Do::Swap(0, 3)),
            call(30, 31, Do::Read(1)),
        ];
        assert_eq!(found(&chain), SearchResult::Order);
        let broken = [&chain[..3], &[call(30, 31, Do::Read(2))]].concat();
        assert_eq!(found(&broken), SearchResult::None);
    }

    #[test]
    fn it_agrees_with_trying_every_order() {
        let mut seed = 7_u64;
        let mut random = |below: u64| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        let mut kinds = [0, 0];
        for _ in 0..3_000 {
            let calls: Vec<TimedOperation<Do>> = (0..5)
                .map(|_| {
                    let began = random(12);
                    let what = match random(3) {
                        0 => Do::Write(random(3) as u8),
                        1 => Do::Swap(random(3) as u8, random(3) as u8),
                        _ => Do::Read(random(3) as u8),
                    };
                    let ended = (random(5) > 0).then(|| began + 1 + random(6));
                    TimedOperation { began, ended, what }
                })
                .collect();
            let expected = explained(0, &calls, &mut [false; 5]);
            kinds[usize::from(expected)] += 1;
            assert_eq!(found(&calls) == SearchResult::Order, expected, "{calls:?}");
        }
        assert!(kinds.iter().all(|count| *count > 300), "{kinds:?}");
    }

    /// Tries every order.
    fn explained(state: u8, calls: &[TimedOperation<Do>], done: &mut [bool; 5]) -> bool {
        let open = |done: &[bool; 5]| (0..calls.len()).filter(|n| !done[*n]).collect::<Vec<_>>();
        if open(done).iter().all(|n| calls[*n].ended.is_none()) {
            return true;
        }
        let first_end = open(done).iter().filter_map(|n| calls[*n].ended).min();
        for number in open(done) {
            if first_end.is_some_and(|end| calls[number].began > end) {
                continue;
            }
            if let Some(next) = step(&state, &calls[number].what) {
                done[number] = true;
                if explained(next, calls, done) {
                    return true;
                }
                done[number] = false;
            }
        }
        false
    }
}
