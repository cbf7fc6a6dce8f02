//! `faults`: runs scenarios and checks again what they wrote down. `scripts/faults.sh` builds and calls it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use jepsen_like_tests::run::{self, Options};
use jepsen_like_tests::verdict::{Sum, Verdict};
use jepsen_like_tests::{checker, scenario};

/// Faults against a cluster of real processes.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run one scenario
    Run {
        /// Its name
        scenario: String,
        /// Where all choices come from; drawn if not given
        #[arg(long)]
        seed: Option<u64>,
        /// How long the faults go on
        #[arg(long)]
        seconds: Option<f64>,
        /// Where to write; a directory that does not exist yet
        #[arg(long)]
        dir: PathBuf,
    },
    /// Check a run again from what it wrote down
    Recheck {
        /// Its directory
        dir: PathBuf,
    },
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let verdict = match Arguments::parse().command {
        Command::Run {
            scenario,
            seed,
            seconds,
            dir,
        } => {
            let scenario = scenario::named(&scenario).with_context(|| format!("no scenario {scenario}"))?;
            let options = Options {
                seed: seed.unwrap_or_else(rand::random),
                length: seconds.map_or(scenario.length, Duration::from_secs_f64),
                dir,
            };
            run::run(&scenario, &options).await?
        }
        Command::Recheck { dir } => checker::check(&dir)?,
    };
    show(&verdict);
    Ok(ExitCode::from(verdict.sum as u8))
}

fn show(verdict: &Verdict) {
    println!("{:?} {}", verdict.sum, verdict.reason);
    for check in &verdict.checks {
        println!("{:<20} {:>10} {:>6}", check.name, check.looked_at, check.violated);
        for violation in &check.violations {
            println!("    {violation}");
        }
    }
    if verdict.sum == Sum::Valid {
        println!("{:#?}", verdict.figures);
    }
}
