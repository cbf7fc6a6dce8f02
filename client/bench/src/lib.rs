//! The load generator behind `agentpost bench`. It measures and returns rows; the command prints them.
//!
//! The load is a closed loop: every lane holds one connection, sends a request, waits for the acknowledgement and
//! sends the next one. Bodies have 200 bytes and go to 1,000 inboxes, which are chosen at random from a seed. The
//! generator usually shares its machine with the cluster, so it does little work of its own: prepared headers, no
//! JSON parser, one thread.
//!
//! - `load.rs`: the closed loop of the modes `http` and `batch`; `push.rs`, `crash.rs`, `fanout.rs`: one mode each
//! - `deliver.rs` and `isolation.rs`: the mode `deliver`; `hooks.rs` registers its webhooks, `sink.rs` receives their
//!   calls
//! - `traffic.rs`: the requests; `lane.rs`: a connection; `nodes.rs`: the nodes of the cluster
//! - `observe.rs`: CPU time and disk flushes of a measurement; `report.rs`: a row

mod crash;
mod deliver;
mod fanout;
mod hooks;
mod isolation;
mod lane;
mod load;
mod nodes;
mod observe;
mod push;
pub mod report;
mod sink;
mod traffic;

use std::time::Duration;

use agentpost::Permission;
use agentpost::api::admin::{CreatedKey, LimitsPatch, Team};
use agentpost::operator::Operator;
use anyhow::{Context, bail};
use clap::ValueEnum;

use nodes::Nodes;
use report::Report;

/// The arguments of `agentpost bench`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  agentpost bench
  agentpost bench --mode batch --in-flight 1,16 --runs 1
  agentpost bench --mode ws-push --tsv

Modes:
  http     sends of one message each; in flight counts messages
  batch    sends of 100 messages each; in flight counts requests, the figure counts messages
  ws-push  time from a send on one node to the event on a WebSocket of another, at low load
  fanout   publishes to a topic with 1,000 subscribers; the figure counts inbox entries
  deliver  webhook deliveries to 100 URLs of 10 teams in this program, and the log entries that they cost; then how long
           deliveries wait for their call, and whether a dead and a dripping URL delay the others
  crash    kills the leader under load: the longest time without any acknowledgement, and whether mail was lost

The benchmark creates teams without limits, and keys that it revokes at the end. A send counts when it is acknowledged:
flushed to disk by a majority of the nodes. With one request in flight the leader and a follower are also measured
alone. Columns of --tsv: peer, metric, in flight, run, value, unit, p50 ms, p99 ms, note. The note gives for each node
its log flushes per acknowledged message and its CPU seconds, then the CPU seconds of this program and of the whole
machine.")]
pub struct Args {
    /// What to measure; separate several by commas
    #[arg(long, value_enum, value_delimiter = ',', default_value = "http")]
    mode: Vec<Mode>,
    /// Requests in flight at a time; separate several by commas, each is measured on its own
    #[arg(long, value_delimiter = ',', value_name = "LIST", default_value = "1,16,64,256")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=4096))]
    in_flight: Vec<u32>,
    /// Length of one measurement
    #[arg(long, value_name = "SECONDS", default_value_t = 4)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Load before each measurement, not counted
    #[arg(long, value_name = "SECONDS", default_value_t = 1)]
    warm_up: u64,
    /// Measurements of each kind [default: 3, with --tsv 1]
    #[arg(long, value_name = "COUNT")]
    runs: Option<u32>,
    /// Nodes that get the load
    #[arg(long, value_enum, default_value = "any")]
    target: Target,
    /// Print one row for each measurement, for other programs
    #[arg(long)]
    tsv: bool,
    /// Seed of the random inboxes; the same seed repeats the choice
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Threads of the load generator
    #[arg(long, default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: u16,
    /// For crash: the process id of each node, so that the leader can be killed
    #[arg(long, value_name = "NODE=PID,…", value_delimiter = ',', value_parser = crash::process)]
    kill: Vec<(u64, u32)>,
}

/// A kind of measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    Http,
    Batch,
    WsPush,
    Fanout,
    Deliver,
    Crash,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Mode::Http => "http",
            Mode::Batch => "batch",
            Mode::WsPush => "ws-push",
            Mode::Fanout => "fanout",
            Mode::Deliver => "deliver",
            Mode::Crash => "crash",
        }
    }
}

/// The nodes that get the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Target {
    Any,
    Leader,
    Follower,
}

impl Target {
    fn suffix(self) -> &'static str {
        match self {
            Target::Any => "",
            Target::Leader => "-leader",
            Target::Follower => "-follower",
        }
    }
}

