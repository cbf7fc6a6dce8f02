//! The mode `deliver`: webhook deliveries per second, and the log entries per delivery.
//!
//! The load keeps a backlog: it sends batches while fewer than [`BACKLOG`] deliveries wait. The dispatcher then always
//! has more deliveries than it may call at a time, so the figure is the dispatcher's own speed. A batch of 100 sends is
//! one log entry; it is subtracted, so that the entries of the dispatcher remain: claims, outcomes, ticks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::hooks::{self, AGENTS};
use crate::lane::Lane;
use crate::observe::Snapshot;
use crate::report::{Latency, Report, Row};
use crate::sink::{Health, Sink};
use crate::traffic::{BATCH, Shape, Source};
use crate::{Bench, isolation};

/// Deliveries that wait or are called: four times the calls that a node makes at a time.
const BACKLOG: u64 = 2_048;
/// The pause of a lane while the backlog is full.
const FULL: Duration = Duration::from_millis(1);
/// The pause between two looks at the number of deliveries.
const POLL: Duration = Duration::from_millis(20);
/// The time for the first delivery, and for the rest of the backlog after the load.
const PATIENCE: Duration = Duration::from_secs(180);

/// Runs both measurements and removes their webhooks.
pub async fn measure(bench: &Bench<'_>, run: u32, report: &mut dyn Report) -> anyhow::Result<()> {
    let measured = both(bench, run, report).await;
    let removed = hooks::remove(bench).await;
    measured.and(removed)
}

async fn both(bench: &Bench<'_>, run: u32, report: &mut dyn Report) -> anyhow::Result<()> {
    // The measurement at low load comes first: full load leaves RocksDB with compactions to do.
    isolation::measure(bench, run, report).await?;
    full_load(bench, run, report).await
}

/// Counters of the lanes.
#[derive(Default)]
struct Flow {
    /// Messages that were acknowledged or are in flight.
    sent: AtomicU64,
    /// Batches that were acknowledged, each one log entry.
    entries: AtomicU64,
    /// Whether the lanes are to stop.
    ended: AtomicBool,
}

/// All counters at one moment.
struct Reading {
    at: Instant,
    delivered: u64,
    sends: u64,
    index: u64,
}

async fn full_load(bench: &Bench<'_>, run: u32, report: &mut dyn Report) -> anyhow::Result<()> {
    let sink = Arc::new(Sink::start().await?);
    hooks::register(bench, &sink, |_| Health::Healthy).await?;
    let nodes = bench.nodes().await?;
    let clients = nodes.clients()?;
    let flow = Arc::new(Flow::default());
    let started = std::time::Instant::now();
    let from = Instant::now() + bench.args.warm_up();
    let mut running = JoinSet::new();
    for (number, lane) in (0..).zip(hooks::lanes(bench, &nodes, Shape::Batch).await?) {
        let source = Source::new(Shape::Batch, bench.args.seed(), number, started);
        running.spawn(drive(lane, source, flow.clone(), sink.clone()));
    }
    sleep_until(from).await;
    let (costs, first) = (Snapshot::take(&clients).await, read(bench, &flow, &sink).await?);
    sink.take();
    // The measurement begins here, however long a busy machine took for the first reading, and lasts until something
    // was delivered.
    sleep(bench.args.duration()).await;
    let deadline = Instant::now() + PATIENCE;
    while sink.delivered() == first.delivered && Instant::now() < deadline {
        sleep(POLL).await;
    }
    let (last, after) = (read(bench, &flow, &sink).await?, Snapshot::take(&clients).await);
    flow.ended.store(true, Ordering::Relaxed);
    let arrivals = sink.take();
    while let Some(lane) = running.join_next().await {
        lane.context("a lane ended early")??;
    }
    drained(&flow, &sink).await?;
    let (delivered, seconds) = (last.delivered - first.delivered, (last.at - first.at).as_secs_f64());
    ensure!(delivered > 0, "nothing was delivered");
    let latencies: Vec<u64> = arrivals.iter().map(|arrival| arrival.start_latency_ns).collect();
    let row = |metric, value, unit, note| Row {
        peer: "agentpost-deliver".to_owned(),
        metric,
        in_flight: BACKLOG as u32,
        run,
        value,
        unit,
        latency: Latency::of(&latencies),
        note,
    };
    let costs = after.note_since(&costs, delivered, seconds);
    let note = format!(
        "{} URLs of {} teams, 100 messages a request; latency from due, so in the backlog; repeated-calls={} {costs}",
        hooks::TEAMS * AGENTS,
        hooks::TEAMS,
        sink.repeated()
    );
    report.row(row(
        "webhook-deliveries",
        delivered as f64 / seconds,
        "deliveries/s",
        note,
    ));
    let (all, sends) = (last.index - first.index, last.sends - first.sends);
    let entries = all.saturating_sub(sends);
    let note = format!("dispatcher: {entries} entries for {delivered} deliveries; the sends themselves: {sends} more");
    let per_thousand = entries as f64 * 1e3 / delivered as f64;
    report.row(Row {
        latency: Latency::NONE,
        ..row("log-entries", per_thousand, "per 1,000", note)
    });
    Ok(())
}

async fn drive(mut lane: Lane, mut source: Source, flow: Arc<Flow>, sink: Arc<Sink>) -> anyhow::Result<()> {
    let agents = hooks::agents();
    while !flow.ended.load(Ordering::Relaxed) {
        let waiting = flow.sent.load(Ordering::Relaxed).saturating_sub(sink.delivered());
        if waiting + BATCH as u64 > BACKLOG {
            sleep(FULL).await;
            continue;
        }
        flow.sent.fetch_add(BATCH as u64, Ordering::Relaxed);
        let answer = lane.post(source.batch_to(&agents)).await?;
        let acknowledged = Shape::Batch.acknowledged(&answer);
        ensure!(
            acknowledged == BATCH,
            "only {acknowledged} of {BATCH} messages of a batch were accepted"
        );
        flow.entries.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

async fn read(bench: &Bench<'_>, flow: &Flow, sink: &Sink) -> anyhow::Result<Reading> {
    let cluster = bench
        .operator
        .cluster()
        .await
        .context("cannot ask for the last log index")?;
    let index = cluster.nodes.iter().filter_map(|node| node.applied_index).max();
    Ok(Reading {
        at: Instant::now(),
        delivered: sink.delivered(),
        sends: flow.entries.load(Ordering::Relaxed),
        index: index.context("no node reports an applied log index")?,
    })
}

/// Waits until every message is delivered. A delivery that never comes makes the measurement fail.
async fn drained(flow: &Flow, sink: &Sink) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let missing = flow.sent.load(Ordering::Relaxed).saturating_sub(sink.delivered());
        if missing == 0 {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "{missing} deliveries did not come within {PATIENCE:?}"
        );
        sleep(POLL).await;
    }
}
