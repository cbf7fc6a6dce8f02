//! Modes that bring a cluster into the state of an old one and compare it with a young one: `full-inbox`, `idle-teams`,
//! `busy-teams`, `agents`, and `keyed`, whose nodes age by themselves.

use std::sync::Arc;
use std::time::Duration;

use agentpost::api::admin::CreatedKey;
use anyhow::{Context, ensure};
use hyper::header::HeaderValue;
use tokio::time::sleep;

use crate::args::Size;
use crate::fill::fill;
use crate::lane::{Lane, Template};
use crate::load::{Lanes, Load, measure, row_of};
use crate::meter::Meter;
use crate::observe::Snapshot;
use crate::report::{Latency, Report, Row};
use crate::traffic::{INBOXES, Recipients, SENDER, Shape, Source};
use crate::turns::compare;
use crate::{Bench, fresh_number, tenants};

/// Inboxes that are full.
const FULL: u64 = 4;
/// Messages to an empty inbox before the next one takes its place.
const STILL_EMPTY: u64 = 1_000;
/// The time between two single sends of the team beside.
const BESIDE: Duration = Duration::from_millis(20);
/// The smaller number of busy teams.
const FEW_TEAMS: usize = 100;
/// The time between two rounds of the sweeper, and some more.
const SWEEP: u64 = 15;
/// The pause for a node to come to rest.
const REST: Duration = Duration::from_secs(5);

/// Batches to full inboxes in turns with batches to empty ones; single sends of another team meanwhile.
pub async fn full_inbox(bench: &Bench<'_>, run: u32, report: &mut dyn Report) -> anyhow::Result<()> {
    let entries = bench.args.size(Size::FullInbox);
    let prefix = format!("full-{run}-");
    let to = Recipients::in_turn(&prefix, entries);
    fill(bench, &bench.keys()[..1], to, entries * FULL, "full-inbox", report).await?;
    let in_flight = bench.args.in_flight(16);
    let of = |name: &str, to| Load {
        to,
        ..Load::new(bench, name, Shape::Batch, in_flight)
    };
    let empty = of(
        "inbox-empty",
        Recipients::in_turn(&format!("empty-{:x}-", fresh_number()), STILL_EMPTY),
    );
    let full = of("inbox-full", Recipients::random(&prefix, FULL));
    compare(bench, &empty, &full, run, report).await?;
    for load in [&empty, &full] {
        report.row(beside(bench, load, run).await?);
    }
    Ok(())
}

/// Measures single sends of another team while a load goes on.
async fn beside(bench: &Bench<'_>, load: &Load, run: u32) -> anyhow::Result<Row> {
    let (_, key) = tenants::create(bench.operator).await?;
    let single = Load {
        keys: vec![key.api_key.to_string()],
        gap: BESIDE,
        ..Load::new(bench, format!("beside-{}", load.name), Shape::Single, 1)
    };
    let nodes = bench.nodes().await?;
    let seed = bench.args.seed() + u64::from(run);
    let (background, probe) = (
        Lanes::dial(&nodes, load, seed).await?,
        Lanes::dial(&nodes, &single, seed).await?,
    );
    let duration = bench.args.duration();
    let background_meter = Meter::start(bench.args.warm_up(), duration, 1);
    let meter = Meter::start(bench.args.warm_up(), duration, 1);
    let (mut one, mut other) = (background.run(&background_meter), probe.run(&meter));
    while let Some(lane) = one.join_next().await {
        lane.context("a lane ended early")?;
    }
    while let Some(lane) = other.join_next().await {
        lane.context("a lane ended early")?;
    }
    tenants::revoke(bench.operator, std::slice::from_ref(&key)).await?;
    let (tally, seconds) = (meter.take(0), duration.as_secs_f64());
    let rate = background_meter.take(0).acknowledged as f64 / seconds;
    let note = format!(
        "single sends of another team, one every {} ms, beside {rate:.0} msg/s of agentpost-{}{}",
        BESIDE.as_millis(),
        load.name,
        tally.complaint()
    );
    Ok(row_of(&single, run, &tally, seconds, note))
}

