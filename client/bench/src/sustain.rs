//! The mode `sustain`: batches of ten teams for minutes. One row for each step tells how the cluster does; the last rows
//! compare the last minute with the first.

use std::time::Duration;

use anyhow::{Context, ensure};

use crate::Bench;
use crate::disk::used_mib;
use crate::load::{Lanes, Load, row_of};
use crate::meter::{Meter, Tally};
use crate::observe::Snapshot;
use crate::report::{Latency, Report, Row};
use crate::traffic::Shape;

/// Ten minutes, unless the caller says otherwise.
const SECONDS: u64 = 600;
/// The length of a step of a run of at least two minutes …
const STEP: u64 = 10;
/// … and the number of steps of a minute. A shorter run has shorter steps, and compares its first half with its last.
const MINUTE: usize = 6;

/// How a run is divided.
#[derive(Debug, PartialEq, Eq)]
struct Division {
    step_s: u64,
    steps: usize,
    /// The steps that are compared at the begin and at the end.
    compared: usize,
}

fn division(seconds: u64) -> Division {
    let long = STEP * MINUTE as u64 * 2;
    let step_s = if seconds >= long {
        STEP
    } else {
        (seconds / (MINUTE as u64 * 2)).max(1)
    };
    let steps = (seconds / step_s) as usize;
    Division {
        step_s,
        steps,
        compared: MINUTE.min(steps / 2).max(1),
    }
}

/// Runs the load and reports a row for each step, then the comparisons.
pub async fn measure(bench: &Bench<'_>, run: u32, report: &mut dyn Report) -> anyhow::Result<()> {
    let divided = division(bench.args.seconds(SECONDS));
    let load = Load {
        keys: bench.keys(),
        ..Load::new(bench, "sustain", Shape::Batch, bench.args.in_flight(16))
    };
    let nodes = bench.nodes().await?;
    let lanes = Lanes::dial(&nodes, &load, bench.args.seed() + u64::from(run)).await?;
    let clients = nodes.clients()?;
    let meter = Meter::start(bench.args.warm_up(), Duration::from_secs(divided.step_s), divided.steps);
    let mut running = lanes.run(&meter);
    meter.reached(0).await;
    let first = Snapshot::take(&clients).await;
    let mut steps = Vec::new();
    let mut before = Snapshot::take(&clients).await;
    for number in 0..divided.steps {
        meter.reached(number + 1).await;
        let (now, disk) = (Snapshot::take(&clients).await, used_mib(bench.args.data()).await);
        let step = Step {
            tally: meter.take(number),
            memory: now.memory_mib(),
            disk,
            leader_changes: now.elections_since(&before).unwrap_or(0),
        };
        let seconds = divided.step_s as f64;
        let ends = (number as u64 + 1) * divided.step_s;
        let mut row = row_of(&load, run, &step.tally, seconds, step.note());
        row.peer = format!("agentpost-sustain-{ends:04}s");
        report.row(row);
        steps.push(step);
        before = now;
    }
    while let Some(lane) = running.join_next().await {
        lane.context("a lane ended early")?;
    }
    let costs = before.note_since(
        &first,
        total(&steps).acknowledged,
        (divided.step_s * divided.steps as u64) as f64,
    );
    ensure!(total(&steps).acknowledged > 0, "nothing was acknowledged");
    for row in summary(&load, run, &divided, &steps, costs) {
        report.row(row);
    }
    Ok(())
}

/// What one step measured.
struct Step {
    tally: Tally,
    /// MiB of each node.
    memory: Vec<(u64, u64)>,
    disk: Vec<(u64, u64)>,
    leader_changes: u64,
}

impl Step {
    fn note(&self) -> String {
        let listed = |values: &[(u64, u64)]| -> String {
            let texts: Vec<String> = values.iter().map(|(node, value)| format!("{node}:{value}")).collect();
            texts.join(",")
        };
        let mut note = format!(
            "leader-changes={} memory-MiB={}",
            self.leader_changes,
            listed(&self.memory)
        );
        if !self.disk.is_empty() {
            note += &format!(" disk-MiB={}", listed(&self.disk));
        }
        note + &self.tally.complaint()
    }
}

fn total(steps: &[Step]) -> Tally {
    let mut all = Tally::default();
    for step in steps {
        all.add(step.tally.clone());
    }
    all
}

