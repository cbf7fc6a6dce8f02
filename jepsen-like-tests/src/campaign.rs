//! Runs several scenarios: the smoke test, one scenario repeatedly, or a soak. Each run is reported on the terminal
//! when it ends and added to a file of totals if one was given; only what may be needed later is kept.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agentpost_cli::table::{Paint, Tone, painted};
use anyhow::Result;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinSet;

use crate::record::history::HISTORY;
use crate::record::verdict::{Validity, Verdict};
use crate::run::{self, Options};
use crate::scenario::definition::InSoak;
use crate::scenario::{self, Scenario};
use crate::totals::{self, RunLine};
use crate::workload;

/// How the runs are carried out.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The directory that contains the directories of the runs.
    pub dir: PathBuf,
    /// The file to which a line is added for each run.
    pub append: Option<PathBuf>,
    /// The number of clusters that run concurrently.
    pub beside: usize,
    /// Whether the histories of valid runs are kept, too.
    pub keep: bool,
}

/// A run that has not started yet.
pub struct Job {
    pub scenario: Scenario,
    pub seed: u64,
    /// How long faults are injected.
    pub length: Duration,
    /// Workloads that replace those of the scenario.
    pub loads: Option<Vec<workload::Workload>>,
    /// Messages per second, in place of the scenario's rate.
    pub rate: Option<u64>,
}

impl Job {
    /// Runs a scenario with its own workloads and rate.
    pub fn new(scenario: Scenario, seed: u64, length: Duration) -> Self {
        Job {
            scenario,
            seed,
            length,
            loads: None,
            rate: None,
        }
    }
}

/// Runs jobs until there are none left or one is invalid; returns a line for each.
pub async fn run(mut jobs: impl Iterator<Item = Job>, plan: &Plan) -> Result<Vec<RunLine>> {
    let mut lines = Vec::new();
    let mut running = JoinSet::new();
    let mut stop = false;
    loop {
        while !stop && running.len() < plan.beside {
            let Some(job) = jobs.next() else { break };
            running.spawn(one(job, plan.clone()));
        }
        let Some(ended) = running.join_next().await else {
            return Ok(lines);
        };
        let line = ended??;
        stop |= line.validity == Validity::Invalid;
        lines.push(line);
    }
}

async fn one(job: Job, plan: Plan) -> Result<RunLine> {
    let dir = plan.dir.join(format!("{}-{}", job.scenario.name, job.seed));
    let options = Options {
        seed: job.seed,
        length: job.length,
        loads: job.loads,
        rate: job.rate,
        env: Vec::new(),
        dir: dir.clone(),
    };
    let began = Instant::now();
    let verdict = run::run(&job.scenario, &options).await?;
    let line = RunLine::of(job.scenario.name, job.seed, began.elapsed().as_secs_f64(), &verdict);
    print_result(&job.scenario, &line, &verdict, &dir);
    if let Some(file) = &plan.append {
        totals::append(file, &line)?;
    }
    if verdict.validity == Validity::Valid && !plan.keep {
        // The report and the verdict stay; the history is large and has been checked.
        std::fs::remove_file(dir.join(HISTORY))?;
    }
    Ok(line)
}

fn print_result(scenario: &Scenario, line: &RunLine, verdict: &Verdict, dir: &Path) {
    let (word, tone) = match line.validity {
        Validity::Valid => ("valid", Tone::Good),
        Validity::Invalid => ("INVALID", Tone::Bad),
        Validity::Unknown => ("unknown", Tone::Bad),
        Validity::Skipped => ("skipped", Tone::Plain),
    };
    let word = painted(&format!("{word:<8}"), tone, Paint::for_stdout());
    let looked_at: u64 = verdict.checks.iter().map(|check| check.looked_at).sum();
    println!(
        "{word} {:<4} {:<48} {:>6.1} s  {looked_at:>9} checked  seed {}",
        scenario.name, scenario.title, line.took_s, line.seed
    );
    if !line.reason.is_empty() {
        println!("         {}", line.reason);
    }
    for check in verdict.checks.iter().filter(|check| check.violated > 0) {
        println!(
            "         {}: {} violations, for example: {}",
            check.name, check.violated, check.violations[0]
        );
    }
    if matches!(line.validity, Validity::Invalid | Validity::Unknown) {
        println!("         {}", dir.display());
    }
}

/// The worst result of all runs. Skipped runs count only if nothing else ran.
pub fn sum(lines: &[RunLine]) -> Validity {
    let of = |sum: Validity| lines.iter().any(|line| line.validity == sum);
    if of(Validity::Invalid) {
        Validity::Invalid
    } else if of(Validity::Unknown) || lines.is_empty() {
        Validity::Unknown
    } else if of(Validity::Valid) {
        Validity::Valid
    } else {
        Validity::Skipped
    }
}

/// The runs of the smoke test, the longest first so that two concurrent clusters finish together.
pub fn smoke(seed: u64) -> impl Iterator<Item = Job> {
    let mut jobs: Vec<Job> = scenario::all()
        .into_iter()
        .filter_map(|scenario| {
            let length = scenario.smoke?;
            Some(Job::new(scenario, seed, length))
        })
        .collect();
    jobs.sort_by_key(|job| std::cmp::Reverse(job.length));
    jobs.into_iter()
}

/// Random scenarios until the time is over, each with one additional workload and another rate unless that would defeat
/// it.
pub fn soak(seed: u64, time: Duration) -> impl Iterator<Item = Job> {
    let mut random = StdRng::seed_from_u64(seed);
    let until = Instant::now() + time;
    let scenarios = scenario::all();
    std::iter::from_fn(move || {
        if Instant::now() >= until {
            return None;
        }
        let scenario = scenarios.choose(&mut random)?.clone();
        let seed = random.random_range(1..1 << 32);
        if let InSoak::AsItIs(length) = scenario.in_soak {
            return Some(Job::new(scenario, seed, length));
        }
        let mut loads = scenario.loads.to_vec();
        let others: Vec<workload::Workload> = workload::ALL
            .iter()
            .copied()
            .filter(|kind| !loads.contains(kind))
            .collect();
        loads.extend(others.choose(&mut random));
        Some(Job {
            seed,
            length: scenario.length,
            loads: Some(loads),
            rate: Some(random.random_range(50..400)),
            scenario,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_soak_varies_scenarios_unless_that_would_defeat_them() {
        let hour = Duration::from_secs(3_600);
        let jobs: Vec<Job> = soak(1, hour).take(1_000).collect();
        for scenario in scenario::all() {
            let job = jobs.iter().find(|job| job.scenario.name == scenario.name);
            let job = job.unwrap_or_else(|| panic!("{} is in no soak", scenario.name));
            match scenario.in_soak {
                InSoak::Varied => {
                    assert!(job.rate.is_some() && job.length == scenario.length, "{}", scenario.name);
                    let loads = job.loads.as_ref().map_or(0, Vec::len);
                    assert!(loads >= scenario.loads.len(), "{}", scenario.name);
                }
                InSoak::AsItIs(length) => {
                    assert!(job.rate.is_none() && job.loads.is_none(), "{}", scenario.name);
                    assert!(job.length == length && length < hour / 10, "{}", scenario.name);
                }
            }
        }
    }
}
