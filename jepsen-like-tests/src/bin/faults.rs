//! The program `faults` runs scenarios and checks recorded runs again. `scripts/faults.sh` builds and calls it.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use agentpost_cli::table::{Align, Paint, Table, Tone, painted};
use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand};
use jepsen_like_tests::campaign::{self, Job, Plan};
use jepsen_like_tests::mutants::{self, MutationTest};
use jepsen_like_tests::record::run::write;
use jepsen_like_tests::record::verdict::VERDICT;
use jepsen_like_tests::run;
use jepsen_like_tests::scenario::{self, Scenario};
use jepsen_like_tests::totals::{self, RunLine};
use jepsen_like_tests::workload;

/// Fault tests against a cluster of real processes.
///
/// Every run gets a directory with its history, its verdict and a report for people (report.html).
#[derive(Parser)]
#[command(
    name = "scripts/faults.sh",
    after_help = "Exit status: 0 valid, 1 a property was violated, 2 unknown (the harness had a problem, or too little was tested), \
                  3 skipped (this machine lacks something that the scenario needs)."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List all scenarios
    List,
    /// Run the smoke test: ten scenarios for a few seconds each, some three minutes
    Smoke {
        #[command(flatten)]
        how: RunOptions,
    },
    /// Run one or several scenarios, one after the other
    Run {
        /// Names of scenarios, see `list`
        #[arg(required = true)]
        scenarios: Vec<String>,
        /// How long faults are injected in each run [default: the scenario's own length]
        #[arg(long)]
        seconds: Option<f64>,
        /// Repeat with this many consecutive seeds
        #[arg(long, default_value_t = 1)]
        runs: u64,
        /// Messages per second of each workload; 0 means no limit
        #[arg(long)]
        rate: Option<u64>,
        /// Workloads that replace those of the scenario, such as `send,webhooks-quick`
        #[arg(long, value_delimiter = ',')]
        loads: Option<Vec<String>>,
        #[command(flatten)]
        how: RunOptions,
    },
    /// Run random scenarios with random workloads until the time is over or a run is invalid
    Soak {
        /// Length of the soak in hours
        #[arg(long)]
        hours: f64,
        #[command(flatten)]
        how: RunOptions,
    },
    /// Break one rule of the node after the other and check that a test or scenario detects it
    Mutants {
        /// Names of mutants [default: all]
        names: Vec<String>,
        /// Root directory of the sources
        #[arg(long, value_name = "DIR")]
        sources: PathBuf,
        #[command(flatten)]
        how: RunOptions,
    },
    /// Check a recorded run again
    Recheck {
        /// Directory of the run
        dir: PathBuf,
    },
    /// Add up the runs in a file that --append wrote
    Totals {
        /// The file
        file: PathBuf,
    },
}

#[derive(clap::Args)]
struct RunOptions {
    /// Seed of all random choices [default: random]
    #[arg(long)]
    seed: Option<u64>,
    /// Append one line per run to this file
    #[arg(long, value_name = "FILE")]
    append: Option<PathBuf>,
    /// Directory for the directories of the runs
    #[arg(long, value_name = "DIR", env = "AGENTPOST_FAULTS_DIR")]
    dir: PathBuf,
    /// Number of clusters that run concurrently
    #[arg(long, default_value_t = 1)]
    beside: usize,
    /// Keep the histories of valid runs, too
    #[arg(long)]
    keep: bool,
}

