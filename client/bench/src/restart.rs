//! The mode `restart`: a follower is killed and started again; the time from its start to `/health` and to `/readyz`.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::Bench;
use crate::control::{Processes, answers};
use crate::report::{Latency, Report, Row};

/// Restarts; the figures are their medians.
const RESTARTS: usize = 3;
/// The time between the end of a process and its start.
const DOWN: Duration = Duration::from_millis(200);

pub async fn measure(bench: &Bench<'_>, run: u32, report: &mut dyn Report) -> anyhow::Result<()> {
    let mut processes = Processes::new(bench);
    let (mut health, mut ready) = (Vec::new(), Vec::new());
    for _ in 0..RESTARTS {
        let nodes = bench.nodes().await?;
        let follower = nodes.follower()?;
        processes.kill(follower.id).await?;
        sleep(DOWN).await;
        let began = Instant::now();
        processes.start(follower.id).await?;
        health.push(answers(&follower.base, "/health", began).await?);
        ready.push(answers(&follower.base, "/readyz", began).await?);
    }
    let disk = crate::disk::used_mib(bench.args.data()).await;
    let mib = disk.iter().map(|(_, mib)| mib).max();
    let held = mib.map_or_else(String::new, |mib| format!("; the largest node has {mib} MiB on disk"));
    for (metric, times) in [("restart-to-health", &mut health), ("restart-to-ready", &mut ready)] {
        times.sort_unstable();
        let listed: Vec<String> = times
            .iter()
            .map(|time| format!("{:.0}", time.as_secs_f64() * 1e3))
            .collect();
        report.row(Row {
            peer: "agentpost".to_owned(),
            metric,
            in_flight: 0,
            run,
            value: times[RESTARTS / 2].as_secs_f64() * 1e3,
            unit: "ms",
            latency: Latency::NONE,
            note: format!("a follower after kill -9, median of {} ms{held}", listed.join(", ")),
        });
    }
    Ok(())
}
