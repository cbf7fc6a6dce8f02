//! The load generator behind `agentpost bench`. It measures and returns rows; the command prints them.
//!
//! The load is a closed loop: every lane holds one connection, sends a request, waits for the acknowledgement and
//! sends the next one. Bodies have 200 bytes and go to 1,000 inboxes, which are chosen at random from a seed. The
//! generator usually shares its machine with the cluster, so it does little work of its own: prepared headers, no
//! JSON parser, one thread.
//!
//! - `args.rs`: the arguments; `tenants.rs`: the teams; `fill.rs`: messages before a measurement
//! - `load.rs`: the closed loop and the modes `http` and `batch`; `meter.rs`: what it measures; `turns.rs`: two loads in
//!   turns
//! - `push.rs`, `fanout.rs`, `sustain.rs`, `join.rs`, `restart.rs`: one mode each; `aged.rs`: those of an old cluster
//! - `crash.rs`: the modes that kill leaders; `outage.rs`: their load; `control.rs`: the processes of the nodes
//! - `deliver.rs` and `isolation.rs`: the mode `deliver`; `hooks.rs` registers its webhooks, `sink.rs` receives their
//!   calls
//! - `traffic.rs`: the requests; `lane.rs`: a connection; `nodes.rs`: the nodes of the cluster
//! - `observe.rs`: counters of the nodes and of this machine; `disk.rs`: bytes on disk; `report.rs`: a row

mod aged;
mod args;
mod control;
mod crash;
mod deliver;
mod disk;
mod fanout;
mod fill;
mod hooks;
mod isolation;
mod join;
mod lane;
mod load;
mod meter;
mod nodes;
mod observe;
mod outage;
mod push;
pub mod report;
mod restart;
mod sink;
mod sustain;
mod tenants;
mod traffic;
mod turns;

use agentpost::api::admin::{CreatedKey, Team};
use agentpost::operator::Operator;

pub use args::Args;
use args::{Mode, Target};
use load::Load;
use nodes::Nodes;
use report::Report;
use traffic::Shape;

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
    let count = if args.preload() > 0 || args.modes().iter().any(|mode| mode.has_many_teams()) {
        hooks::TEAMS
    } else {
        1
    };
    let mut made = Vec::new();
    for _ in 0..count {
        made.push(tenants::create(operator).await?);
    }
    let bench = Bench {
        args,
        operator,
        urls,
        team: &made[0].0,
        key: &made[0].1.api_key,
        tenants: &made,
    };
    let measured = bench.measure(report).await;
    // The keys are revoked after a failure too.
    let keys: Vec<CreatedKey> = made.into_iter().map(|(_, key)| key).collect();
    let revoked = tenants::revoke(operator, &keys).await;
    measured?;
    revoked
}

/// A number that no other measurement has, for names and keys that must not repeat.
fn fresh_number() -> u64 {
    let (high, low) = uuid::Uuid::now_v7().as_u64_pair();
    high ^ low
}

impl Bench<'_> {
    async fn measure(&self, report: &mut dyn Report) -> anyhow::Result<()> {
        fill::preload(self, report).await?;
        for run in 1..=self.args.runs() {
            for &mode in self.args.modes() {
                report.progress(&format!("run {run} of {}: {}", self.args.runs(), mode.name()));
                match mode {
                    Mode::Http => self.sends(Shape::Single, run, report).await?,
                    Mode::Batch => self.sends(Shape::Batch, run, report).await?,
                    Mode::WsPush => self.pushes(run, report).await?,
                    Mode::Fanout => fanout::measure(self, run, report).await?,
                    Mode::Deliver => deliver::measure(self, run, report).await?,
                    // The messages were sent above.
                    Mode::Preload => {}
                    Mode::Sustain => sustain::measure(self, run, report).await?,
                    Mode::Keyed => aged::keyed(self, Shape::Single, run, report).await?,
                    Mode::KeyedBatch => aged::keyed(self, Shape::Batch, run, report).await?,
                    Mode::FullInbox => aged::full_inbox(self, run, report).await?,
                    Mode::IdleTeams => aged::idle_teams(self, run, report).await?,
                    Mode::BusyTeams => aged::busy_teams(self, run, report).await?,
                    Mode::Agents => aged::agents(self, run, report).await?,
                    Mode::Crash => crash::measure(self, run, report).await?,
                    Mode::Failover => crash::failover(self, run, report).await?,
                    Mode::Restart => restart::measure(self, run, report).await?,
                    Mode::Join => join::measure(self, run, report).await?,
                }
            }
        }
        Ok(())
    }

    async fn sends(&self, shape: Shape, run: u32, report: &mut dyn Report) -> anyhow::Result<()> {
        let name = if shape == Shape::Batch { "batch" } else { "http" };
        for in_flight in self.args.in_flight_list() {
            let mut targets = vec![self.args.target()];
            if in_flight == 1 && self.args.target() == Target::Any && shape == Shape::Single {
                targets.extend([Target::Leader, Target::Follower]);
            }
            for target in targets {
                let load = Load {
                    target,
                    ..Load::new(self, format!("{name}{}", target.suffix()), shape, in_flight)
                };
                report.row(load::measure(self, &load, run, self.args.seconds(4)).await?);
            }
        }
        Ok(())
    }

    async fn pushes(&self, run: u32, report: &mut dyn Report) -> anyhow::Result<()> {
        let target = self.args.target();
        let both = [Target::Leader, Target::Follower];
        let targets = if target == Target::Any {
            &both[..]
        } else {
            std::slice::from_ref(&target)
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

    /// The keys of all teams.
    fn keys(&self) -> Vec<String> {
        self.tenants.iter().map(|(_, key)| key.api_key.to_string()).collect()
    }
}
