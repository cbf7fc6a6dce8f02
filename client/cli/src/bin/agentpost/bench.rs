//! `agentpost bench`: prints the rows of the load generator, as TSV for programs or as a table for people.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};

use agentpost_bench::Args;
use agentpost_bench::report::{Report, Row};
use agentpost_cli::output;
use agentpost_cli::table::{Align, Paint, Table, Tone};
use agentpost_cli::terminal::escaped;

use crate::connection::Connection;

/// Runs the measurements and prints their rows.
pub async fn run(args: Args, connection: &Connection) -> anyhow::Result<()> {
    args.validate()?;
    let (operator, urls) = (connection.operator()?, connection.urls()?);
    let mut printer = Printer::new(args.is_tsv());
    let measured = agentpost_bench::run(&args, &operator, &urls, &mut printer).await;
    printer.finish()?;
    measured
}

/// A row as a line of TSV.
fn tsv(row: &Row) -> String {
    format!(
        "{}\t{}\t{}\t{}\t{:.1}\t{}\t{:.3}\t{:.3}\t{}\n",
        row.peer,
        row.metric,
        row.in_flight,
        row.run,
        row.value,
        row.unit,
        row.latency.p50_ms,
        row.latency.p99_ms,
        escaped(&row.note)
    )
}

/// Collects the rows. With `--tsv` it prints each at once.
struct Printer {
    tsv: bool,
    /// Whether stderr is a terminal.
    watched: bool,
    rows: Vec<Row>,
}

impl Printer {
    fn new(tsv: bool) -> Self {
        Printer {
            tsv,
            watched: std::io::stderr().is_terminal(),
            rows: Vec::new(),
        }
    }

    /// Prints the table, unless the rows were printed as TSV.
    fn finish(&self) -> anyhow::Result<()> {
        if self.tsv || self.rows.is_empty() {
            return Ok(());
        }
        output::text(&table(&self.rows).render(Paint::for_stdout()))
    }
}

impl Report for Printer {
    fn progress(&mut self, what: &str) {
        if self.watched {
            eprintln!("{what}");
        }
    }

    fn row(&mut self, row: Row) {
        self.progress(&format!(
            "  {} {} in flight: {:.0} {}, p50 {:.3} ms, p99 {:.3} ms",
            row.peer, row.in_flight, row.value, row.unit, row.latency.p50_ms, row.latency.p99_ms
        ));
        if self.tsv {
            // A closed pipe is no reason to stop a measurement.
            let _ = std::io::stdout().lock().write_all(tsv(&row).as_bytes());
        }
        self.rows.push(row);
    }
}

/// A line for each kind of measurement: minimum, median and maximum of its runs. Latency and note are of the median
/// run.
fn table(rows: &[Row]) -> Table {
    let mut table = Table::new(&[
        ("WHAT", Align::Left),
        ("IN FLIGHT", Align::Right),
        ("MIN", Align::Right),
        ("MEDIAN", Align::Right),
        ("MAX", Align::Right),
        ("UNIT", Align::Left),
        ("P50 MS", Align::Right),
        ("P99 MS", Align::Right),
        ("NOTE", Align::Left),
    ]);
    let mut kinds: BTreeMap<(&str, &str, u32), Vec<&Row>> = BTreeMap::new();
    for row in rows {
        kinds
            .entry((&row.peer, row.metric, row.in_flight))
            .or_default()
            .push(row);
    }
    for ((peer, metric, in_flight), mut runs) in kinds {
        runs.sort_by(|a, b| a.value.total_cmp(&b.value));
        let median = runs[(runs.len() - 1) / 2];
        let ms = |value: f64| {
            if value.is_nan() {
                "-".to_owned()
            } else {
                format!("{value:.3}")
            }
        };
        table.row(
            Tone::Plain,
            vec![
                format!("{peer} {metric}"),
                in_flight.to_string(),
                format!("{:.0}", runs[0].value),
                format!("{:.0}", median.value),
                format!("{:.0}", runs[runs.len() - 1].value),
                median.unit.to_owned(),
                ms(median.latency.p50_ms),
                ms(median.latency.p99_ms),
                median.note.clone(),
            ],
        );
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use agentpost_bench::report::Latency;

    fn row(run: u32, value: f64) -> Row {
        Row {
            peer: "agentpost-http".to_owned(),
            metric: "acked-writes",
            in_flight: 64,
            run,
            value,
            unit: "msg/s",
            latency: Latency {
                p50_ms: 2.0,
                p99_ms: f64::from(run),
            },
            note: format!("run {run}"),
        }
    }

    #[test]
    fn a_row_has_the_columns_of_the_peers() {
        assert_eq!(
            tsv(&row(2, 1234.56)),
            "agentpost-http\tacked-writes\t64\t2\t1234.6\tmsg/s\t2.000\t2.000\trun 2\n"
        );
        let none = Row {
            latency: Latency::NONE,
            ..row(1, 1.0)
        };
        assert_eq!(
            tsv(&none),
            "agentpost-http\tacked-writes\t64\t1\t1.0\tmsg/s\tNaN\tNaN\trun 1\n"
        );
    }

    #[test]
    fn the_table_shows_the_median_run() {
        let expected = "\
WHAT                         IN FLIGHT  MIN  MEDIAN  MAX  UNIT   P50 MS  P99 MS  NOTE
agentpost-http acked-writes         64  100     200  900  msg/s   2.000   3.000  run 3
";
        let rows = [row(1, 900.0), row(2, 100.0), row(3, 200.0)];
        assert_eq!(table(&rows).render(Paint::Never), expected);
    }
}
