//! One run of a scenario in a directory of its own: start the cluster and the clients, inject faults, heal, audit,
//! check.
//!
//! ```text
//! <dir>/run.json          what ran and how to repeat it      <dir>/history.jsonl   what clients did
//! <dir>/faults.jsonl      what was done to the cluster       <dir>/replicas.json   whether all states are the same
//! <dir>/verdict.json      what is said of it                 <dir>/report.html     the same for people
//! <dir>/node<N>.log       what the nodes said               <dir>/cluster/        their data, unless all was well
//! <dir>/leaders.jsonl     who led, as every node said
//! ```

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};

use crate::checker::{self, Evidence};
use crate::cluster::Cluster;
use crate::faults::FaultLog;
use crate::history::Recorder;
use crate::recovery;
use crate::report;
use crate::scenario::Scenario;
use crate::stage::Stage;
use crate::verdict::{Sum, VERDICT, Verdict};
use crate::watch::Watch;
use crate::workload;

pub const RUN: &str = "run.json";
/// The subdirectory for the data of the nodes.
const CLUSTER: &str = "cluster";
pub const REPLICAS: &str = "replicas.json";
/// Time for clients alone before the first fault.
const BEFORE: Duration = Duration::from_secs(1);
/// Time for clients alone after healing. A cluster that does not serve by then violates liveness.
const AFTER: Duration = Duration::from_secs(5);

/// The options of one run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The seed of all random choices.
    pub seed: u64,
    /// How long faults are injected.
    pub length: Duration,
    /// Workloads that replace those of the scenario.
    pub loads: Option<Vec<workload::Kind>>,
    /// Messages per second of each workload, in place of the scenario's rate.
    pub rate: Option<u64>,
    /// Additional environment variables for the nodes.
    pub env: Vec<(String, String)>,
    /// The directory of the run, which must not have a history yet.
    pub dir: PathBuf,
}

/// What ran; the content of `run.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    pub scenario: String,
    pub seed: u64,
    /// How long faults were to be injected.
    pub length_s: f64,
    pub nodes: usize,
    /// The command that repeats the run.
    pub command: String,
    /// The commit that the harness was built from; empty if unknown.
    pub git: String,
    /// Unix time of the begin in milliseconds.
    pub wall_ms: i64,
    /// When the faults began, nanoseconds since the start of the run.
    pub faults_began: u64,
    /// When the cluster was healed, nanoseconds since the start of the run.
    pub healed: u64,
    /// Processes that ended unexpectedly: the node and the exit status.
    pub crashes: Vec<(usize, String)>,
}

/// Whether the states of all replicas were equal at the end; the content of `replicas.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Replicas {
    pub same: bool,
    /// The difference, for people.
    pub seen: String,
}

/// Runs a scenario. The directory contains a verdict at the end, whatever happens.
pub async fn run(scenario: &Scenario, options: &Options) -> Result<Verdict> {
    let dir = &options.dir;
    std::fs::create_dir_all(dir)?;
    let verdict = match scenario.needs.iter().find_map(|need| need.lacking()) {
        Some(why) => Verdict::without_result(Sum::Skipped, why),
        None => match play(scenario, options).await {
            Ok(()) => conclude(dir)?,
            Err(error) => interrupted(dir, format!("{error:#}"))?,
        },
    };
    write(&dir.join(VERDICT), &verdict)?;
    if verdict.sum == Sum::Valid {
        std::fs::remove_dir_all(dir.join(CLUSTER))?;
    }
    Ok(verdict)
}

/// Checks a recorded run and writes its report; needs no cluster.
pub fn conclude(dir: &Path) -> Result<Verdict> {
    let evidence = Evidence::load(dir)?;
    let verdict = checker::check(&evidence);
    report::write(dir, &evidence, &verdict)?;
    Ok(verdict)
}

/// The verdict of a run that broke off is unknown, unless a node had failed to recover before.
fn interrupted(dir: &Path, reason: String) -> Result<Verdict> {
    let check = checker::recovery::check_all(&recovery::load(dir)?);
    let sum = if check.violated > 0 { Sum::Invalid } else { Sum::Unknown };
    Ok(Verdict {
        checks: vec![check],
        ..Verdict::without_result(sum, reason)
    })
}

async fn play(scenario: &Scenario, options: &Options) -> Result<()> {
    let dir = &options.dir;
    let mut settings = (scenario.cluster)();
    settings.dir = Some(dir.join(CLUSTER));
    settings.env.extend(options.env.iter().cloned());
    let cluster = Cluster::start_with(settings).await?;
    let recorder = Recorder::create(dir)?;
    let world = cluster.world(recorder.clone(), options.seed, options.rate.unwrap_or(scenario.rate))?;
    let watch = Watch::start(&world.urls, &recorder, dir)?;
    let mut loads = Vec::new();
    for kind in options.loads.as_deref().unwrap_or(scenario.loads) {
        loads.push(workload::start(*kind, &world).await?);
    }
    tokio::time::sleep(BEFORE).await;
    let mut run = describe(scenario, options, cluster.nodes(), recorder.now());
    let mut stage = Stage {
        cluster,
        world: world.clone(),
        faults: FaultLog::create(dir, recorder.clone())?,
        watch: watch.clone(),
        random: StdRng::seed_from_u64(options.seed),
        until: Instant::now() + options.length,
        dir: dir.clone(),
    };
    (scenario.script)(&mut stage).await.context("running the script")?;
    stage.heal().await.context("healing")?;
    run.healed = recorder.now();
    tokio::time::sleep(AFTER).await;
    for load in loads {
        load.finish(&world).await?;
    }
    let same = stage.cluster.same_state().await;
    let replicas = Replicas {
        same: same.is_ok(),
        seen: same.err().map(|error| format!("{error:#}")).unwrap_or_default(),
    };
    let crashed = stage.cluster.crashed()?;
    run.crashes = crashed
        .into_iter()
        .map(|(node, status)| (node, status.to_string()))
        .collect();
    recorder.flush()?;
    watch.flush()?;
    stage.cluster.save_logs(dir)?;
    write(&dir.join(REPLICAS), &replicas)?;
    write(&dir.join(RUN), &run)
}

fn describe(scenario: &Scenario, options: &Options, nodes: usize, faults_began: u64) -> Run {
    let length_s = options.length.as_secs_f64();
    Run {
        scenario: scenario.name.to_owned(),
        seed: options.seed,
        length_s,
        nodes,
        command: command(scenario, options),
        git: std::env::var("AGENTPOST_GIT").unwrap_or_default(),
        wall_ms: jiff::Timestamp::now().as_millisecond(),
        faults_began,
        healed: 0,
        crashes: Vec::new(),
    }
}

/// The command that repeats the run.
fn command(scenario: &Scenario, options: &Options) -> String {
    let seconds = options.length.as_secs_f64();
    let mut command = format!(
        "scripts/faults.sh run {} --seed {} --seconds {seconds}",
        scenario.name, options.seed
    );
    if let Some(rate) = options.rate {
        command += &format!(" --rate {rate}");
    }
    if let Some(loads) = &options.loads {
        let names: Vec<String> = loads.iter().map(|kind| kind.name()).collect();
        command += &format!(" --loads {}", names.join(","));
    }
    command
}

/// Writes a JSON file in a readable form.
pub fn write<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let text = serde_json::to_vec_pretty(value)?;
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Reads a JSON file.
pub fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| path.display().to_string())
}
