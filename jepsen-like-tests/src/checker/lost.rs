//! Nothing acknowledged is lost, nothing unasked appears, nothing is there twice, nothing refused is there.

use std::collections::HashMap;

use super::Evidence;
use crate::history::{Op, Operation, Outcome};
use crate::verdict::Check;

/// Compares what was sent with what every node shows in the end.
pub fn check(evidence: &Evidence) -> Check {
    let sends: Vec<&Operation> = evidence.operations.iter().filter(|o| o.op == Op::Send).collect();
    let mut violations = Vec::new();
    for node in 1..=evidence.run.nodes {
        violations.extend(of_node(evidence, node, &sends));
    }
    let looked_at: usize = sends.iter().map(|send| send.asked.items.len()).sum();
    Check::new("lost", looked_at, violations)
}

fn of_node(evidence: &Evidence, node: usize, sends: &[&Operation]) -> Vec<String> {
    let mut violations = Vec::new();
    let mut seen: HashMap<&str, Vec<(&str, &str)>> = HashMap::new();
    let audits = evidence
        .operations
        .iter()
        .filter(|o| o.op == Op::Audit && o.node == Some(node));
    for audit in audits {
        let Some(answered) = audit.answered() else {
            violations.push(format!(
                "node {node} does not show {} after healing: {:?}",
                audit.k, audit.outcome
            ));
            continue;
        };
        for item in &answered.items {
            seen.entry(&item.key).or_default().push((&audit.k, &item.id));
        }
    }
    for send in sends {
        for (number, asked) in send.asked.items.iter().enumerate() {
            let (key, places) = (&asked.key, seen.remove(asked.key.as_str()).unwrap_or_default());
            let acknowledged = send.answered().map(|answered| answered.items[number].id.as_str());
            match (&send.outcome, acknowledged, places.as_slice()) {
                (_, Some(id), []) => violations.push(format!("node {node} lost {key}, acknowledged as {id}")),
                (_, Some(id), [(inbox, there)]) if *inbox != send.k || *there != id => violations.push(format!(
                    "node {node} has {key} as {there} in {inbox} instead of {id} in {}",
                    send.k
                )),
                (Outcome::Fail(why), _, [_, ..]) => {
                    violations.push(format!("node {node} has {key}, refused: {why}"));
                }
                (_, _, [_, _, ..]) => violations.push(format!("node {node} has {key} {} times", places.len())),
                _ => {}
            }
        }
    }
    let strangers = seen.into_keys().filter(|key| !key.is_empty());
    violations.extend(strangers.map(|key| format!("node {node} has {key}, which nobody sent")));
    violations
}
