//! Replicas are the same: in the end, and at every index at which two of them were asked while the run lasted.

use std::collections::HashMap;

use super::Evidence;
use crate::verdict::Check;

/// Compares the state hashes that nodes told at equal indexes.
pub fn check(evidence: &Evidence) -> Check {
    let mut violations = Vec::new();
    if !evidence.replicas.same {
        violations.push(format!("the states differ in the end: {}", evidence.replicas.seen));
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