impl RunOptions {
    fn seed(&self) -> u64 {
        // Short enough to be typed again.
        self.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()))
    }

    fn plan(self) -> Plan {
        Plan {
            dir: self.dir,
            append: self.append,
            beside: self.beside.max(1),
            keep: self.keep,
        }
    }
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let lines = match Arguments::parse().command {
        Command::List => {
            show(&list().render(Paint::for_stdout()));
            return Ok(ExitCode::SUCCESS);
        }
        Command::Recheck { dir } => {
            let verdict = run::conclude(&dir)?;
            write(&dir.join(VERDICT), &verdict)?;
            show(&(serde_json::to_string_pretty(&verdict)? + "\n"));
            return Ok(ExitCode::from(verdict.validity as u8));
        }
        Command::Mutants { names, sources, how } => return hunt(&names, sources, how).await,
        Command::Totals { file } => {
            let lines = totals::load(&file)?;
            show(&totals::table(&lines, Paint::for_stdout()));
            return Ok(ExitCode::from(campaign::sum(&lines) as u8));
        }
        Command::Smoke { how } => campaign::run(campaign::smoke(how.seed()), &how.plan()).await?,
        Command::Soak { hours, how } => {
            let time = Duration::from_secs_f64(hours * 3600.0);
            campaign::run(campaign::soak(how.seed(), time), &how.plan()).await?
        }
        Command::Run {
            scenarios,
            seconds,
            runs,
            rate,
            loads,
            how,
        } => {
            let chosen = scenarios.iter().map(|name| {
                let found = scenario::named(name);
                found.with_context(|| format!("there is no scenario {name}; `list` shows them"))
            });
            let chosen: Vec<Scenario> = chosen.collect::<Result<_>>()?;
            let loads = loads.map(|names| names.iter().map(|name| load(name)).collect::<Result<Vec<_>>>());
            let loads = loads.transpose()?;
            let first = how.seed();
            let jobs = (0..runs).flat_map(|n| {
                let loads = &loads;
                chosen.iter().map(move |scenario| {
                    let length = seconds.map_or(scenario.length, Duration::from_secs_f64);
                    Job {
                        rate,
                        loads: loads.clone(),
                        ..Job::new(scenario.clone(), first + n, length)
                    }
                })
            });
            campaign::run(jobs, &how.plan()).await?
        }
    };
    conclude(&lines)
}

/// Errors are ignored: the reader may have closed the pipe, as `head` does.
fn show(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn load(name: &str) -> Result<workload::Workload> {
    scenario::load_named(name).with_context(|| {
        let known: Vec<String> = workload::ALL.iter().map(|kind| kind.name()).collect();
        format!("there is no workload {name}; the workloads are {}", known.join(", "))
    })
}

fn conclude(lines: &[RunLine]) -> Result<ExitCode> {
    if lines.len() > 1 {
        show(&format!("\n{}", totals::table(lines, Paint::for_stdout())));
    }
    Ok(ExitCode::from(campaign::sum(lines) as u8))
}

async fn hunt(names: &[String], sources: PathBuf, how: RunOptions) -> Result<ExitCode> {
    let seed = how.seed();
    let mut hunt = MutationTest::new(sources, how.dir, seed);
    let mut survived = 0;
    for name in names {
        ensure!(
            mutants::ALL.iter().any(|mutant| mutant.name == name),
            "there is no mutant {name}"
        );
    }
    let chosen = mutants::ALL
        .iter()
        .filter(|mutant| names.is_empty() || names.iter().any(|name| name == mutant.name));
    for mutant in chosen {
        let (word, tone, by) = match hunt.hunt(mutant).await? {
            Ok(by) => ("detected", Tone::Good, by),
            Err(by) => ("SURVIVED", Tone::Bad, by),
        };
        survived += usize::from(tone == Tone::Bad);
        let word = painted(&format!("{word:<9}"), tone, Paint::for_stdout());
        println!("{word} {:<18} {:<66} {by}", mutant.name, mutant.does);
    }
    println!("{survived} mutants survived, seed {seed}");
    Ok(ExitCode::from(u8::from(survived > 0)))
}

fn list() -> Table {
    let mut table = Table::new(&[
        ("NAME", Align::Left),
        ("DESCRIPTION", Align::Left),
        ("SECONDS", Align::Right),
        ("SMOKE", Align::Right),
        ("NEEDS", Align::Left),
    ]);
    for scenario in scenario::all() {
        let needs: Vec<String> = scenario.needs.iter().map(|need| format!("{need:?}")).collect();
        table.row(
            Tone::Plain,
            vec![
                scenario.name.to_owned(),
                scenario.title.to_owned(),
                scenario.length.as_secs().to_string(),
                scenario
                    .smoke
                    .map_or(String::new(), |smoke| smoke.as_secs().to_string()),
                needs.join(", "),
            ],
        );
    }
    table
}
