//! No node ends by itself, unless its script expected it to.

use super::Evidence;
use crate::verdict::Check;

/// Names every process that did.
pub fn check(evidence: &Evidence) -> Check {
    let ended = evidence.run.crashes.iter();
    let violations = ended.map(|(node, status)| format!("node {node} ended by itself: {status}"));
    Check::new("crashes", evidence.run.nodes, violations.collect())
}
