//! Replicas are equal: at the end, and at every index at which two of them were observed during the run.

use std::collections::HashMap;

use super::Evidence;
use crate::verdict::Check;

/// Compares the state hashes that nodes reported at equal indexes.
pub fn check(evidence: &Evidence) -> Check {
    let mut violations = Vec::new();
    if !evidence.replicas.same {
        violations.push(format!("the states differ at the end: {}", evidence.replicas.seen));
    }
    let mut first: HashMap<u64, (usize, &str)> = HashMap::new();
    let mut looked_at = 1;
    for sample in evidence.samples.iter().filter(|sample| sample.hash_index > 0) {
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
    use crate::checker::made_up::{Story, sample};
    use crate::watch::Sample;

    fn hashed(t: u64, node: usize, hash_index: u64, hash: &str) -> Sample {
        Sample {
            hash_index,
            hash: hash.to_owned(),
            ..sample(t, node, 1, false)
        }
    }

    #[test]
    fn states_are_compared_at_equal_indexes() {
        let same = [hashed(1, 1, 7, "aa"), hashed(1, 2, 8, "bb"), hashed(2, 2, 7, "aa")];
        let check_of = |story: Story| check(&story.evidence());
        let good = check_of(Story::default().samples(same.clone()));
        assert_eq!((good.violations, good.looked_at), (vec![], 2));
        let bad = check_of(Story::default().samples(same).samples([hashed(3, 3, 8, "cc")]));
        assert_eq!(bad.violations, ["at index 8 node 2 has the state bb and node 3 has cc"]);
        assert_eq!(
            check_of(Story::default().diverged()).violations,
            ["the states differ at the end: "]
        );
    }
}
