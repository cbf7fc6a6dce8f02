//! Teams are isolated, and no key exceeds its rights: the inboxes of a team contain only messages sent in that team;
//! requests for another team's data are answered as if the data did not exist; what a key wrote is in its own team
//! exactly once.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::evidence::Evidence;
use crate::record::history::{Op, Operation, Outcome};
use crate::record::verdict::Check;

/// Checks probes and inboxes.
pub fn check(evidence: &Evidence) -> Check {
    let operations = &evidence.operations;
    let mut violations = Vec::new();
    let looked_at = probes(operations, &mut violations) + inboxes(operations, &mut violations);
    check_errors_alike(operations, &mut violations);
    check_writes(operations, &mut violations);
    Check::new("isolation", looked_at, violations)
}

fn team_of(name: &str) -> &str {
    name.split_once('/').map_or(name, |(team, _)| team)
}

fn probes(operations: &[Operation], violations: &mut Vec<String>) -> usize {
    let mut count = 0;
    for probe in operations.iter().filter(|o| o.op == Op::Probe) {
        count += 1;
        let Some(answered) = probe.answered() else {
            continue;
        };
        let (team, route) = (probe.asked.name.as_deref().unwrap_or_default(), &probe.k);
        if let Some(id) = &probe.asked.id {
            violations.push(format!("{team} was allowed to use {route} ({id})"));
        }
        let foreign = answered
            .items
            .iter()
            .filter(|item| !item.key.is_empty() && team_of(&item.key) != team);
        violations.extend(foreign.map(|item| format!("{team} was shown {} by {route}", item.key)));
    }
    count
}

/// Another team's data must be refused with the same error as data that does not exist.
fn check_errors_alike(operations: &[Operation], violations: &mut Vec<String>) {
    let mut words: BTreeMap<&str, [HashSet<&str>; 2]> = BTreeMap::new();
    for probe in operations.iter().filter(|o| o.op == Op::Probe) {
        let kind = match probe.asked.id.as_deref() {
            Some("foreign") => 0,
            Some("absent") => 1,
            _ => continue,
        };
        if let Outcome::Fail(why) = &probe.outcome
            && why.starts_with('4')
        {
            words.entry(&probe.k).or_default()[kind].insert(why);
        }
    }
    for (route, [foreign, absent]) in words {
        if !absent.is_empty() && !foreign.is_subset(&absent) {
            violations.push(format!(
                "{route} distinguishes foreign from absent data: {foreign:?} and {absent:?}"
            ));
        }
    }
}

/// Every message belongs to the team of its inbox and was sent by someone.
fn inboxes(operations: &[Operation], violations: &mut Vec<String>) -> usize {
    let sent: HashSet<&str> = operations
        .iter()
        .filter(|o| matches!(o.op, Op::Publish | Op::KeyUse))
        .filter_map(|o| o.asked.key.as_deref())
        .collect();
    let mut count = 0;
    for audit in operations.iter().filter(|o| o.op == Op::Inbox) {
        // Failure notices have no key.
        let items = audit.answered().map_or(&[][..], |answered| &answered.items);
        for item in items.iter().filter(|item| !item.key.is_empty()) {
            count += 1;
            if team_of(&item.key) != team_of(&audit.k) {
                violations.push(format!("{} of another team is in {}", item.key, audit.k));
            } else if !sent.contains(item.key.as_str()) {
                violations.push(format!("{} is in {}, but nobody sent it", item.key, audit.k));
            }
        }
    }
    count
}

