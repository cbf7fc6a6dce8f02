//! The nodes that make the webhook calls of a leadership: which one makes the next call, and until when it may begin. A
//! pure data structure.
//!
//! Another node counts as a caller while its reports arrive; each carries the time on that node's monotonic clock. The
//! clocks of two nodes are never compared. But a report was sent before it arrived, so when the leader has waited for
//! some time since a report arrived, at least as much has passed on the node's clock since the time in the report. From
//! this the leader computes a time on the node's clock that comes no later than the end of a start window on its own
//! clock. It only relies on both clocks running equally fast for a few seconds.
//!
//! The leader makes the first calls itself, which saves the way to another node while few calls are under way.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::fair_queue::NODE_CALLS_MAX;

/// A node whose last report is older than this gets no calls. Reports come several times in this time.
const REPORT_AGE_MAX: Duration = Duration::from_millis(500);
/// While the leader has fewer calls under way than this, it makes the next one itself.
const OWN_FIRST: usize = 8;
/// Upper bound on the nodes that make calls at a time.
pub(super) const CALLERS_MAX: usize = 16;

/// The nodes that make calls, and how many each of them has under way.
pub(super) struct Callers {
    here: u64,
    own_calls: usize,
    others: HashMap<u64, Caller>,
}

#[derive(Default)]
struct Caller {
    /// The newest report: the time on the node's clock, and when it arrived. `None` if the node takes no calls.
    reported: Option<(u64, Instant)>,
    calls: usize,
}

impl Callers {
    /// Only the leader, node `here`, without calls.
    pub(super) fn new(here: u64) -> Self {
        Callers {
            here,
            own_calls: 0,
            others: HashMap::new(),
        }
    }

    /// Notes a report of a node that takes calls.
    pub(super) fn reported(&mut self, node: u64, clock_ms: u64, arrived: Instant) {
        self.others.entry(node).or_default().reported = Some((clock_ms, arrived));
    }

    /// Notes that a node takes no more calls. Those that it has are still counted.
    pub(super) fn left(&mut self, node: u64) {
        if let Some(caller) = self.others.get_mut(&node) {
            caller.reported = None;
        }
    }

    /// A time on the node's clock that comes no later than `until`; `None` if the node takes no calls.
    pub(super) fn deadline(&self, node: u64, until: Instant, now: Instant) -> Option<u64> {
        let caller = self.others.get(&node).filter(|caller| caller.is_heard(now))?;
        let (clock_ms, arrived) = caller.reported?;
        let left = until.saturating_duration_since(arrived);
        Some(clock_ms + left.as_millis() as u64)
    }

    /// The nodes beside the leader that take calls.
    pub(super) fn others(&self, now: Instant) -> usize {
        let heard = self.others.values().filter(|caller| caller.is_heard(now)).count();
        heard.min(CALLERS_MAX - 1)
    }

    /// Chooses the node that makes the next call, and counts the call.
    pub(super) fn choose(&mut self, now: Instant) -> u64 {
        let takes_calls = |caller: &Caller| caller.is_heard(now) && caller.calls < NODE_CALLS_MAX;
        let others = self.others.iter().filter(|(_, caller)| takes_calls(caller));
        // The number of the node makes the choice reproducible.
        let least = others.min_by_key(|(node, caller)| (caller.calls, **node));
        let node = match least {
            Some((node, caller)) if self.own_calls >= OWN_FIRST && caller.calls < self.own_calls => *node,
            _ => self.here,
        };
        self.occupy(node);
        node
    }

    /// Counts a call that a node has under way.
    pub(super) fn occupy(&mut self, node: u64) {
        *self.calls_of(node) += 1;
    }

    /// A call has ended, or was not granted.
    pub(super) fn release(&mut self, node: u64) {
        let calls = self.calls_of(node);
        debug_assert!(*calls > 0, "a call ends once");
        *calls = calls.saturating_sub(1);
    }

    fn calls_of(&mut self, node: u64) -> &mut usize {
        if node == self.here {
            &mut self.own_calls
        } else {
            &mut self.others.entry(node).or_default().calls
        }
    }
}

impl Caller {
    fn is_heard(&self, now: Instant) -> bool {
        self.reported
            .is_some_and(|(_, arrived)| now.saturating_duration_since(arrived) < REPORT_AGE_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_calls_stay_here_and_the_others_are_shared() {
        let now = Instant::now();
        let mut callers = Callers::new(1);
        callers.reported(2, 1, now);
        callers.reported(3, 1, now);
        let mut calls = HashMap::new();
        for _ in 0..OWN_FIRST {
            assert_eq!(callers.choose(now), 1);
        }
        for _ in 0..22 {
            *calls.entry(callers.choose(now)).or_insert(0) += 1;
        }
        assert_eq!([calls[&1], calls[&2], calls[&3]], [2, 10, 10]);
        callers.release(3);
        assert_eq!(callers.choose(now), 3);
    }

    #[test]
    fn a_node_that_is_silent_or_leaves_gets_no_calls() {
        let now = Instant::now();
        let mut callers = Callers::new(1);
        callers.reported(2, 7, now);
        callers.reported(3, 9, now);
        assert_eq!(callers.others(now), 2);
        callers.left(3);
        assert_eq!((callers.others(now), callers.deadline(3, now, now)), (1, None));
        let later = now + REPORT_AGE_MAX;
        assert_eq!((callers.others(later), callers.deadline(2, later, later)), (0, None));
        assert!((0..2 * OWN_FIRST).all(|_| callers.choose(later) == 1));
        callers.reported(2, 507, later);
        assert_eq!((callers.others(later), callers.choose(later)), (1, 2));
    }

    /// The calls of earlier leaderships fill the other node.
    #[test]
    fn a_node_has_no_more_calls_than_it_may() {
        let now = Instant::now();
        let mut callers = Callers::new(1);
        callers.reported(2, 1, now);
        for _ in 0..NODE_CALLS_MAX {
            callers.occupy(2);
        }
        assert!((0..NODE_CALLS_MAX).all(|_| callers.choose(now) == 1));
        callers.release(2);
        assert_eq!(callers.choose(now), 2);
    }

    /// A report takes 40 ms to arrive. On the node's clock, the window has ended by the time it ends here.
    #[test]
    fn a_deadline_never_lies_behind_the_window() {
        let sent = Instant::now();
        let node_clock_ms = |at: Instant| 5_000 + at.duration_since(sent).as_millis() as u64;
        let mut callers = Callers::new(1);
        callers.reported(2, node_clock_ms(sent), sent + Duration::from_millis(40));
        let granted = sent + Duration::from_millis(300);
        let until = granted + Duration::from_secs(2);
        let deadline = callers.deadline(2, until, granted);
        assert_eq!(deadline, Some(node_clock_ms(until) - 40));
        // The window has ended before the report arrived.
        assert_eq!(callers.deadline(2, sent, granted), Some(5_000));
    }
}
