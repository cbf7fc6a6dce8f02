//! Compares two loads in turns, so that a drift of the machine affects both alike.

use crate::Bench;
use crate::load::{Load, measure};
use crate::report::{Latency, Report, Row};

/// Turns of each load.
const TURNS: usize = 4;

/// Measures `base` and `other` in turns. It reports the median turn of each, and the median of the ratios of rate and
/// p99.
pub async fn compare(
    bench: &Bench<'_>,
    base: &Load,
    other: &Load,
    run: u32,
    report: &mut dyn Report,
) -> anyhow::Result<()> {
    let (mut bases, mut others) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        bases.push(measure(bench, base, run, bench.args.seconds(4)).await?);
        others.push(measure(bench, other, run, bench.args.seconds(4)).await?);
    }
    for row in summary(bases, others) {
        report.row(row);
    }
    Ok(())
}

fn summary(bases: Vec<Row>, others: Vec<Row>) -> Vec<Row> {
    let ratio = |of: fn(&Row) -> f64| {
        let ratios = bases
            .iter()
            .zip(&others)
            .map(|(base, other)| of(other) / of(base) * 100.0);
        middle(ratios.collect())
    };
    let (rate, p99) = (ratio(|row| row.value), ratio(|row| row.latency.p99_ms));
    let (base, other) = (median(bases), median(others));
    let of = |metric, value, note| Row {
        metric,
        value,
        unit: "%",
        latency: Latency::NONE,
        note,
        ..other.clone()
    };
    let note = |what: &str| format!("{what} of {}, median of {TURNS} turns", base.peer);
    let rows = [
        of("rate", rate, note("the rate in percent")),
        of("p99", p99, note("the p99 in percent")),
    ];
    [base, other].into_iter().chain(rows).collect()
}

fn median(mut rows: Vec<Row>) -> Row {
    rows.sort_by(|a, b| a.value.total_cmp(&b.value));
    rows.swap_remove((rows.len() - 1) / 2)
}

fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_medians_of_the_turns() {
        let rows = |peer: &str, values: [(f64, f64); 4]| -> Vec<Row> {
            let row = |(value, p99_ms)| Row {
                peer: peer.to_owned(),
                metric: "acked-writes",
                in_flight: 16,
                run: 1,
                value,
                unit: "msg/s",
                latency: Latency { p50_ms: 1.0, p99_ms },
                note: String::new(),
            };
            values.map(row).to_vec()
        };
        let empty = rows("empty", [(100.0, 1.0), (200.0, 2.0), (300.0, 1.0), (400.0, 1.0)]);
        let full = rows("full", [(90.0, 2.0), (160.0, 2.0), (210.0, 3.0), (40.0, 1.0)]);
        let rows = summary(empty, full);
        let told: Vec<_> = rows
            .iter()
            .map(|row| (&*row.peer, row.metric, row.value.round()))
            .collect();
        assert_eq!(
            told,
            [
                ("empty", "acked-writes", 200.0),
                ("full", "acked-writes", 90.0),
                ("full", "rate", 75.0),
                ("full", "p99", 150.0)
            ]
        );
    }
}
