//! The cluster's members are those that the operators' successful changes imply, and no node id is assigned twice.

use std::collections::BTreeSet;

use super::evidence::Evidence;
use crate::record::members::{KIND, ObservedMembers};
use crate::record::verdict::Check;

/// Compares every observation with the expected members.
pub fn check(evidence: &Evidence) -> Check {
    let faults = evidence.faults.iter().filter(|fault| fault.kind == KIND);
    let observations: Vec<Option<&ObservedMembers>> = faults.map(|fault| fault.members.as_ref()).collect();
    let violations = violations(evidence.run.nodes as u64, &observations);
    Check::new("members", observations.len(), violations)
}

fn violations(founders: u64, observations: &[Option<&ObservedMembers>]) -> Vec<String> {
    let mut assigned: BTreeSet<u64> = (1..=founders).collect();
    let mut violations = Vec::new();
    for observation in observations {
        let Some(members) = observation else {
            violations.push("a record of the members contains no members".to_owned());
            continue;
        };
        let set = |ids: &[u64]| ids.iter().copied().collect::<BTreeSet<u64>>();
        if set(&members.observed) != set(&members.expected) {
            violations.push(format!(
                "the members are {:?}, but the responses imply {:?}",
                members.observed, members.expected
            ));
        }
        let twice = members.assigned.iter().filter(|id| !assigned.insert(**id));
        violations.extend(twice.map(|id| format!("id {id} was assigned twice")));
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(observed: &[u64], expected: &[u64], assigned: &[u64]) -> ObservedMembers {
        ObservedMembers {
            observed: observed.to_vec(),
            expected: expected.to_vec(),
            assigned: assigned.to_vec(),
        }
    }

    fn found(looks: &[ObservedMembers]) -> Vec<String> {
        violations(3, &looks.iter().map(Some).collect::<Vec<_>>())
    }

    #[test]
    fn observed_members_must_match_the_expected_ones() {
        let good = [
            look(&[1, 2, 3], &[3, 2, 1], &[4, 5]),
            look(&[1, 2, 3, 6], &[1, 2, 3, 6], &[6]),
        ];
        assert_eq!(found(&good), Vec::<String>::new());
        assert_eq!(found(&[look(&[1, 2], &[1, 2, 3], &[])]).len(), 1, "somebody is missing");
        assert_eq!(
            found(&[look(&[1, 2, 3, 4], &[1, 2, 3], &[4])]).len(),
            1,
            "somebody stayed"
        );
        assert_eq!(violations(3, &[None]).len(), 1, "a fault without an observation");
    }

    #[test]
    fn no_id_is_given_twice() {
        let expected: &[u64] = &[1, 2, 3];
        assert_eq!(found(&[look(expected, expected, &[3])]).len(), 1, "a founder's");
        assert_eq!(
            found(&[look(expected, expected, &[4]), look(expected, expected, &[4])]).len(),
            1,
            "an earlier one's"
        );
        assert_eq!(found(&[look(expected, expected, &[4, 4])]).len(), 1);
    }
}
