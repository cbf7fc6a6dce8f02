//! In a scenario without faults that end a leadership, no election begins: a healthy leader keeps its leadership under
//! any load.

use super::evidence::{Evidence, seconds};
use crate::record::verdict::Check;

/// Reports every term that began after the first report of the run. Terms also rise with elections that fail.
pub fn check(evidence: &Evidence) -> Check {
    if !evidence.run.required.steady_leader {
        return Check::new("steady-leader", 0, Vec::new());
    }
    let during = evidence
        .node_states
        .iter()
        .filter(|state| state.t <= evidence.run.healed)
        .collect::<Vec<_>>();
    let mut highest = None;
    let mut violations = Vec::new();
    for state in &during {
        let term = *highest.get_or_insert(state.term);
        if state.term > term {
            violations.push(format!(
                "term {} began on node {} by {}; term {term} had a leader",
                state.term,
                state.node,
                seconds(state.t)
            ));
            highest = Some(state.term);
        }
    }
    Check::new("steady-leader", during.len(), violations)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::run_builder::{RunBuilder, node_state};

    #[test]
    fn a_new_term_is_a_violation_only_where_the_leader_must_be_steady() {
        let states = || {
            [
                node_state(100, 1, 4, true),
                node_state(200, 2, 4, false),
                node_state(300, 2, 5, false),
                node_state(400, 1, 5, true),
                node_state(1_500, 1, 6, true),
            ]
        };
        let steady = RunBuilder::default().run(|run| run.required.steady_leader = true);
        let found = check(&steady.node_states(states()).evidence());
        // The last report came after the end of the faults.
        assert_eq!(found.looked_at, 4);
        assert_eq!(
            found.violations,
            ["term 5 began on node 2 by 0.300 s; term 4 had a leader"]
        );
        let any = check(&RunBuilder::default().node_states(states()).evidence());
        assert_eq!((any.looked_at, any.violated), (0, 0));
    }
}
