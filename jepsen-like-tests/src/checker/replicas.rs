//! Replicas are equal: at the end, and at every index at which two of them were observed during the run.

use std::collections::HashMap;

use super::evidence::Evidence;
use crate::record::verdict::Check;

/// Compares the state hashes that nodes reported at equal indexes.
pub fn check(evidence: &Evidence) -> Check {
    let mut violations = Vec::new();
    if !evidence.replicas.same {
        violations.push(format!(
            "the states differ at the end: {}",
            evidence.replicas.difference
        ));
    }
    let mut first: HashMap<u64, (usize, &str)> = HashMap::new();
    let mut looked_at = 1;
    for sample in evidence.node_states.iter().filter(|sample| sample.hash_index > 0) {
        let (node, hash) = *first.entry(sample.hash_index).or_insert((sample.node, &sample.hash));
        looked_at += usize::from(node != sample.node);
        if hash != sample.hash {
            violations.push(format!(
                "at index {} node {node} has the state {hash} and node {} has {}",
                sample.hash_index, sample.node, sample.hash
            ));
        }
    }
    Check::new("replicas", looked_at, violations)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::run_builder::{RunBuilder, node_state};
    use crate::record::leaders::NodeState;

    fn hashed(t: u64, node: usize, hash_index: u64, hash: &str) -> NodeState {
        NodeState {
            hash_index,
            hash: hash.to_owned(),
            ..node_state(t, node, 1, false)
        }
    }

    #[test]
    fn states_are_compared_at_equal_indexes() {
        let same = [hashed(1, 1, 7, "aa"), hashed(1, 2, 8, "bb"), hashed(2, 2, 7, "aa")];
        let check_of = |story: RunBuilder| check(&story.evidence());
        let good = check_of(RunBuilder::default().node_states(same.clone()));
        assert_eq!((good.violations, good.looked_at), (vec![], 2));
        let bad = check_of(
            RunBuilder::default()
                .node_states(same)
                .node_states([hashed(3, 3, 8, "cc")]),
        );
        assert_eq!(bad.violations, ["at index 8 node 2 has the state bb and node 3 has cc"]);
        assert_eq!(
            check_of(RunBuilder::default().diverged()).violations,
            ["the states differ at the end: "]
        );
    }
}
