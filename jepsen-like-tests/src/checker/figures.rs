//! Counts and measurements of a run. Counts are added over several runs. Times cannot be added; they are kept as
//! samples, from which the percentiles of all runs are computed.

use std::collections::{BTreeMap, BTreeSet};

use super::coverage;
use super::evidence::{Evidence, OperationSummary};
use crate::record::faults::{Fault, FaultState};
use crate::record::history::Op;
use crate::record::history::{NEVER, OutcomeKind};

/// The number of latencies kept per operation, spaced evenly by rank so that percentiles do not change.
const LATENCIES_KEPT: usize = 1_000;
/// Throughput is measured in steps of this length …
const STEP_NS: u64 = 100_000_000;
/// … over this many consecutive steps.
const STEPS: usize = 5;

/// Counts, and figures that only mean something within this run.
pub fn figures(evidence: &Evidence, samples: &BTreeMap<String, Vec<f64>>) -> BTreeMap<String, f64> {
    let run = &evidence.run;
    let of = |end: OutcomeKind| evidence.summaries.iter().filter(move |m| m.outcome == end);
    let sent = evidence
        .mail
        .sent
        .iter()
        .filter(|sent| sent.outcome == OutcomeKind::Ok)
        .map(|sent| sent.ended);
    let published = of(OutcomeKind::Ok).filter(|m| m.op == Op::Publish).map(|m| m.ended);
    let acknowledged = sent.chain(published);
    let during = acknowledged
        .clone()
        .filter(|ended| (run.faults_began..run.healed).contains(ended))
        .count();
    let lasted = (run.healed.saturating_sub(run.faults_began)) as f64 / 1e9;
    let (all, unknown) = (evidence.summaries.len() as f64, of(OutcomeKind::Info).count() as f64);
    let mut figures = BTreeMap::from([
        ("operations".to_owned(), all),
        (
            "operations acknowledged during faults".to_owned(),
            coverage::inside(evidence) as f64,
        ),
        ("operations refused".to_owned(), of(OutcomeKind::Fail).count() as f64),
        ("operations unknown".to_owned(), unknown),
        ("unknown share %".to_owned(), 100.0 * unknown / all.max(1.0)),
        ("acknowledged".to_owned(), acknowledged.count() as f64),
        ("acknowledged per second".to_owned(), during as f64 / lasted.max(0.001)),
        ("leader changes".to_owned(), evidence.leader_changes() as f64),
        ("snapshots installed".to_owned(), coverage::snapshots(evidence) as f64),
        ("rows swept".to_owned(), coverage::swept(evidence) as f64),
        ("crashes".to_owned(), run.crashes.len() as f64),
    ]);
    for (kind, count) in coverage::installed(evidence) {
        figures.insert(format!("faults: {kind}"), count as f64);
    }
    for (name, values) in samples {
        let shares = [("max", 1.0), ("p50", 0.5), ("p99", 0.99)];
        // Percentiles of few values mean nothing.
        let told = if values.len() < 10 { 1 } else { shares.len() };
        for (which, share) in &shares[..told] {
            if let Some(value) = at(values, *share) {
                figures.insert(format!("{name} {which}"), value);
            }
        }
    }
    figures
}

/// Individual measurements in milliseconds, each list sorted.
pub fn samples(evidence: &Evidence) -> BTreeMap<String, Vec<f64>> {
    let mut samples = latencies(&evidence.summaries);
    for (name, value) in outages(evidence).into_iter().chain(recovery(evidence)) {
        samples.entry(name).or_default().push(value);
    }
    samples.values_mut().for_each(|values| values.sort_by(f64::total_cmp));
    samples
}

fn latencies(moments: &[OperationSummary]) -> BTreeMap<String, Vec<f64>> {
    let mut by_op: BTreeMap<Op, Vec<u64>> = BTreeMap::new();
    for moment in moments
        .iter()
        .filter(|moment| moment.outcome == OutcomeKind::Ok && moment.op != Op::Audit)
    {
        by_op.entry(moment.op).or_default().push(moment.ended - moment.began);
    }
    let kept = by_op.into_iter().map(|(op, mut all)| {
        all.sort_unstable();
        let count = all.len().min(LATENCIES_KEPT);
        // Takes the last value of each part, so that the maximum is kept.
        let kept = (1..=count).map(|part| in_ms(all[all.len() * part / count - 1]));
        (format!("{} ms", name(op)), kept.collect())
    });
    kept.collect()
}

/// For each fault that separated the leader from a majority: the longest time without an acknowledged write, from the
/// begin of the fault to the first acknowledgement after its end. It does not stop at the first write that began
/// after the fault, because one may still succeed before a cut takes effect.
fn outages(evidence: &Evidence) -> Vec<(String, f64)> {
    let writes = evidence
        .summaries
        .iter()
        .filter(|m| m.is_write() && m.outcome == OutcomeKind::Ok);
    let mut ends: Vec<u64> = writes.map(|m| m.ended).collect();
    ends.sort_unstable();
    let faults = evidence.faults.iter().filter(|fault| {
        let leader = evidence.leader_at(fault.began);
        fault.state == FaultState::Installed && leader.is_some_and(|leader| deposes(fault, leader, evidence.run.nodes))
    });
    let outages = faults.filter_map(|fault| {
        let (mut last, mut longest) = (fault.began, 0);
        let after = ends.partition_point(|end| *end < fault.began);
        let until = ends.partition_point(|end| *end < fault.ended);
        // Without an acknowledgement after its end, the length of the outage is unknown.
        for end in ends.get(after..=until)? {
            longest = longest.max(end - last);
            last = *end;
        }
        Some((format!("outage after {} of the leader ms", fault.kind), in_ms(longest)))
    });
    outages.collect()
}

