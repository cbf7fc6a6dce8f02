//! Raft's rules as far as they are visible from outside, with ten observations a second.
//!
//! | rule | observation |
//! |---|---|
//! | one leader per term | terms in which a node said in two consecutive responses that it leads |
//! | applied entries stay applied | a node's applied index while its process lives |
//! | terms only grow | a node's term while its process lives; after a restart, too, it never falls below a term in which the node led, because its vote for itself was on disk by then |
//! | only entries that a snapshot covers are purged | two consecutive responses, because metrics are not read atomically |
//!
//! A process is taken to live as long as it answers in time and no fault affects it. A node that lost its data starts
//! over: a fault of any kind outside [`KEEPS_DATA`] excuses it, and so does an empty log.

use std::collections::HashMap;

use super::evidence::{Evidence, seconds};
use crate::record::faults::{Fault, FaultState};
use crate::record::leaders::NodeState;
use crate::record::verdict::Check;

/// Faults that lose no flushed data.
const KEEPS_DATA: [&str; 9] = [
    "kill",
    "restart",
    "pause",
    "power",
    "partition",
    "latency",
    "loss",
    "bandwidth",
    "transfer",
];

/// The longest time between two responses of a process that was not restarted.
const LIVES_NS: u64 = 400_000_000;

/// Compares what nodes reported with earlier reports.
pub fn check(evidence: &Evidence) -> Check {
    let mut violations = terms(evidence);
    for node in 1..=evidence.node_states.iter().map(|sample| sample.node).max().unwrap_or(0) {
        let said: Vec<&NodeState> = evidence
            .node_states
            .iter()
            .filter(|sample| sample.node == node)
            .collect();
        violations.extend(of_node(evidence, &said));
    }
    Check::new("raft", evidence.node_states.len(), violations)
}

fn terms(evidence: &Evidence) -> Vec<String> {
    let mut leaders: HashMap<u64, usize> = HashMap::new();
    let twice = evidence.leaderships.iter().filter_map(|leadership| {
        let first = *leaders.entry(leadership.term).or_insert(leadership.node);
        (first != leadership.node).then(|| {
            format!(
                "nodes {first} and {} both led in term {}",
                leadership.node, leadership.term
            )
        })
    });
    twice.collect()
}

fn of_node(evidence: &Evidence, said: &[&NodeState]) -> Vec<String> {
    let mut violations = Vec::new();
    let mut led = 0;
    for pair in said.windows(2) {
        let (before, now) = (pair[0], pair[1]);
        let (node, at) = (now.node, seconds(now.t));
        let emptied = (now.term, now.last) == (0, 0);
        if emptied
            || between(evidence, before, now, |fault| {
                !KEEPS_DATA.contains(&fault.kind.as_str())
            })
        {
            led = 0;
            continue;
        }
        if before.leads && now.leads && before.term == now.term {
            led = now.term;
        }
        if now.term < led {
            violations.push(format!(
                "node {node} led in term {led}, but reports term {} at {at}",
                now.term
            ));
        }
        if before.snapshot < before.purged && now.snapshot < now.purged {
            violations.push(format!(
                "node {node} purged its log up to {}, but its snapshot ends at {}, at {at}",
                now.purged, now.snapshot
            ));
        }
        if now.t - before.asked < LIVES_NS && !between(evidence, before, now, |_| true) {
            if now.term < before.term {
                violations.push(format!(
                    "the term of node {node} fell from {} to {} by {at}",
                    before.term, now.term
                ));
            }
            if now.applied < before.applied {
                violations.push(format!(
                    "the applied index of node {node} fell from {} to {} by {at}",
                    before.applied, now.applied
                ));
            }
        }
    }
    violations
}

/// Whether such a fault affected the node between two of its responses.
fn between(evidence: &Evidence, before: &NodeState, now: &NodeState, such: impl Fn(&Fault) -> bool) -> bool {
    evidence.faults.iter().any(|fault| {
        let there = fault.began <= now.t && fault.ended >= before.asked;
        there && fault.state != FaultState::Skipped && fault.nodes.contains(&now.node) && such(fault)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::run_builder::{RunBuilder, node_state};

    fn violations(story: RunBuilder) -> Vec<String> {
        check(&story.evidence()).violations
    }

    fn applied(t: u64, node: usize, term: u64, applied: u64) -> NodeState {
        NodeState {
            applied,
            ..node_state(t, node, term, false)
        }
    }

    #[test]
    fn terms_and_what_is_applied_grow_while_a_process_lives() {
        let grow = [applied(100, 1, 1, 5), applied(200, 2, 1, 4), applied(300, 1, 2, 9)];
        assert_eq!(violations(RunBuilder::default().node_states(grow)), [""; 0]);
        let fall = [applied(100, 1, 2, 5), applied(200, 1, 1, 4)];
        assert_eq!(
            violations(RunBuilder::default().node_states(fall.clone())),
            [
                "the term of node 1 fell from 2 to 1 by 0.200 s",
                "the applied index of node 1 fell from 5 to 4 by 0.200 s"
            ]
        );
        let killed = RunBuilder::default().fault("kill", &[1], 120..180).node_states(fall);
        assert_eq!(violations(killed), [""; 0]);
        let late = [applied(100, 1, 2, 5), applied(1_200, 1, 1, 4)];
        assert_eq!(violations(RunBuilder::default().node_states(late)), [""; 0]);
    }

    #[test]
    fn a_term_has_one_leader_and_a_leader_remembers_its_term() {
        let led = [node_state(100, 1, 4, true), node_state(200, 1, 4, true)];
        let other = [node_state(300, 2, 4, true), node_state(400, 2, 4, true)];
        assert_eq!(
            violations(RunBuilder::default().node_states(led.clone()).node_states(other)),
            ["nodes 1 and 2 both led in term 4"]
        );
        let forgot = |kind| {
            let story = RunBuilder::default()
                .fault(kind, &[1], 250..900)
                .node_states(led.clone());
            violations(story.node_states([node_state(900, 1, 3, false)]))
        };
        assert_eq!(forgot("kill"), ["node 1 led in term 4, but reports term 3 at 0.900 s"]);
        assert_eq!(forgot("wipe"), [""; 0]);
    }

    #[test]
    fn only_what_a_snapshot_covers_is_purged() {
        let purged = |t| NodeState {
            snapshot: 10,
            purged: 11,
            ..node_state(t, 1, 1, false)
        };
        assert_eq!(violations(RunBuilder::default().node_states([purged(100)])), [""; 0]);
        assert_eq!(
            violations(RunBuilder::default().node_states([purged(100), purged(200)])),
            ["node 1 purged its log up to 11, but its snapshot ends at 10, at 0.200 s"]
        );
    }
}