/// The rows about the whole run.
fn summary(load: &Load, run: u32, divided: &Division, steps: &[Step], costs: String) -> Vec<Row> {
    let part = |steps: &[Step]| {
        let tally = total(steps);
        let rate = tally.acknowledged as f64 / (steps.len() as u64 * divided.step_s) as f64;
        (rate, Latency::of(&tally.latencies_ns).p99_ms)
    };
    let (first, last) = (
        part(&steps[..divided.compared]),
        part(&steps[steps.len() - divided.compared..]),
    );
    let compared = divided.compared as u64 * divided.step_s;
    let ends = format!("the last {compared} s of the first {compared} s");
    let all = total(steps);
    let seconds = (steps.len() as u64 * divided.step_s) as f64;
    let whole = row_of(load, run, &all, seconds, costs + &all.complaint());
    let row = |metric, value, unit, note: String| Row {
        metric,
        value,
        unit,
        latency: Latency::NONE,
        note,
        ..whole.clone()
    };
    let (rate, p99) = (
        format!("{ends}: {:.0} of {:.0} msg/s", last.0, first.0),
        format!("{ends}: {:.1} of {:.1} ms", last.1, first.1),
    );
    let changes = steps.iter().map(|step| step.leader_changes).sum::<u64>();
    let largest = |of: fn(&Step) -> &[(u64, u64)]| steps.iter().flat_map(of).map(|(_, mib)| *mib).max();
    let mut rows = vec![
        row("sustained-rate", last.0 / first.0 * 100.0, "%", rate),
        row("sustained-p99", last.1 / first.1 * 100.0, "%", p99),
        row(
            "leader-changes",
            changes as f64,
            "changes",
            "terms that began meanwhile".to_owned(),
        ),
    ];
    for (metric, value, note) in [
        (
            "memory",
            largest(|step| &step.memory),
            "resident memory of the largest node at any step",
        ),
        (
            "disk",
            largest(|step| &step.disk),
            "bytes on disk of the largest node at any step",
        ),
    ] {
        rows.extend(value.map(|mib| row(metric, mib as f64, "MiB", note.to_owned())));
    }
    rows.insert(0, whole);
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Target;
    use crate::traffic::Recipients;

    #[test]
    fn a_run_is_divided_into_steps_of_ten_seconds_or_shorter_ones() {
        let of = |step_s, steps, compared| Division {
            step_s,
            steps,
            compared,
        };
        assert_eq!(division(600), of(10, 60, 6));
        assert_eq!(division(180), of(10, 18, 6));
        assert_eq!(division(60), of(5, 12, 6));
        assert_eq!(division(4), of(1, 4, 2));
        assert_eq!(division(1), of(1, 1, 1));
    }

    #[test]
    fn the_last_minute_is_compared_with_the_first() {
        let step = |acknowledged, ms: u64, changes, mib| Step {
            tally: Tally {
                latencies_ns: vec![ms * 1_000_000; 10],
                acknowledged,
                ..Tally::default()
            },
            memory: vec![(1, mib), (2, 7)],
            disk: vec![(1, mib * 10)],
            leader_changes: changes,
        };
        let steps = [
            step(900, 10, 0, 100),
            step(100, 20, 1, 200),
            step(600, 30, 0, 150),
            step(200, 30, 0, 150),
        ];
        assert_eq!(steps[1].note(), "leader-changes=1 memory-MiB=1:200,2:7 disk-MiB=1:2000");
        let load = Load {
            name: "sustain".to_owned(),
            shape: Shape::Batch,
            target: Target::Any,
            in_flight: 16,
            to: Recipients::random("inbox-", 1),
            keys: Vec::new(),
            keyed: false,
            gap: Duration::ZERO,
        };
        let rows = summary(&load, 2, &division(4), &steps, "costs".to_owned());
        let value = |metric: &str| {
            rows.iter()
                .find(|row| row.metric == metric)
                .map(|row| row.value.round())
        };
        assert_eq!(value("acked-writes"), Some(450.0));
        assert_eq!(
            (value("sustained-rate"), value("sustained-p99")),
            (Some(80.0), Some(150.0))
        );
        assert_eq!(
            (value("leader-changes"), value("memory"), value("disk")),
            (Some(1.0), Some(200.0), Some(2000.0))
        );
        assert!(rows.iter().all(|row| row.peer == "agentpost-sustain" && row.run == 2));
    }
}