/// Every accepted write of a key is in an inbox of its team exactly once on every node; a refused write is in none.
fn check_writes(operations: &[Operation], violations: &mut Vec<String>) {
    let writes = operations.iter().filter(|o| o.op == Op::KeyUse);
    let writes: HashMap<&str, &Operation> = writes.filter_map(|o| Some((o.asked.key.as_deref()?, o))).collect();
    let mut counts: BTreeMap<usize, HashMap<&str, usize>> = BTreeMap::new();
    for audit in operations.iter().filter(|o| o.op == Op::Inbox) {
        let of_node = counts.entry(audit.node.unwrap_or(0)).or_default();
        for item in audit.answered().map_or(&[][..], |answered| &answered.items) {
            if writes.contains_key(item.key.as_str()) {
                *of_node.entry(&item.key).or_default() += 1;
            }
        }
    }
    for (key, write) in &writes {
        for (node, of_node) in &counts {
            let count = of_node.get(key).copied().unwrap_or(0);
            match (&write.outcome, count) {
                (Outcome::Ok(_), 0) => violations.push(format!("node {node} lost {key}, written with {}", write.k)),
                (Outcome::Fail(why), 1..) => {
                    violations.push(format!("node {node} has {key}, which was refused: {why}"))
                }
                (_, 2..) => violations.push(format!("node {node} has {key} {count} times")),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::operation_builders::{did, evidence, items, name, refused, unknown};
    use super::*;
    use crate::record::history::Fields;

    fn probe(id: Option<&str>) -> Fields {
        Fields {
            id: id.map(str::to_owned),
            ..name("a")
        }
    }

    fn shown(id: Option<&str>, keys: &[&str]) -> Operation {
        did(
            Op::Probe,
            "GET message",
            probe(id),
            1..2,
            Fields::items(items(keys, None)),
        )
    }

    fn told(id: &str, why: &str) -> Operation {
        refused(Op::Probe, "GET message", probe(Some(id)), 1..2, why)
    }

    fn write(asked: &str) -> Fields {
        Fields {
            key: Some(asked.to_owned()),
            ..name("write")
        }
    }

    fn inbox(keys: &[&str]) -> Operation {
        did(
            Op::Inbox,
            "a/sink",
            Fields::default(),
            900..910,
            Fields::items(items(keys, None)),
        )
    }

    fn only(operations: Vec<Operation>, word: &str) {
        let found = check(&evidence(operations)).violations;
        assert!(found.len() == 1 && found[0].contains(word), "{word}: {found:?}");
    }

    fn fine(operations: Vec<Operation>) {
        let found = check(&evidence(operations)).violations;
        assert!(found.is_empty(), "{found:?}");
    }

    #[test]
    fn no_probe_is_allowed() {
        fine(vec![told("foreign", "404 no such message")]);
        for id in ["foreign", "absent", "forbidden"] {
            only(vec![shown(Some(id), &[])], "was allowed");
        }
    }

    #[test]
    fn a_name_that_both_teams_have_shows_each_its_own() {
        fine(vec![shown(None, &["a/1", ""])]);
        only(vec![shown(None, &["a/1", "b/1"])], "was shown b/1");
    }

    #[test]
    fn foreign_data_is_refused_like_absent_data() {
        let absent = || told("absent", "404 no such message");
        fine(vec![
            absent(),
            told("foreign", "404 no such message"),
            told("foreign", "no leader"),
        ]);
        only(
            vec![absent(), told("foreign", "403 not yours")],
            "distinguishes foreign from absent data",
        );
    }

    #[test]
    fn inboxes_contain_only_messages_of_their_team() {
        let sent = did(Op::KeyUse, "a/k", write("a/1"), 1..2, Fields::default());
        fine(vec![sent.clone(), inbox(&["a/1", ""])]);
        only(vec![sent.clone(), inbox(&["a/1", "a/2"])], "nobody sent it");
        let other = did(Op::Publish, "b/news", write("b/1"), 1..2, Fields::default());
        only(vec![sent, other, inbox(&["a/1", "b/1"])], "of another team");
    }

    #[test]
    fn an_accepted_write_is_there_once_and_a_refused_one_is_not() {
        let sent = did(Op::KeyUse, "a/k", write("a/1"), 1..2, Fields::default());
        only(vec![sent.clone(), inbox(&[])], "lost a/1");
        only(vec![sent, inbox(&["a/1", "a/1"])], "2 times");
        let away = refused(Op::KeyUse, "a/k", write("a/1"), 1..2, "401");
        fine(vec![away.clone(), inbox(&[])]);
        only(vec![away, inbox(&["a/1"])], "refused: 401");
        let doubt = unknown(Op::KeyUse, "a/k", write("a/1"), 1..2);
        fine(vec![doubt.clone(), inbox(&["a/1"])]);
        fine(vec![doubt, inbox(&[])]);
    }
}