/// Teams that have one message each and do nothing: single sends before and after, and what an idle cluster does.
pub async fn idle_teams(bench: &Bench<'_>, run: u32, report: &mut dyn Report) -> anyhow::Result<()> {
    let in_flight = bench.args.in_flight(16);
    let sends = |name: &str| Load::new(bench, name, Shape::Single, in_flight);
    let seconds = bench.args.seconds(600);
    let active = seconds.min(30);
    let before = measure(bench, &sends("teams-none"), run, active).await?;
    let idle_before = idle(bench, seconds.min(60)).await?;
    let count = bench.args.size(Size::IdleTeams);
    let keys = tenants::create_many(bench.operator, count, report).await?;
    let settled = settled(bench, keys, count, seconds, report).await;
    let idle_after = settled?;
    let after = measure(bench, &sends("teams-idle"), run, active).await?;
    let row = |metric, value, unit, note: String| Row {
        peer: "agentpost-teams-idle".to_owned(),
        metric,
        in_flight: 0,
        run,
        value,
        unit,
        latency: Latency::NONE,
        note,
    };
    let elections = format!("in {seconds} s without a send, with {count} teams");
    report.row(row("elections", idle_after.elections as f64, "elections", elections));
    let cpu = format!(
        "of a core, the busiest node without a send; {:.2} % without the teams",
        idle_before.cpu_percent
    );
    report.row(row("idle-cpu", idle_after.cpu_percent, "%", cpu));
    let p99 = after.latency.p99_ms / before.latency.p99_ms * 100.0;
    let note = format!("the p99 of single sends in percent of that before the {count} teams, {in_flight} in flight");
    report.row(before);
    report.row(after);
    report.row(row("p99", p99, "%", note));
    Ok(())
}

/// Gives each team a message, then waits.
async fn settled(
    bench: &Bench<'_>,
    keys: Vec<CreatedKey>,
    count: u64,
    seconds: u64,
    report: &mut dyn Report,
) -> anyhow::Result<Idle> {
    let one_each = one_each(bench, &keys).await;
    report.progress(&format!("  {count} idle teams for {seconds} s"));
    let idle = match one_each {
        Ok(()) => idle(bench, seconds).await,
        Err(error) => Err(error),
    };
    // The keys are revoked after a failure too.
    tenants::revoke(bench.operator, &keys).await?;
    idle
}

/// Sends one message for each team.
async fn one_each(bench: &Bench<'_>, keys: &[CreatedKey]) -> anyhow::Result<()> {
    let nodes = bench.nodes().await?;
    let address = &nodes.leader().address;
    let mut source = Source::new(Shape::Single, bench.args.seed(), 0, std::time::Instant::now());
    let mut lane: Option<Lane> = None;
    for key in keys {
        let template = Arc::new(Template::new(Shape::Single.path(), &key.api_key, SENDER)?);
        let mut open = match lane.take() {
            Some(open) => open,
            None => Lane::dial(address, &template).await?,
        };
        open.use_template(&template);
        open.post(source.next().0).await?;
        lane = Some(open);
    }
    Ok(())
}

/// What a cluster without clients does.
struct Idle {
    elections: u64,
    cpu_percent: f64,
}

async fn idle(bench: &Bench<'_>, seconds: u64) -> anyhow::Result<Idle> {
    sleep(REST).await;
    let clients = bench.nodes().await?.clients()?;
    let before = Snapshot::take(&clients).await;
    sleep(Duration::from_secs(seconds)).await;
    let after = Snapshot::take(&clients).await;
    let cpu = after
        .cpu_since(&before)
        .into_iter()
        .map(|(_, cpu)| cpu / seconds as f64 * 100.0);
    Ok(Idle {
        elections: after.elections_since(&before).context("no node reports its term")?,
        cpu_percent: cpu.reduce(f64::max).context("no node reports its CPU time")?,
    })
}

/// Single sends of many teams in turns with those of few.
pub async fn busy_teams(bench: &Bench<'_>, run: u32, report: &mut dyn Report) -> anyhow::Result<()> {
    let count = bench.args.size(Size::BusyTeams);
    let created = tenants::create_many(bench.operator, count, report).await?;
    let keys: Vec<String> = created.iter().map(|key| key.api_key.to_string()).collect();
    let of = |count: usize| Load {
        keys: keys[..count].to_vec(),
        ..Load::new(bench, format!("teams-{count}"), Shape::Single, bench.args.in_flight(64))
    };
    let few = FEW_TEAMS.min(keys.len() / 2).max(1);
    let compared = compare(bench, &of(few), &of(keys.len()), run, report).await;
    let revoked = tenants::revoke(bench.operator, &created).await;
    compared.and(revoked)
}

