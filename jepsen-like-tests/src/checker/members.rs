//! The cluster's members are those that the operators' successful changes imply, and no node id is assigned twice.

use std::collections::BTreeSet;

use super::Evidence;
use crate::verdict::Check;

/// The kind of the fault whose note records the observed members.
pub const KIND: &str = "members";

/// The members at a moment when nobody changes them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Look {
    /// The ids of the observed members.
    pub seen: Vec<u64>,
    /// The ids of the expected members, from the responses to operators.
    pub told: Vec<u64>,
    /// The ids that were assigned since the last observation.
    pub given: Vec<u64>,
}

impl Look {
    /// Formats it as the note of a fault.
    pub fn note(&self) -> String {
        let numbers = |ids: &[u64]| ids.iter().map(u64::to_string).collect::<Vec<_>>().join(" ");
        let Look { seen, told, given } = self;
        format!(
            "seen {}; told {}; given {}",
            numbers(seen),
            numbers(told),
            numbers(given)
        )
    }

    fn parse(note: &str) -> Option<Self> {
        let numbers = |text: &str| {
            text.split_whitespace()
                .map(|id| id.parse().ok())
                .collect::<Option<Vec<u64>>>()
        };
        let (seen, rest) = note.strip_prefix("seen ")?.split_once("; told ")?;
        let (told, given) = rest.split_once("; given ")?;
        Some(Look {
            seen: numbers(seen)?,
            told: numbers(told)?,
            given: numbers(given)?,
        })
    }
}

/// Compares every observation with the expected members.
pub fn check(evidence: &Evidence) -> Check {
    let looks = evidence.faults.iter().filter(|fault| fault.kind == KIND);
    let notes: Vec<&str> = looks.map(|fault| fault.note.as_str()).collect();
    Check::new("members", notes.len(), violations(evidence.run.nodes as u64, &notes))
}

fn violations(founders: u64, notes: &[&str]) -> Vec<String> {
    let mut given: BTreeSet<u64> = (1..=founders).collect();
    let mut violations = Vec::new();
    for note in notes {
        let Some(look) = Look::parse(note) else {
            violations.push(format!("the note does not record the members: {note}"));
            continue;
        };
        let set = |ids: &[u64]| ids.iter().copied().collect::<BTreeSet<u64>>();
        if set(&look.seen) != set(&look.told) {
            violations.push(format!(
                "the members are {:?}, but the responses imply {:?}",
                look.seen, look.told
            ));
        }
        let twice = look.given.iter().filter(|id| !given.insert(**id));
        violations.extend(twice.map(|id| format!("id {id} was assigned twice")));
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(seen: &[u64], told: &[u64], given: &[u64]) -> String {
        Look {
            seen: seen.to_vec(),
            told: told.to_vec(),
            given: given.to_vec(),
        }
        .note()
    }

    fn found(looks: &[String]) -> Vec<String> {
        violations(3, &looks.iter().map(String::as_str).collect::<Vec<_>>())
    }

    #[test]
    fn what_was_told_is_seen() {
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
        assert_eq!(found(&["seen x".to_owned()]).len(), 1);
    }

    #[test]
    fn no_id_is_given_twice() {
        let told: &[u64] = &[1, 2, 3];
        assert_eq!(found(&[look(told, told, &[3])]).len(), 1, "a founder's");
        assert_eq!(
            found(&[look(told, told, &[4]), look(told, told, &[4])]).len(),
            1,
            "an earlier one's"
        );
        assert_eq!(found(&[look(told, told, &[4, 4])]).len(), 1);
    }
}
