//! A node that lost its power recovers without help. A node whose files were damaged serves without the damage or
//! reports a quarantine, within [`LIMIT_MS`].

use std::collections::{BTreeMap, BTreeSet};

use super::Evidence;
use crate::recovery::{Class, Part, Recovery};
use crate::verdict::Check;

/// Time limit from the start of a node until it is repaired or in quarantine.
pub const LIMIT_MS: u64 = 10_000;

/// The fault of a recovery that nothing was done for at that time: earlier damage that was detected late.
pub const LATE: &str = "late";

/// Checks every recovery: each node after a power cut, each damaged file.
pub fn check(evidence: &Evidence) -> Check {
    check_all(&evidence.recoveries)
}

/// Checks the recoveries of a run that may have broken off.
pub fn check_all(recoveries: &[Recovery]) -> Check {
    let looked_at = recoveries.iter().map(|recovery| recovery.files.len().max(1)).sum();
    let mut violations: Vec<String> = recoveries.iter().flat_map(of_node).collect();
    let mut spoilt = BTreeSet::new();
    for recovery in recoveries {
        if !recovery.files.is_empty() {
            spoilt.insert(recovery.node);
        } else if recovery.fault == LATE && !spoilt.contains(&recovery.node) {
            let node = recovery.node;
            violations.push(format!(
                "node {node} ended unexpectedly, although none of its files was damaged"
            ));
        }
    }
    Check::new("recovery", looked_at, violations)
}

fn of_node(recovery: &Recovery) -> Vec<String> {
    let Recovery { node, fault, why, .. } = recovery;
    let spoilt: Vec<String> = recovery
        .files
        .iter()
        .map(|file| format!("{} ({})", file.path, file.what))
        .collect();
    let about = format!("node {node} after {fault} {}", spoilt.join(", "))
        .trim_end()
        .to_owned();
    let mut violations = Vec::new();
    if recovery.class == Class::Down {
        violations.push(format!("{about}: it neither serves nor reports a quarantine: {why}"));
    }
    if recovery.fault == LATE {
        return violations;
    }
    if recovery.files.is_empty() {
        if recovery.class == Class::Quarantined {
            violations.push(format!(
                "{about}: it is in quarantine, although none of its files was damaged: {why}"
            ));
        }
        return violations;
    }
    if recovery.class != Class::Down && recovery.after_ms > LIMIT_MS {
        violations.push(format!(
            "{about}: it was {} only after {} ms",
            recovery.class.word(),
            recovery.after_ms
        ));
    }
    if recovery.class == Class::Ready {
        violations.push(format!("{about}: it serves under its old id"));
    }
    if recovery.class == Class::Undamaged {
        let served = recovery
            .files
            .iter()
            .filter(|file| file.left.is_some_and(|part| part != Part::Unread));
        violations.extend(served.map(|file| format!("{about}: it serves with the damaged file {}", file.path)));
    }
    violations
}

/// Counts the recovered nodes and the damaged files by kind and outcome; measures the recovery times.
pub fn figures(evidence: &Evidence, figures: &mut BTreeMap<String, f64>, samples: &mut BTreeMap<String, Vec<f64>>) {
    let mut count = |what: String, by: usize| *figures.entry(what).or_default() += by as f64;
    for recovery in &evidence.recoveries {
        let (class, spoilt) = (recovery.class.word(), recovery.files.len());
        let cause = match spoilt {
            0 => recovery.fault.as_str(),
            _ => "damage",
        };
        count(format!("nodes {class} after {cause}"), 1);
        let after = samples.entry(format!("recovery after {cause} ms")).or_default();
        after.push(recovery.after_ms as f64);
        after.sort_by(f64::total_cmp);
        if spoilt > 0 {
            count("files damaged".to_owned(), spoilt);
            count(format!("files damaged on nodes then {class}"), spoilt);
        }
        for file in &recovery.files {
            count(format!("files damaged: {}", file.part.word()), 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recovery::Damage;

    fn power(class: Class) -> Recovery {
        Recovery {
            node: 2,
            fault: "power".to_owned(),
            files: Vec::new(),
            began: 0,
            after_ms: 900,
            starts: 1,
            class,
            why: String::new(),
        }
    }

    fn flipped(part: Part, class: Class, after_ms: u64) -> Recovery {
        let file = Damage {
            path: "shards/0/file".to_owned(),
            part,
            what: "flipped".to_owned(),
            left: (class == Class::Undamaged).then_some(part),
        };
        Recovery {
            fault: "flip".to_owned(),
            files: vec![file],
            after_ms,
            ..power(class)
        }
    }

    fn violations(recovery: Recovery) -> u64 {
        check_all(&[recovery]).violated
    }

    #[test]
    fn a_node_without_damage_serves_again() {
        assert_eq!(violations(power(Class::Ready)), 0);
        assert_eq!(violations(power(Class::Quarantined)), 1);
        assert_eq!(violations(power(Class::Down)), 1);
    }

    #[test]
    fn a_damaged_node_serves_without_the_damage_or_says_that_it_must_not() {
        for class in [Class::Repaired, Class::Replaced, Class::Quarantined] {
            assert_eq!(violations(flipped(Part::LogWal, class, 900)), 0);
        }
        assert_eq!(violations(flipped(Part::LogWal, Class::Down, 30_000)), 1);
        assert_eq!(violations(flipped(Part::StateSst, Class::Undamaged, 900)), 1);
        assert_eq!(violations(flipped(Part::Unread, Class::Undamaged, 900)), 0);
    }

    #[test]
    fn it_takes_ten_seconds_at_most() {
        assert_eq!(violations(flipped(Part::LogWal, Class::Repaired, LIMIT_MS)), 0);
        assert_eq!(violations(flipped(Part::LogWal, Class::Repaired, LIMIT_MS + 1)), 1);
    }

    #[test]
    fn whoever_lost_everything_does_not_serve_under_its_old_id() {
        assert_eq!(violations(flipped(Part::All, Class::Quarantined, 900)), 0);
        assert_eq!(violations(flipped(Part::All, Class::Ready, 900)), 1);
    }

    #[test]
    fn a_damage_that_shows_late_may_end_in_quarantine() {
        let late = |class| Recovery {
            fault: LATE.to_owned(),
            ..power(class)
        };
        let after_damage = |class| check_all(&[flipped(Part::LogSst, Class::Repaired, 900), late(class)]).violated;
        assert_eq!(after_damage(Class::Ready), 0);
        assert_eq!(after_damage(Class::Quarantined), 0);
        assert_eq!(after_damage(Class::Down), 1);
    }

    #[test]
    fn whoever_is_sound_does_not_end_because_others_are_not() {
        let other = Recovery {
            node: 1,
            ..flipped(Part::LogWal, Class::Replaced, 900)
        };
        let ended = Recovery {
            fault: LATE.to_owned(),
            ..power(Class::Ready)
        };
        assert_eq!(check_all(&[other, ended]).violated, 1);
    }
}