/// Single sends to a team of many agents in turns with those to a thousand of them.
pub async fn agents(bench: &Bench<'_>, run: u32, report: &mut dyn Report) -> anyhow::Result<()> {
    let count = bench.args.size(Size::Agents);
    let to = Recipients::in_turn("agent-", 1);
    fill(bench, &bench.keys()[..1], to, count, "agents", report).await?;
    let few = INBOXES.min(count / 2).max(1);
    let of = |count| Load {
        to: Recipients::random("agent-", count),
        ..Load::new(
            bench,
            format!("agents-{count}"),
            Shape::Single,
            bench.args.in_flight(64),
        )
    };
    compare(bench, &of(few), &of(count), run, report).await
}

/// Sends with an idempotency key each. If a day of cluster time takes some seconds only, the load first runs for a day,
/// and the rows of the day before are swept during the measurement; otherwise nothing is swept.
pub async fn keyed(bench: &Bench<'_>, shape: Shape, run: u32, report: &mut dyn Report) -> anyhow::Result<()> {
    let (name, in_flight) = match shape {
        Shape::Single => ("keyed", 64),
        Shape::Batch => ("keyed-batch", 16),
    };
    let load = Load {
        keyed: true,
        ..Load::new(bench, name, shape, bench.args.in_flight(in_flight))
    };
    let (day, seconds) = (bench.args.size(Size::Day), bench.args.seconds(60));
    let old = Old::send(bench).await?;
    let nodes = bench.nodes().await?;
    let lanes = Lanes::dial(&nodes, &load, bench.args.seed() + u64::from(run)).await?;
    let clients = nodes.clients()?;
    let warm_up = match day {
        0 => bench.args.warm_up(),
        day => Duration::from_secs(day + SWEEP),
    };
    let first = Snapshot::take(&clients).await;
    let meter = Meter::start(warm_up, Duration::from_secs(seconds), 1);
    let mut running = lanes.run(&meter);
    report.progress(&format!("  {name}: the measurement begins in {} s", warm_up.as_secs()));
    meter.reached(0).await;
    let before = Snapshot::take(&clients).await;
    meter.reached(1).await;
    let after = Snapshot::take(&clients).await;
    while let Some(lane) = running.join_next().await {
        lane.context("a lane ended early")?;
    }
    let is_forgotten = old.is_forgotten(bench).await?;
    ensure!(
        day == 0 || is_forgotten,
        "an idempotency key is still known after {day} s: the nodes need the feature `failpoints` and \
         AGENTPOST_CLUSTER_TIME_SPEED={}",
        86_400 / day.max(1)
    );
    let tally = meter.take(0);
    // A short measurement may lie between two rounds of the sweeper.
    ensure!(
        day == 0 || after.swept_since(&first) != Some(0),
        "no aged row was swept"
    );
    let swept = after.swept_since(&before).map_or_else(
        || "unknown".to_owned(),
        |rows| format!("{:.0}", rows as f64 / seconds as f64),
    );
    let costs = after.note_since(&before, tally.acknowledged, seconds as f64);
    let note = format!("swept-rows/s={swept} {costs}{}", tally.complaint());
    report.row(row_of(&load, run, &tally, seconds as f64, note));
    Ok(())
}

/// A send whose idempotency key is forgotten after a day.
struct Old {
    key: HeaderValue,
    id: serde_json::Value,
}

impl Old {
    async fn send(bench: &Bench<'_>) -> anyhow::Result<Self> {
        let key = HeaderValue::try_from(format!("old-{:x}", fresh_number()))?;
        let id = Self::post(bench, &key).await?;
        Ok(Old { key, id })
    }

    /// Whether the same send is a new message now.
    async fn is_forgotten(&self, bench: &Bench<'_>) -> anyhow::Result<bool> {
        Ok(Self::post(bench, &self.key).await? != self.id)
    }

    /// Sends the message and returns its id.
    async fn post(bench: &Bench<'_>, key: &HeaderValue) -> anyhow::Result<serde_json::Value> {
        let nodes = bench.nodes().await?;
        let template = Arc::new(Template::new(Shape::Single.path(), bench.key, SENDER)?);
        let mut lane = Lane::dial(&nodes.leader().address, &template).await?;
        let body = serde_json::json!({ "toAgentId": "old", "type": "bench", "body": "old" }).to_string();
        let answer = lane.post_keyed(body.into(), Some(key.clone())).await?;
        let answer: serde_json::Value = serde_json::from_slice(&answer)?;
        Ok(answer["messageId"].clone())
    }
}
