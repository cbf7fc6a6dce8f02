//! The second part of the mode `deliver`: do bad URLs delay the deliveries to healthy ones? It measures the time from
//! the due time of a delivery to the start of its call at a steady, moderate rate: first with 100 healthy URLs, then
//! with 98 healthy ones, one that never answers and one that drips. The two set-ups alternate, so that a drift of the
//! machine affects both. The medians of their p99 values are compared, because a single stall of the machine can be
//! the whole p99 of one turn.

use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::Bench;
use crate::hooks::{self, AGENTS};
use crate::lane::Lane;
use crate::report::{Latency, Report, Row};
use crate::sink::{Arrival, Health, Sink};
use crate::traffic::{Shape, Source};

/// The pause between two sends of a team. All teams together send 400 messages a second, 4 to each URL.
const GAP: Duration = Duration::from_millis(25);
/// Sends to each ill URL before the load: enough to use up all calls that the URL may hold open.
const SICKENING: usize = 16;
/// Turns of each set-up.
const TURNS: usize = 4;
/// The time for the last arrivals.
const PATIENCE: Duration = Duration::from_secs(60);

const HEALTHY: fn(usize) -> Health = |_| Health::Healthy;
/// The first agents of the first two teams are ill.
const ILL: fn(usize) -> Health = |n| match n {
    0 => Health::Dead,
    AGENTS => Health::Dripping,
    _ => Health::Healthy,
};

/// Measures both set-ups in turn and returns a row for each, and one for their ratio.
pub async fn measure(bench: &Bench<'_>, run: u32, report: &mut dyn Report) -> anyhow::Result<()> {
    let (mut healthy, mut ill) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        healthy.push(one(bench, HEALTHY).await?);
        ill.push(one(bench, ILL).await?);
    }
    let percent = median_p99_ms(&ill) / median_p99_ms(&healthy) * 1e2;
    let (healthy, ill) = (healthy.concat(), ill.concat());
    let row = |peer: &str, samples: &[u64], note: &str| Row {
        peer: peer.to_owned(),
        metric: "webhook-start-latency",
        in_flight: 1,
        run,
        value: samples.len() as f64,
        unit: "samples",
        latency: Latency::of(samples),
        note: format!("{note}; from the due time to the call, 400 deliveries/s"),
    };
    let of_healthy = row("agentpost-deliver", &healthy, "100 healthy URLs");
    let of_ill = row(
        "agentpost-deliver-ill",
        &ill,
        "the 98 healthy URLs beside one that never answers and one that drips",
    );
    let note = format!("p99 beside two ill URLs, of p99 without them, medians of {TURNS} turns (goal 120 at most)");
    let ratio = Row {
        metric: "isolation-p99",
        value: percent,
        unit: "%",
        latency: Latency::NONE,
        note,
        ..of_healthy.clone()
    };
    for row in [of_healthy, of_ill, ratio] {
        report.row(row);
    }
    Ok(())
}

fn median_p99_ms(turns: &[Vec<u64>]) -> f64 {
    let mut p99s: Vec<f64> = turns.iter().map(|samples| Latency::of(samples).p99_ms).collect();
    p99s.sort_by(f64::total_cmp);
    (p99s[(p99s.len() - 1) / 2] + p99s[p99s.len() / 2]) / 2.0
}

/// Measures one turn. Each turn has its own sink: dropping it ends the calls that an ill URL still holds open.
async fn one(bench: &Bench<'_>, health: fn(usize) -> Health) -> anyhow::Result<Vec<u64>> {
    let sink = Sink::start().await?;
    hooks::register(bench, &sink, health).await?;
    let nodes = bench.nodes().await?;
    let started = std::time::Instant::now();
    let begin = Instant::now();
    let end = begin + bench.args.warm_up() + bench.args.duration();
    let from_ms = wall_ms() + bench.args.warm_up().as_millis() as u64;
    let mut running = JoinSet::new();
    for (team, lane) in hooks::lanes(bench, &nodes, Shape::Single)
        .await?
        .into_iter()
        .enumerate()
    {
        let source = Source::new(Shape::Single, bench.args.seed(), team as u32, started);
        let ill: Vec<bool> = (0..AGENTS)
            .map(|n| health(team * AGENTS + n) != Health::Healthy)
            .collect();
        running.spawn(drive(lane, source, ill, end));
    }
    let mut healthy = 0;
    while let Some(lane) = running.join_next().await {
        healthy += lane.context("a lane ended early")??;
    }
    let deadline = Instant::now() + PATIENCE;
    while sink.delivered() < healthy {
        let missing = healthy - sink.delivered();
        ensure!(
            Instant::now() < deadline,
            "{missing} deliveries did not come within {PATIENCE:?}"
        );
        sleep(Duration::from_millis(20)).await;
    }
    let counted = |arrival: &Arrival| (arrival.due_ms >= from_ms).then_some(arrival.start_latency_ns);
    let samples: Vec<u64> = sink.take().iter().filter_map(counted).collect();
    ensure!(!samples.is_empty(), "nothing was delivered");
    Ok(samples)
}

/// Sends to the agents of one team in turn and returns the number of messages to healthy URLs.
async fn drive(mut lane: Lane, mut source: Source, ill: Vec<bool>, end: Instant) -> anyhow::Result<u64> {
    let agents = hooks::agents();
    for agent in agents.iter().zip(&ill).filter_map(|(agent, ill)| ill.then_some(agent)) {
        for _ in 0..SICKENING {
            lane.post(source.for_agent(agent)).await?;
        }
    }
    let mut ticks = interval(GAP);
    // No burst makes up for a slow send.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut healthy = 0;
    for (agent, ill) in agents.iter().zip(&ill).cycle() {
        ticks.tick().await;
        if Instant::now() >= end {
            break;
        }
        lane.post(source.for_agent(agent)).await?;
        healthy += u64::from(!ill);
    }
    Ok(healthy)
}

fn wall_ms() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or_default()
}
