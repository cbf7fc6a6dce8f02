//! Many runs: the smoke test, a scenario again and again, a soak. Each run is told when it ends, added to a file of totals
//! if there is one, and kept as far as somebody may want to look at it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agentpost_cli::table::{Paint, Tone, painted};
use anyhow::Result;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinSet;

use crate::history::HISTORY;
use crate::run::{self, Options};
use crate::scenario::{self, Scenario};
use crate::totals::{self, Line};
use crate::verdict::{Sum, Verdict};
use crate::workload;

/// How runs are carried out.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where each run gets a directory of its own.
    pub dir: PathBuf,
    /// Where runs are added up.
    pub append: Option<PathBuf>,
    /// Clusters at the same time.
    pub beside: usize,
    /// Keep the histories of valid runs too.
    pub keep: bool,
}

/// One run to come.
pub struct Job {
    /// The scenario.
    pub scenario: Scenario,
    /// Where its choices come from.
    pub seed: u64,
    /// How long its faults go on.
    pub length: Duration,
    /// What clients do, instead of what the scenario says.
    pub loads: Option<Vec<workload::Kind>>,
    /// Messages a second, instead of what the scenario says.
    pub rate: Option<u64>,
}

impl Job {
    /// A scenario as its row has it.
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

/// Runs jobs until there is none or one is invalid; returns the lines of all that ran.
pub async fn run(mut jobs: impl Iterator<Item = Job>, plan: &Plan) -> Result<Vec<Line>> {
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
        stop |= line.sum == Sum::Invalid;
        lines.push(line);
    }
}

async fn one(job: Job, plan: Plan) -> Result<Line> {
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
    let line = Line::of(job.scenario.name, job.seed, began.elapsed().as_secs_f64(), &verdict);
    tell(&job.scenario, &line, &verdict, &dir);
    if let Some(file) = &plan.append {
        totals::append(file, &line)?;
    }
    if verdict.sum == Sum::Valid && !plan.keep {
        // The page and what was said of it stay; a history is large and has been checked.
        std::fs::remove_file(dir.join(HISTORY))?;
    }
    Ok(line)
}

fn tell(scenario: &Scenario, line: &Line, verdict: &Verdict, dir: &Path) {
    let (word, tone) = match line.sum {
        Sum::Valid => ("valid", Tone::Good),
        Sum::Invalid => ("INVALID", Tone::Bad),
        Sum::Unknown => ("unknown", Tone::Bad),
        Sum::Skipped => ("skipped", Tone::Plain),
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
    if matches!(line.sum, Sum::Invalid | Sum::Unknown) {
        println!("         {}", dir.display());
    }
}

/// The worst of all runs; those that this machine cannot do count only when nothing else ran.
pub fn sum(lines: &[Line]) -> Sum {
    let of = |sum: Sum| lines.iter().any(|line| line.sum == sum);
    if of(Sum::Invalid) {
        Sum::Invalid
    } else if of(Sum::Unknown) || lines.is_empty() {
        Sum::Unknown
    } else if of(Sum::Valid) {
        Sum::Valid
    } else {
        Sum::Skipped
    }
}

/// The runs of the smoke test, the longest first so that two beside each other end together.
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

/// Any scenario with other clients beside its own, for so long.
pub fn soak(seed: u64, time: Duration) -> impl Iterator<Item = Job> {
    let mut random = StdRng::seed_from_u64(seed);
    let until = Instant::now() + time;
    let scenarios = scenario::all();
    std::iter::from_fn(move || {
        if Instant::now() >= until {
            return None;
        }
        let scenario = scenarios.choose(&mut random)?.clone();
        let mut loads = scenario.loads.to_vec();
        let others: Vec<workload::Kind> = workload::ALL
            .iter()
            .copied()
            .filter(|kind| !loads.contains(kind))
            .collect();
        loads.extend(others.choose(&mut random));
        Some(Job {
            seed: random.random_range(1..1 << 32),
            length: scenario.length,
            loads: Some(loads),
            rate: Some(random.random_range(50..400)),
            scenario,
        })
    })
}
