//! An inbox is one total order, the same on every node.

use std::collections::HashMap;

use super::Evidence;
use crate::history::{Item, Op};
use crate::verdict::Check;

/// Compares every inbox of every node with the first node's.
pub fn check(evidence: &Evidence) -> Check {
    let mut first: HashMap<&str, (usize, &[Item])> = HashMap::new();
    let mut violations = Vec::new();
    let mut looked_at = 0;
    let audits = evidence.operations.iter().filter(|o| o.op == Op::Audit);
    for audit in audits {
        let (Some(answered), Some(node)) = (audit.answered(), audit.node) else {
            continue;
        };
        looked_at += answered.items.len();
        let (other, expected) = *first.entry(&audit.k).or_insert((node, &answered.items));
        if expected != answered.items {
            violations.push(format!("nodes {other} and {node} show different orders of {}", audit.k));
        }
    }
    Check::new("inbox-order", looked_at, violations)
}