impl Args {
    /// The runtime of the load generator. One thread costs the least; more threads help only if cores are idle.
    pub fn runtime(&self) -> anyhow::Result<tokio::runtime::Runtime> {
        let runtime = match self.threads {
            1 => tokio::runtime::Builder::new_current_thread().enable_all().build(),
            threads => tokio::runtime::Builder::new_multi_thread()
                .worker_threads(threads.into())
                .enable_all()
                .build(),
        };
        runtime.context("cannot start the runtime")
    }

    /// Fails if an argument is missing that a mode needs.
    pub fn validate(&self) -> anyhow::Result<()> {
        if self.mode.contains(&Mode::Crash) && self.kill.is_empty() {
            bail!("the mode crash kills the leader: name the process of each node with --kill 1=PID,2=PID,…");
        }
        Ok(())
    }

    /// Whether `--tsv` was given.
    pub fn is_tsv(&self) -> bool {
        self.tsv
    }

    fn runs(&self) -> u32 {
        self.runs.unwrap_or(if self.tsv { 1 } else { 3 })
    }
}

/// The inputs of every measurement.
struct Bench<'a> {
    args: &'a Args,
    operator: &'a Operator,
    urls: &'a [String],
    team: &'a Team,
    key: &'a str,
    /// All teams and their keys; `team` and `key` are those of the first.
    tenants: &'a [(Team, CreatedKey)],
}

/// Runs the measurements against the nodes with these base URLs; `operator` has the admin key.
pub async fn run(args: &Args, operator: &Operator, urls: &[String], report: &mut dyn Report) -> anyhow::Result<()> {
    Nodes::discover(operator, urls).await?;
    let count = if args.mode.contains(&Mode::Deliver) {
        hooks::TEAMS
    } else {
        1
    };
    let mut tenants = Vec::new();
    for _ in 0..count {
        tenants.push(tenant(operator).await?);
    }
    let bench = Bench {
        args,
        operator,
        urls,
        team: &tenants[0].0,
        key: &tenants[0].1.api_key,
        tenants: &tenants,
    };
    let measured = bench.measure(report).await;
    // The keys are revoked after a failure too.
    let mut revoked = Ok(());
    for (_, key) in &tenants {
        revoked = revoked.and(operator.revoke_key(&key.id).await);
    }
    measured?;
    revoked.context("cannot revoke a key of the benchmark")
}

/// Creates a team without limits and a key of it.
async fn tenant(operator: &Operator) -> anyhow::Result<(Team, CreatedKey)> {
    let name = format!("bench-{}", uuid::Uuid::now_v7().simple());
    let unlimited = LimitsPatch {
        daily_sends: Some(0),
        daily_reads: Some(0),
        daily_webhook_registrations: Some(0),
        monthly_events: Some(0),
        overage_price_atomic: None,
    };
    let team = operator.create_team(name).limits(unlimited);
    let team = team.await.context("cannot create a team")?;
    let key = operator.create_key(&team.id, "bench").permission(Permission::Write);
    let key = key.await.context("cannot create a key")?;
    Ok((team, key))
}

impl Bench<'_> {
    async fn measure(&self, report: &mut dyn Report) -> anyhow::Result<()> {
        for run in 1..=self.args.runs() {
            for mode in &self.args.mode {
                report.progress(&format!("run {run} of {}: {}", self.args.runs(), mode.name()));
                match mode {
                    Mode::Http => self.sends(traffic::Shape::Single, run, report).await?,
                    Mode::Batch => self.sends(traffic::Shape::Batch, run, report).await?,
                    Mode::WsPush => self.pushes(run, report).await?,
                    Mode::Fanout => fanout::measure(self, run, report).await?,
                    Mode::Deliver => deliver::measure(self, run, report).await?,
                    Mode::Crash => crash::measure(self, run, report).await?,
                }
            }
        }
        Ok(())
    }

    async fn sends(&self, shape: traffic::Shape, run: u32, report: &mut dyn Report) -> anyhow::Result<()> {
        for &in_flight in &self.args.in_flight {
            let mut targets = vec![self.args.target];
            if in_flight == 1 && self.args.target == Target::Any && shape == traffic::Shape::Single {
                targets.extend([Target::Leader, Target::Follower]);
            }
            for target in targets {
                report.row(load::measure(self, shape, target, in_flight, run).await?);
            }
        }
        Ok(())
    }

    async fn pushes(&self, run: u32, report: &mut dyn Report) -> anyhow::Result<()> {
        let both = [Target::Leader, Target::Follower];
        let targets = if self.args.target == Target::Any {
            &both[..]
        } else {
            std::slice::from_ref(&self.args.target)
        };
        for target in targets {
            report.row(push::measure(self, *target, run).await?);
        }
        Ok(())
    }

    /// Asks for the nodes before each measurement: the leader may have changed, and `crash` kills a node.
    async fn nodes(&self) -> anyhow::Result<Nodes> {
        Nodes::discover(self.operator, self.urls).await
    }

    fn duration(&self) -> Duration {
        Duration::from_secs(self.args.seconds)
    }
}
