//! One run of a scenario in a directory of its own: start the cluster and the clients, inject faults, heal, audit,
//! check.
//!
//! ```text
//! <dir>/run.json          what ran and how to repeat it      <dir>/history.jsonl   the operations of the clients
//! <dir>/faults.jsonl      the injected faults                <dir>/replicas.json   whether all states were equal
//! <dir>/verdict.json      the result of the checkers         <dir>/report.html     the same for people
//! <dir>/node<N>.log       the logs of the nodes              <dir>/cluster/        their data, unless the run is valid
//! <dir>/leaders.jsonl     the states that all nodes reported
//! ```

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::checker;
use crate::checker::evidence::Evidence;
use crate::cluster::Cluster;
use crate::record::faults::FaultLog;
use crate::record::history::Recorder;
use crate::record::leaders::NodeMonitor;
use crate::record::recoveries;
use crate::record::run::{REPLICAS, RUN, Replicas, Run, write};
use crate::record::verdict::{VERDICT, Validity, Verdict};
use crate::report;
use crate::scenario::Scenario;
use crate::scenario::nemesis::Nemesis;
use crate::workload;
use crate::workload::context::ClientContext;

/// The subdirectory for the data of the nodes.
const CLUSTER: &str = "cluster";
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
    pub loads: Option<Vec<workload::Workload>>,
    /// Messages per second of each workload, in place of the scenario's rate.
    pub rate: Option<u64>,
    /// Additional environment variables for the nodes.
    pub env: Vec<(String, String)>,
    /// The directory of the run, which must not have a history yet.
    pub dir: PathBuf,
}

/// Runs a scenario. The directory contains a verdict at the end, whatever happens.
pub async fn run(scenario: &Scenario, options: &Options) -> Result<Verdict> {
    let dir = &options.dir;
    std::fs::create_dir_all(dir)?;
    let verdict = match scenario.needs.iter().find_map(|need| need.missing()) {
        Some(why) => Verdict::without_result(Validity::Skipped, why),
        None => match play(scenario, options).await {
            Ok(()) => conclude(dir)?,
            Err(error) => interrupted(dir, format!("{error:#}"))?,
        },
    };
    write(&dir.join(VERDICT), &verdict)?;
    if verdict.validity == Validity::Valid {
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
    let check = checker::recovery::check_all(&recoveries::load(dir)?);
    let validity = if check.violated > 0 {
        Validity::Invalid
    } else {
        Validity::Unknown
    };
    Ok(Verdict {
        checks: vec![check],
        ..Verdict::without_result(validity, reason)
    })
}

async fn play(scenario: &Scenario, options: &Options) -> Result<()> {
    let dir = &options.dir;
    let mut settings = (scenario.cluster)();
    settings.dir = Some(dir.join(CLUSTER));
    settings.env.extend(options.env.iter().cloned());
    let cluster = Cluster::start_with(settings).await?;
    let recorder = Recorder::create(dir)?;
    let rate = options.rate.unwrap_or(scenario.rate);
    let ctx = ClientContext::new(&cluster, recorder.clone(), options.seed, rate)?;
    let monitor = NodeMonitor::start(&ctx.urls, &recorder, dir)?;
    let mut loads = Vec::new();
    for kind in options.loads.as_deref().unwrap_or(scenario.loads) {
        loads.push(workload::start(*kind, &ctx).await?);
    }
    tokio::time::sleep(BEFORE).await;
    let mut run = describe(scenario, options, cluster.nodes(), recorder.now());
    let mut nemesis = Nemesis {
        cluster,
        ctx: ctx.clone(),
        faults: FaultLog::create(dir, recorder.clone())?,
        monitor: monitor.clone(),
        random: StdRng::seed_from_u64(options.seed),
        until: Instant::now() + options.length,
        required: scenario.cover.faults,
        dir: dir.clone(),
    };
    (scenario.script)(&mut nemesis).await.context("running the script")?;
    nemesis.heal().await.context("healing")?;
    run.healed = recorder.now();
    tokio::time::sleep(AFTER).await;
    for load in loads {
        load.finish(&ctx).await?;
    }
    let same = nemesis.cluster.same_state().await;
    let replicas = Replicas {
        same: same.is_ok(),
        difference: same.err().map(|error| format!("{error:#}")).unwrap_or_default(),
    };
    let crashed = nemesis.cluster.crashed()?;
    run.crashes = crashed
        .into_iter()
        .map(|(node, status)| (node, status.to_string()))
        .collect();
    recorder.flush()?;
    monitor.flush()?;
    nemesis.cluster.save_logs(dir)?;
    write(&dir.join(REPLICAS), &replicas)?;
    write(&dir.join(RUN), &run)
}

fn describe(scenario: &Scenario, options: &Options, nodes: usize, faults_began: u64) -> Run {
    let length_s = options.length.as_secs_f64();
    Run {
        scenario: scenario.name.to_owned(),
        title: scenario.title.to_owned(),
        required: scenario.required(),
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
