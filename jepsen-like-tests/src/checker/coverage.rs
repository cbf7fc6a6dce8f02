//! Whether a run reached the coverage that its scenario requires. The verdict of a run without its faults means
//! nothing.

use std::collections::HashMap;

use super::evidence::Evidence;
use crate::record::faults::{Fault, FaultState};
use crate::record::history::OutcomeKind;
use crate::record::leaders::NodeState;
use crate::record::run::{RequiredCoverage, SNAPSHOT_INSTALL, SWEPT_ROWS};
use crate::record::verdict::Coverage;

/// Counts what each condition requires.
pub fn check(evidence: &Evidence, required: &RequiredCoverage) -> Vec<Coverage> {
    let installed = installed(evidence);
    let mut coverage: Vec<Coverage> = Vec::new();
    let mut want = |what: String, wanted: u64, got: u64| {
        if wanted > 0 {
            coverage.push(Coverage { what, wanted, got });
        }
    };
    for (kind, wanted) in &required.faults {
        match kind.as_str() {
            SNAPSHOT_INSTALL => want("snapshots installed".to_owned(), *wanted, snapshots(evidence)),
            SWEPT_ROWS => want("rows swept".to_owned(), *wanted, swept(evidence)),
            kind => want(
                format!("{kind} installed"),
                *wanted,
                installed.get(kind).copied().unwrap_or(0),
            ),
        }
    }
    want(
        "acknowledged operations during faults".to_owned(),
        required.operations_inside,
        inside(evidence),
    );
    want(
        "leader changes".to_owned(),
        required.leader_changes,
        evidence.leader_changes(),
    );
    coverage
}

/// The number of faults of each kind that certainly happened.
pub fn installed(evidence: &Evidence) -> HashMap<&str, u64> {
    let mut installed = HashMap::new();
    for fault in happened(evidence) {
        *installed.entry(fault.kind.as_str()).or_default() += 1;
    }
    installed
}

fn happened(evidence: &Evidence) -> impl Iterator<Item = &Fault> {
    evidence
        .faults
        .iter()
        .filter(|fault| fault.state == FaultState::Installed)
}

/// The number of acknowledged operations that began during a fault.
pub fn inside(evidence: &Evidence) -> u64 {
    // Faults are sorted by their begin; merged windows are sorted by their end as well.
    let mut windows: Vec<(u64, u64)> = Vec::new();
    for fault in happened(evidence) {
        match windows.last_mut() {
            Some(last) if fault.began <= last.1 => last.1 = last.1.max(fault.ended),
            _ => windows.push((fault.began, fault.ended)),
        }
    }
    let within = |at: u64| {
        let next = windows.partition_point(|window| window.1 <= at);
        windows.get(next).is_some_and(|window| window.0 <= at)
    };
    let moments = evidence
        .summaries
        .iter()
        .filter(|moment| moment.outcome == OutcomeKind::Ok);
    moments.filter(|moment| within(moment.began)).count() as u64
}

/// The number of snapshots that nodes received from others.
pub fn snapshots(evidence: &Evidence) -> u64 {
    counted(evidence, |sample| sample.installed)
}

/// The number of aged rows that sweeps removed.
pub fn swept(evidence: &Evidence) -> u64 {
    counted(evidence, |sample| sample.swept)
}

/// What all nodes counted. A node counts from the start of its process and is polled ten times a second.
fn counted(evidence: &Evidence, of: fn(&NodeState) -> u64) -> u64 {
    let mut last: HashMap<usize, u64> = HashMap::new();
    let mut all = 0;
    for sample in &evidence.node_states {
        let now = of(sample);
        let before = last.insert(sample.node, now).unwrap_or(0);
        let process_began = now < before;
        all += now - if process_began { 0 } else { before };
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::run_builder::{RunBuilder, node_state};
    use crate::record::history::{Fields, Op};

    fn required() -> RequiredCoverage {
        RequiredCoverage {
            faults: vec![("kill".to_owned(), 2), (SNAPSHOT_INSTALL.to_owned(), 3)],
            operations_inside: 2,
            leader_changes: 1,
            steady_leader: false,
        }
    }

    fn got(story: RunBuilder) -> Vec<u64> {
        check(&story.evidence(), &required())
            .into_iter()
            .map(|coverage| coverage.got)
            .collect()
    }

    #[test]
    fn faults_operations_inside_them_snapshots_and_leaders_are_counted() {
        let send = |story: RunBuilder, began: u64| {
            story.ok(
                began..began + 1,
                Op::Send,
                "a",
                Fields::key(format!("k{began}")),
                Fields::id("m"),
            )
        };
        let mut story = RunBuilder::default()
            .fault("kill", &[1], 10..20)
            .fault("kill", &[2], 15..30);
        story = story.fault("pause", &[2], 50..60);
        for began in [9, 10, 29, 30, 55] {
            story = send(story, began);
        }
        let installed = |t: u64, node: usize, installed: u64| {
            let mut sample = node_state(t, node, 1, node == 1);
            sample.installed = installed;
            sample
        };
        story = story.node_states([installed(1, 1, 0), installed(2, 1, 2), installed(3, 1, 1)]);
        assert_eq!(got(story), [2, 3, 3, 0]);
        let two = [
            node_state(1, 1, 1, true),
            node_state(2, 1, 1, true),
            node_state(3, 2, 2, true),
            node_state(4, 2, 2, true),
        ];
        assert_eq!(got(RunBuilder::default().node_states(two)), [0, 0, 0, 1]);
    }
    #[test]
    fn swept_rows_are_counted_over_restarts() {
        let swept = |t: u64, node: usize, swept: u64| NodeState {
            swept,
            ..node_state(t, node, 1, node == 1)
        };
        let story = RunBuilder::default().node_states([swept(1, 1, 500), swept(2, 1, 900), swept(3, 1, 30)]);
        let required = RequiredCoverage {
            faults: vec![(SWEPT_ROWS.to_owned(), 1_000)],
            ..RequiredCoverage::default()
        };
        let coverage = check(&story.evidence(), &required);
        let told: Vec<_> = coverage.iter().map(|c| (c.what.as_str(), c.wanted, c.got)).collect();
        assert_eq!(told, [("rows swept", 1_000, 930)]);
    }
}
