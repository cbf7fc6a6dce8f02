//! The mode `join`: an empty node joins a cluster under a steady load. It measures the time until the node is a voter, and
//! the rate of the load meanwhile in percent of the rate before.

use std::time::Duration;

use anyhow::{Context, bail};
use tokio::time::{Instant, sleep};

use crate::Bench;
use crate::control::Processes;
use crate::disk::used_mib;
use crate::load::{Lanes, Load, row_of};
use crate::meter::{Meter, Tally};
use crate::report::{Latency, Report, Row};
use crate::traffic::Shape;

/// The time for the node to become a voter.
const PATIENCE: Duration = Duration::from_secs(3_600);
/// The pause between two attempts to make it a voter.
const ASK_AGAIN: Duration = Duration::from_millis(250);
/// The length of a step of the load.
const STEP: Duration = Duration::from_secs(1);

pub async fn measure(bench: &Bench<'_>, run: u32, report: &mut dyn Report) -> anyhow::Result<()> {
    let seconds = bench.args.seconds(10) as usize;
    let lanes = bench.args.in_flight(64);
    let load = Load {
        gap: Duration::from_secs_f64(f64::from(lanes) / bench.args.rate() as f64),
        ..Load::new(bench, "join", Shape::Single, lanes)
    };
    let nodes = bench.nodes().await?;
    let disk = used_mib(bench.args.data()).await.into_iter().map(|(_, mib)| mib).max();
    let driven = Lanes::dial(&nodes, &load, bench.args.seed() + u64::from(run)).await?;
    let steps = seconds + PATIENCE.as_secs() as usize;
    let meter = Meter::start(bench.args.warm_up(), STEP, steps);
    let mut running = driven.run(&meter);
    meter.reached(seconds).await;
    let began = Instant::now();
    let joined = join(bench).await;
    let took = began.elapsed();
    // The steps that have ended, of one second each; a join of less than a second has the step in which it ended.
    let during = (took.as_secs() as usize).max(1);
    meter.reached(seconds + during).await;
    meter.stop();
    while let Some(lane) = running.join_next().await {
        lane.context("a lane ended early")?;
    }
    let node = joined?;
    let sum = |steps: std::ops::Range<usize>| {
        let mut tally = Tally::default();
        for step in steps {
            tally.add(meter.take(step));
        }
        tally
    };
    let (before, during_s) = (sum(0..seconds), during as f64);
    let meanwhile = sum(seconds..seconds + during);
    let held = disk.map_or_else(String::new, |mib| format!(" of {mib} MiB"));
    let mut row = row_of(
        &load,
        run,
        &before,
        seconds as f64,
        format!("before the join{}", before.complaint()),
    );
    let percent = meanwhile.acknowledged as f64 / during_s / row.value * 100.0;
    report.row(row.clone());
    let note = format!("while node {node} joined{}", meanwhile.complaint());
    row = row_of(&load, run, &meanwhile, during_s, note);
    row.peer.push_str("-during");
    report.row(row.clone());
    let of = |metric, value, unit, note: String| Row {
        peer: "agentpost-join".to_owned(),
        metric,
        value,
        unit,
        latency: Latency::NONE,
        note,
        ..row.clone()
    };
    let note = format!("an empty node joined a state{held} under {} sends/s", bench.args.rate());
    report.row(of("join-to-voter", took.as_secs_f64() * 1e3, "ms", note));
    report.row(of(
        "rate",
        percent,
        "%",
        "the rate meanwhile in percent of the rate before".to_owned(),
    ));
    Ok(())
}

/// Adds a node, starts it and makes it a voter. Returns its id.
async fn join(bench: &Bench<'_>) -> anyhow::Result<u64> {
    let (peer, url) = bench.args.place().context("no place for the new node")?;
    let added = bench
        .operator
        .add_member(peer, url)
        .await
        .context("cannot add a node")?;
    Processes::new(bench).start(added.id).await?;
    let deadline = Instant::now() + PATIENCE;
    // It is refused while the node lags.
    while let Err(error) = bench.operator.promote_member(added.id).await {
        if Instant::now() > deadline {
            bail!("node {} is no voter after {PATIENCE:?}: {error}", added.id);
        }
        sleep(ASK_AGAIN).await;
    }
    Ok(added.id)
}
