//! Totals over many runs: a file with one line per run, and the table that adds the runs up.
//!
//! Counts are added. Percentiles, shares and rates cannot be added: percentiles are computed again from the samples
//! of all runs, the others are left out.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use agentpost_cli::table::{Align, Paint, Table, Tone};
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::record::verdict::{Validity, Verdict};

/// The line of one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunLine {
    pub scenario: String,
    pub seed: u64,
    /// How long the run took, including start, audit and checking, in seconds.
    pub took_s: f64,
    /// Unix time of its begin in milliseconds.
    pub wall_ms: i64,
    /// The commit that was tested; empty if unknown.
    #[serde(default)]
    pub git: String,
    pub validity: Validity,
    /// Why the run is unknown or skipped.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The number of violations of all properties.
    pub violated: u64,
    /// Counts, see [`Verdict::figures`].
    pub figures: BTreeMap<String, f64>,
    /// Individual measurements, see [`Verdict::samples`].
    #[serde(default)]
    pub samples: BTreeMap<String, Vec<f64>>,
}

impl RunLine {
    /// The line of a run that has just ended.
    pub fn of(scenario: &str, seed: u64, took_s: f64, verdict: &Verdict) -> Self {
        RunLine {
            scenario: scenario.to_owned(),
            seed,
            took_s,
            wall_ms: jiff::Timestamp::now().as_millisecond() - (took_s * 1e3) as i64,
            git: std::env::var("AGENTPOST_GIT").unwrap_or_default(),
            validity: verdict.validity,
            reason: verdict.reason.clone(),
            violated: verdict.checks.iter().map(|check| check.violated).sum(),
            figures: verdict.figures.clone(),
            samples: verdict.samples.clone(),
        }
    }
}

/// Adds a line to a file, which is created if it does not exist.
pub fn append(file: &Path, line: &RunLine) -> Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    let opened = File::options().create(true).append(true).open(file);
    let mut opened = opened.with_context(|| format!("cannot open {}", file.display()))?;
    // One write: several runs may add to the same file concurrently.
    Ok(opened.write_all(&text)?)
}

/// Reads all lines of a file.
pub fn load(file: &Path) -> Result<Vec<RunLine>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let lines: Result<Vec<RunLine>, _> = text.lines().map(serde_json::from_str).collect();
    lines.with_context(|| format!("{} is not a file of runs", file.display()))
}

/// Renders one row per scenario, one for all, and then the counts and measurements.
pub fn table(lines: &[RunLine], paint: Paint) -> String {
    let mut by_scenario: BTreeMap<&str, Vec<&RunLine>> = BTreeMap::new();
    for line in lines {
        by_scenario.entry(&line.scenario).or_default().push(line);
    }
    let mut runs = Table::new(&[
        ("SCENARIO", Align::Left),
        ("RUNS", Align::Right),
        ("VALID", Align::Right),
        ("INVALID", Align::Right),
        ("UNKNOWN", Align::Right),
        ("SKIPPED", Align::Right),
        ("MINUTES", Align::Right),
    ]);
    for (scenario, lines) in &by_scenario {
        runs.row(tone(lines), cells(scenario, lines));
    }
    let all: Vec<&RunLine> = lines.iter().collect();
    runs.row(tone(&all), cells("all", &all));
    format!("{}\n{}", runs.render(paint), figures(&all).render(paint))
}

fn tone(lines: &[&RunLine]) -> Tone {
    if lines.iter().any(|line| line.validity == Validity::Invalid) {
        Tone::Bad
    } else {
        Tone::Plain
    }
}

fn cells(name: &str, lines: &[&RunLine]) -> Vec<String> {
    let of = |sum: Validity| lines.iter().filter(|line| line.validity == sum).count().to_string();
    let minutes: f64 = lines.iter().map(|line| line.took_s / 60.0).sum();
    vec![
        name.to_owned(),
        lines.len().to_string(),
        of(Validity::Valid),
        of(Validity::Invalid),
        of(Validity::Unknown),
        of(Validity::Skipped),
        format!("{minutes:.1}"),
    ]
}

/// Words in the names of figures that only mean something within one run.
const NOT_ADDED: [&str; 7] = ["p50", "p90", "p99", "max", "min", "share", "per second"];

fn figures(lines: &[&RunLine]) -> Table {
    let mut counts: BTreeMap<&str, f64> = BTreeMap::new();
    let mut samples: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for line in lines {
        for (name, value) in &line.figures {
            if !NOT_ADDED.iter().any(|word| name.contains(word)) {
                *counts.entry(name).or_default() += value;
            }
        }
        for (name, values) in &line.samples {
            samples.entry(name).or_default().extend(values);
        }
    }
    let mut table = Table::new(&[("COUNTED OR MEASURED", Align::Left), ("ALL RUNS", Align::Right)]);
    for (name, value) in counts {
        table.row(Tone::Plain, vec![name.to_owned(), grouped(value)]);
    }
    for (name, mut values) in samples {
        values.sort_by(f64::total_cmp);
        for (which, share) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
            if let Some(value) = at(&values, share) {
                table.row(
                    Tone::Plain,
                    vec![format!("{name}, {which} of {}", values.len()), grouped(value)],
                );
            }
        }
    }
    table
}

/// The nearest-rank percentile of sorted values.
fn at(sorted: &[f64], share: f64) -> Option<f64> {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

/// Formats `1234567` as `1,234,567`, with one decimal if it is not an integer.
fn grouped(value: f64) -> String {
    let whole = value.trunc().abs() as u64;
    let digits = whole.to_string();
    let mut text = if value < 0.0 { "-".to_owned() } else { String::new() };
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    match value.fract() {
        0.0 => text,
        fraction => format!("{text}.{}", (fraction.abs() * 10.0) as u64),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn line(scenario: &str, validity: Validity, acknowledged: f64, outages: &[f64]) -> RunLine {
        RunLine {
            scenario: scenario.to_owned(),
            seed: 1,
            took_s: 30.0,
            wall_ms: 0,
            git: String::new(),
            validity,
            reason: String::new(),
            violated: 0,
            figures: BTreeMap::from([
                ("acknowledged".to_owned(), acknowledged),
                ("outage p99 ms".to_owned(), 7.0),
            ]),
            samples: BTreeMap::from([("outage ms".to_owned(), outages.to_vec())]),
        }
    }

    #[test]
    fn runs_are_added_and_percentiles_are_of_all_samples() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("totals.jsonl");
        append(&file, &line("K1", Validity::Valid, 1_200_000.0, &[800.0, 900.0])).unwrap();
        append(&file, &line("K1", Validity::Unknown, 0.5, &[])).unwrap();
        append(&file, &line("P2", Validity::Valid, 34.0, &[1_000.0])).unwrap();
        let table = table(&load(&file).unwrap(), Paint::Never);
        let expected = "\
SCENARIO  RUNS  VALID  INVALID  UNKNOWN  SKIPPED  MINUTES
K1           2      1        0        1        0      1.0
P2           1      1        0        0        0      0.5
all          3      2        0        1        0      1.5

COUNTED OR MEASURED     ALL RUNS
acknowledged         1,200,034.5
outage ms, p50 of 3          900
outage ms, p99 of 3        1,000
outage ms, max of 3        1,000
";
        assert_eq!(table, expected);
    }

    #[test]
    fn a_file_of_something_else_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("other");
        std::fs::write(&file, "hello\n").unwrap();
        assert!(load(&file).unwrap_err().to_string().contains("not a file of runs"));
    }
}