/// Whether a fault separates the leader from a majority of the nodes that still works.
fn deposes(fault: &Fault, leader: usize, nodes: usize) -> bool {
    if fault.kind != "partition" {
        return fault.nodes.contains(&leader) && fault.nodes.len() * 2 < nodes;
    }
    let touched = fault
        .cut_links
        .iter()
        .filter(|(from, to)| *from == leader || *to == leader);
    let cut_off: BTreeSet<usize> = touched.map(|(from, to)| from + to - leader).collect();
    cut_off.len() * 2 >= nodes
}

/// The time from healing to the first write, and to 90 % of the throughput before the first fault.
fn recovery(evidence: &Evidence) -> Vec<(String, f64)> {
    let healed = evidence.run.healed;
    let writes = || {
        evidence
            .summaries
            .iter()
            .filter(|m| m.is_write() && m.outcome == OutcomeKind::Ok && m.ended != NEVER)
    };
    let first = writes().map(|m| m.ended).filter(|ended| *ended > healed).min();
    let mut steps: Vec<u64> = Vec::new();
    for write in writes() {
        let step = (write.ended / STEP_NS) as usize;
        steps.resize(steps.len().max(step + 1), 0);
        steps[step] += u64::from(write.count);
    }
    let before = (evidence.run.faults_began / STEP_NS) as usize;
    let usual: u64 = steps.iter().take(before).rev().take(STEPS).sum();
    let after = (healed / STEP_NS) as usize;
    let again = steps
        .windows(STEPS)
        .skip(after)
        .position(|window| window.iter().sum::<u64>() * 10 >= usual * 9);
    let first = first.map(|first| ("first write after healing ms".to_owned(), in_ms(first - healed)));
    let again = again.map(|again| {
        (
            "90 % throughput after healing ms".to_owned(),
            in_ms(again as u64 * STEP_NS),
        )
    });
    first.into_iter().chain(again).collect()
}

fn in_ms(ns: u64) -> f64 {
    (ns / 1_000) as f64 / 1e3
}

/// The nearest-rank percentile of sorted values.
fn at(sorted: &[f64], share: f64) -> Option<f64> {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

/// The name of an operation in the history.
fn name(op: Op) -> String {
    let name = serde_json::to_value(op).ok();
    name.and_then(|name| Some(name.as_str()?.to_owned()))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::run_builder::{RunBuilder, node_state};
    use crate::record::history::Fields;

    fn send(story: RunBuilder, began: u64, ended: u64) -> RunBuilder {
        let key = Fields::key(format!("k{began}"));
        story.ok(began..ended, Op::Send, "a", key, Fields::id(format!("m{began}")))
    }

    #[test]
    fn an_outage_is_the_longest_time_without_an_acknowledgement_from_a_fault_on() {
        let led = [node_state(10, 1, 1, true), node_state(20, 1, 1, true)];
        let mut story = RunBuilder::default().node_states(led).fault("kill", &[1], 100..400);
        // One fault of another node, and one of a majority that includes the leader.
        story = story.fault("pause", &[2], 500..600).fault("kill", &[1, 2], 700..800);
        // Acknowledged before the cut took effect, during the fault, and after its end.
        story = send(send(send(story, 90, 110), 150, 450), 160, 350);
        let samples = samples(&story.evidence());
        assert_eq!(samples["outage after kill of the leader ms"], [240.0]);
        assert_eq!(samples["send ms"], [20.0, 190.0, 300.0]);
        assert!(!samples.contains_key("outage after pause of the leader ms"));
    }

    #[test]
    fn a_partition_deposes_the_leader_that_has_no_majority() {
        let cut = |links: &[(usize, usize)]| Fault {
            kind: "partition".to_owned(),
            nodes: vec![1, 2, 3],
            note: String::new(),
            cut_links: links.to_vec(),
            members: None,
            began: 0,
            ended: 1,
            state: FaultState::Installed,
        };
        assert!(deposes(&cut(&[(1, 2), (1, 3), (2, 1), (3, 1)]), 1, 3));
        assert!(deposes(&cut(&[(2, 1), (3, 1)]), 1, 3));
        assert!(!deposes(&cut(&[(1, 2), (1, 3), (2, 1), (3, 1)]), 2, 3));
        assert!(!deposes(&cut(&[(1, 2)]), 1, 3));
    }

    #[test]
    fn operations_are_counted_by_their_ends() {
        let story = send(RunBuilder::default(), 100, 110).fail(1..2, Op::Send, "a", Fields::key("f"));
        let story = story
            .info(1..2, Op::Send, "a", Fields::key("i"))
            .fault("kill", &[3], 5..6);
        // A repeat is not another message.
        let story = story.ok(200..210, Op::Send, "a", Fields::key("k100"), Fields::id("m100"));
        let evidence = story.evidence();
        let figures = figures(&evidence, &samples(&evidence));
        let of = |name: &str| figures[name];
        assert_eq!(
            (of("operations"), of("acknowledged"), of("operations refused")),
            (4.0, 1.0, 1.0)
        );
        assert_eq!((of("unknown share %"), of("faults: kill")), (25.0, 1.0));
        assert_eq!(of("acknowledged per second"), 1.0);
        assert_eq!(of("send ms max"), 10.0);
    }

    #[test]
    fn few_latencies_stand_for_many() {
        let story = (0..3_000).fold(RunBuilder::default(), |story, n| {
            send(story, n * 10, n * 10 + n % 10 + 1)
        });
        let samples = samples(&story.evidence());
        let kept = &samples["send ms"];
        assert_eq!((kept.len(), kept[0], kept[999]), (LATENCIES_KEPT, 1.0, 10.0));
        assert_eq!(at(kept, 0.5), Some(5.0));
    }
}
