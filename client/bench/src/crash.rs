//! The modes `crash` and `failover` kill the leader under load and measure the longest time without an
//! acknowledgement. Both check that every acknowledged message is still stored. `failover` starts the node again and
//! kills the next leader.

use std::time::Duration;

use anyhow::Context;
use tokio::time::{Instant, sleep};

use crate::Bench;
use crate::control::{Processes, answers};
use crate::nodes::Nodes;
use crate::outage::{Acked, BEFORE_KILL, Traffic, ensure_kept, longest_gap, missing_and_doubled};
use crate::report::{Latency, Report, Row};

/// The time for an acknowledgement after a kill, and for a leader.
const PATIENCE: Duration = Duration::from_secs(60);
/// The load between the moment at which all nodes are ready and the next kill.
const BETWEEN: Duration = Duration::from_secs(1);

/// Loads all nodes for three times the duration and kills the leader after the first third.
pub async fn measure(bench: &Bench<'_>, run: u32, report: &mut dyn Report) -> anyhow::Result<()> {
    let nodes = bench.nodes().await?;
    let leader = nodes.leader().id;
    let lanes = bench.args.in_flight(256);
    let traffic = Traffic::start(bench, &nodes, lanes, run)?;
    sleep(bench.args.duration()).await;
    Processes::new(bench).kill(leader).await?;
    let killed = Instant::now();
    sleep(bench.args.duration() * 2).await;
    let seen = traffic.end().await?;
    let times = |acked: &[Acked]| acked.iter().map(|ack| ack.at).collect::<Vec<_>>();
    let until = Instant::now();
    let stalls = seen.lanes.iter().map(|lane| longest_gap(times(lane), killed, until));
    let stall = stalls.max().unwrap_or_default();
    let window = longest_gap(seen.lanes.iter().flat_map(|lane| times(lane)).collect(), killed, until);
    let kept = missing_and_doubled(bench, &nodes, &seen).await?;
    report.row(Row {
        peer: "agentpost-http".to_owned(),
        metric: "crash-no-ack-window",
        in_flight: lanes,
        run,
        value: window.as_secs_f64() * 1e3,
        unit: "ms",
        latency: Latency::NONE,
        note: format!(
            "killed=node{leader}(leader) worst-lane-stall-ms={} acked={} lost={} doubled={} failed-sends={}",
            stall.as_millis(),
            seen.lanes.iter().map(Vec::len).sum::<usize>(),
            kept.0,
            kept.1,
            seen.failed
        ),
    });
    ensure_kept(kept)
}

/// Kills `--kills` leaders one after the other. The row has the median as its value, and median and p99 in the columns
/// of the latencies.
pub async fn failover(bench: &Bench<'_>, run: u32, report: &mut dyn Report) -> anyhow::Result<()> {
    let nodes = bench.nodes().await?;
    let lanes = bench.args.in_flight(64);
    let mut traffic = Traffic::start(bench, &nodes, lanes, run)?;
    let mut processes = Processes::new(bench);
    let mut kills = Vec::new();
    for number in 1..=bench.args.kills() {
        traffic.acknowledged_after(Instant::now(), PATIENCE).await?;
        sleep(BETWEEN).await;
        let leader = leader(bench).await?;
        processes.kill(leader.0).await?;
        let killed = Instant::now();
        kills.push(killed);
        traffic.acknowledged_after(killed + BEFORE_KILL, PATIENCE).await?;
        report.progress(&format!("  kill {number} of {}", bench.args.kills()));
        processes.start(leader.0).await?;
        answers(&leader.1, "/readyz", Instant::now()).await?;
    }
    sleep(BETWEEN).await;
    let seen = traffic.end().await?;
    let gaps = gaps(seen.lanes.iter().flatten().map(|ack| ack.at).collect(), &kills);
    let latencies: Vec<u64> = gaps
        .iter()
        .map(|gap| u64::try_from(gap.as_nanos()).unwrap_or(u64::MAX))
        .collect();
    let latency = Latency::of(&latencies);
    let kept = missing_and_doubled(bench, &nodes, &seen).await?;
    let worst = gaps.iter().max().copied().unwrap_or_default();
    report.row(Row {
        peer: "agentpost-http".to_owned(),
        metric: "failover-no-ack-window",
        in_flight: lanes,
        run,
        value: latency.p50_ms,
        unit: "ms",
        latency,
        note: format!(
            "median of {} kills of the leader, p50 and p99 of the same; worst-ms={} acked={} lost={} doubled={} failed-sends={}",
            gaps.len(),
            worst.as_millis(),
            seen.lanes.iter().map(Vec::len).sum::<usize>(),
            kept.0,
            kept.1,
            seen.failed
        ),
    });
    ensure_kept(kept)
}

/// The time without an acknowledgement after each kill, which ends shortly before the next one.
fn gaps(times: Vec<Instant>, kills: &[Instant]) -> Vec<Duration> {
    let next = kills
        .iter()
        .skip(1)
        .map(|&killed| killed.checked_sub(BEFORE_KILL).unwrap_or(killed));
    let end = times.iter().max().map(|&last| last + Duration::from_nanos(1));
    let until = next.chain(end);
    kills
        .iter()
        .zip(until)
        .map(|(&killed, until)| longest_gap(times.clone(), killed, until))
        .collect()
}

/// The leader's id and base URL, as soon as there is one.
async fn leader(bench: &Bench<'_>) -> anyhow::Result<(u64, String)> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Nodes::discover(bench.operator, bench.urls).await {
            Ok(nodes) => return Ok((nodes.leader().id, nodes.leader().base.clone())),
            Err(error) if Instant::now() > deadline => return Err(error).context("no leader"),
            Err(_) => sleep(Duration::from_millis(20)).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kill_has_its_own_gap() {
        let begun = Instant::now();
        let at = |ms: u64| begun + Duration::from_millis(ms);
        let times: Vec<Instant> = [0, 900, 1_500, 1_600, 5_900, 6_700, 6_800].map(at).to_vec();
        let kills = [at(1_000), at(6_000)];
        assert_eq!(gaps(times, &kills), [600, 800].map(Duration::from_millis));
    }
}
