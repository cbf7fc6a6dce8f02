//! A node that lost its power recovers without help. A node whose files were damaged serves without the damage or
//! reports a quarantine, within [`LIMIT_MS`].

use std::collections::{BTreeMap, BTreeSet};

use super::evidence::Evidence;
use crate::record::recoveries::{FileKind, LATE, LIMIT_MS, Recovery, RecoveryOutcome};
use crate::record::verdict::Check;

/// Checks every recovery: each node after a power cut, each damaged file.
pub fn check(evidence: &Evidence) -> Check {
    check_all(&evidence.recoveries)
}

/// Checks the recoveries of a run that may have broken off.
pub fn check_all(recoveries: &[Recovery]) -> Check {
    let looked_at = recoveries.iter().map(|recovery| recovery.files.len().max(1)).sum();
    let mut violations: Vec<String> = recoveries.iter().flat_map(of_node).collect();
    let mut damaged = BTreeSet::new();
    for recovery in recoveries {
        if !recovery.files.is_empty() {
            damaged.insert(recovery.node);
        } else if recovery.fault == LATE && !damaged.contains(&recovery.node) {
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
    let damaged: Vec<String> = recovery
        .files
        .iter()
        .map(|file| format!("{} ({})", file.path, file.what))
        .collect();
    let about = format!("node {node} after {fault} {}", damaged.join(", "))
        .trim_end()
        .to_owned();
    let mut violations = Vec::new();
    if recovery.outcome == RecoveryOutcome::Down {
        violations.push(format!("{about}: it neither serves nor reports a quarantine: {why}"));
    }
    if recovery.fault == LATE {
        return violations;
    }
    if recovery.files.is_empty() {
        if recovery.outcome == RecoveryOutcome::Quarantined {
            violations.push(format!(
                "{about}: it is in quarantine, although none of its files was damaged: {why}"
            ));
        }
        return violations;
    }
    if recovery.outcome != RecoveryOutcome::Down && recovery.after_ms > LIMIT_MS {
        violations.push(format!(
            "{about}: it was {} only after {} ms",
            recovery.outcome.word(),
            recovery.after_ms
        ));
    }
    if recovery.outcome == RecoveryOutcome::Ready {
        violations.push(format!("{about}: it serves under its old id"));
    }
    if recovery.outcome == RecoveryOutcome::Undamaged {
        let served = recovery
            .files
            .iter()
            .filter(|file| file.still_in.is_some_and(|kind| kind != FileKind::Unread));
        violations.extend(served.map(|file| format!("{about}: it serves with the damaged file {}", file.path)));
    }
    violations
}

/// Counts the recovered nodes and the damaged files by kind and outcome; measures the recovery times.
pub fn figures(evidence: &Evidence, figures: &mut BTreeMap<String, f64>, samples: &mut BTreeMap<String, Vec<f64>>) {
    let mut count = |what: String, by: usize| *figures.entry(what).or_default() += by as f64;
    for recovery in &evidence.recoveries {
        let (outcome, damaged) = (recovery.outcome.word(), recovery.files.len());
        let cause = match damaged {
            0 => recovery.fault.as_str(),
            _ => "damage",
        };
        count(format!("nodes {outcome} after {cause}"), 1);
        let after = samples.entry(format!("recovery after {cause} ms")).or_default();
        after.push(recovery.after_ms as f64);
        after.sort_by(f64::total_cmp);
        if damaged > 0 {
            count("files damaged".to_owned(), damaged);
            count(format!("files damaged on nodes then {outcome}"), damaged);
        }
        for file in &recovery.files {
            count(format!("files damaged: {}", file.kind.word()), 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::recoveries::DamagedFile;

    fn power(outcome: RecoveryOutcome) -> Recovery {
        Recovery {
            node: 2,
            fault: "power".to_owned(),
            files: Vec::new(),
            began: 0,
            after_ms: 900,
            starts: 1,
            outcome,
            why: String::new(),
        }
    }

    fn flipped(kind: FileKind, outcome: RecoveryOutcome, after_ms: u64) -> Recovery {
        let file = DamagedFile {
            path: "shards/0/file".to_owned(),
            kind,
            what: "flipped".to_owned(),
            still_in: (outcome == RecoveryOutcome::Undamaged).then_some(kind),
        };
        Recovery {
            fault: "flip".to_owned(),
            files: vec![file],
            after_ms,
            ..power(outcome)
        }
    }

    fn violations(recovery: Recovery) -> u64 {
        check_all(&[recovery]).violated
    }

    #[test]
    fn a_node_without_damage_serves_again() {
        assert_eq!(violations(power(RecoveryOutcome::Ready)), 0);
        assert_eq!(violations(power(RecoveryOutcome::Quarantined)), 1);
        assert_eq!(violations(power(RecoveryOutcome::Down)), 1);
    }

    #[test]
    fn a_damaged_node_serves_without_the_damage_or_says_that_it_must_not() {
        for outcome in [
            RecoveryOutcome::Repaired,
            RecoveryOutcome::Replaced,
            RecoveryOutcome::Quarantined,
        ] {
            assert_eq!(violations(flipped(FileKind::LogSegment, outcome, 900)), 0);
        }
        assert_eq!(
            violations(flipped(FileKind::LogSegment, RecoveryOutcome::Down, 30_000)),
            1
        );
        assert_eq!(
            violations(flipped(FileKind::StateSst, RecoveryOutcome::Undamaged, 900)),
            1
        );
        assert_eq!(
            violations(flipped(FileKind::Unread, RecoveryOutcome::Undamaged, 900)),
            0
        );
    }

    #[test]
    fn it_takes_ten_seconds_at_most() {
        assert_eq!(
            violations(flipped(FileKind::LogSegment, RecoveryOutcome::Repaired, LIMIT_MS)),
            0
        );
        assert_eq!(
            violations(flipped(FileKind::LogSegment, RecoveryOutcome::Repaired, LIMIT_MS + 1)),
            1
        );
    }

    #[test]
    fn a_node_that_lost_everything_must_not_serve_under_its_old_id() {
        assert_eq!(violations(flipped(FileKind::All, RecoveryOutcome::Quarantined, 900)), 0);
        assert_eq!(violations(flipped(FileKind::All, RecoveryOutcome::Ready, 900)), 1);
    }

    #[test]
    fn a_damage_that_shows_late_may_end_in_quarantine() {
        let late = |outcome| Recovery {
            fault: LATE.to_owned(),
            ..power(outcome)
        };
        let after_damage = |outcome| {
            check_all(&[
                flipped(FileKind::StateSst, RecoveryOutcome::Repaired, 900),
                late(outcome),
            ])
            .violated
        };
        assert_eq!(after_damage(RecoveryOutcome::Ready), 0);
        assert_eq!(after_damage(RecoveryOutcome::Quarantined), 0);
        assert_eq!(after_damage(RecoveryOutcome::Down), 1);
    }

    #[test]
    fn damage_on_another_node_does_not_excuse_an_end() {
        let other = Recovery {
            node: 1,
            ..flipped(FileKind::LogSegment, RecoveryOutcome::Replaced, 900)
        };
        let ended = Recovery {
            fault: LATE.to_owned(),
            ..power(RecoveryOutcome::Ready)
        };
        assert_eq!(check_all(&[other, ended]).violated, 1);
    }
}
