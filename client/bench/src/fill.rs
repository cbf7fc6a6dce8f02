//! Sends a given number of messages as fast as possible: what a cluster holds before a measurement begins.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, timeout};

use crate::Bench;
use crate::args::Target;
use crate::lane::{Lane, Template};
use crate::report::{Latency, Report, Row};
use crate::traffic::{BATCH, INBOXES, Recipients, SENDER, Shape, Source};

/// Batches in flight at a time.
const LANES: usize = 16;
/// A batch without an answer for this long is sent again.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause after a failure.
const AFTER_FAILURE: Duration = Duration::from_millis(100);
/// Failures of one batch before the filling gives up.
const ATTEMPTS: u32 = 300;
/// The time between two reports of progress.
const PROGRESS: Duration = Duration::from_secs(2);

/// Sends `--preload` messages, spread over the teams of the benchmark and a thousand inboxes of each.
pub async fn preload(bench: &Bench<'_>, report: &mut dyn Report) -> anyhow::Result<()> {
    let count = bench.args.preload();
    if count == 0 {
        return Ok(());
    }
    let keys: Vec<String> = bench.tenants.iter().map(|(_, key)| key.api_key.to_string()).collect();
    let teams = keys.len();
    let began = Instant::now();
    fill(
        bench,
        &keys,
        Recipients::random("preload-", INBOXES),
        count,
        "preload",
        report,
    )
    .await?;
    report.row(Row {
        peer: "agentpost-preload".to_owned(),
        metric: "acked-writes",
        in_flight: LANES as u32,
        run: 1,
        value: count as f64 / began.elapsed().as_secs_f64(),
        unit: "msg/s",
        latency: Latency::NONE,
        note: format!("{count} messages to {INBOXES} inboxes of each of {teams} teams, 100 a request"),
    });
    Ok(())
}

/// Sends at least `count` messages in batches. Each lane sends for one team after the other.
pub async fn fill(
    bench: &Bench<'_>,
    keys: &[String],
    to: Recipients,
    count: u64,
    what: &str,
    report: &mut dyn Report,
) -> anyhow::Result<()> {
    let nodes = bench.nodes().await?;
    let addresses = nodes.addresses(Target::Any)?;
    let templates = keys
        .iter()
        .map(|key| anyhow::Ok(Arc::new(Template::new(Shape::Batch.path(), key, SENDER)?)));
    let templates: Vec<Arc<Template>> = templates.collect::<Result<_, _>>()?;
    let batches = count.div_ceil(BATCH as u64);
    let (left, done) = (Arc::new(AtomicU64::new(batches)), Arc::new(AtomicU64::new(0)));
    let started = std::time::Instant::now();
    let mut running = JoinSet::new();
    for number in 0..LANES {
        let filler = Filler {
            address: addresses[number % addresses.len()].clone(),
            templates: templates.clone(),
            source: Source::new(Shape::Batch, bench.args.seed(), number as u32, started).to(to.clone()),
            left: left.clone(),
            done: done.clone(),
        };
        running.spawn(filler.run(number));
    }
    let mut ticks = interval(PROGRESS);
    loop {
        tokio::select! {
            ended = running.join_next() => match ended {
                Some(lane) => lane.context("a lane ended early")??,
                None => return Ok(()),
            },
            _ = ticks.tick() => {
                let sent = done.load(Ordering::Relaxed) * BATCH as u64;
                report.progress(&format!("  {what}: {sent} of {count} messages"));
            }
        }
    }
}

struct Filler {
    address: String,
    templates: Vec<Arc<Template>>,
    source: Source,
    /// Batches that no lane has taken.
    left: Arc<AtomicU64>,
    done: Arc<AtomicU64>,
}

impl Filler {
    async fn run(mut self, number: usize) -> anyhow::Result<()> {
        let mut lane = None;
        let mut turn = number;
        let take = |left: u64| left.checked_sub(1);
        while self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .is_ok()
        {
            let template = self.templates[turn % self.templates.len()].clone();
            turn += 1;
            self.batch(&mut lane, &template).await?;
            self.done.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Sends a batch until it is acknowledged. A repeat after an unknown outcome may store it twice, which does no harm
    /// here.
    async fn batch(&mut self, lane: &mut Option<Lane>, template: &Arc<Template>) -> anyhow::Result<()> {
        let (request, _) = self.source.next();
        let mut last = String::new();
        for _ in 0..ATTEMPTS {
            let sent = timeout(SEND_TIMEOUT, async {
                if lane.is_none() {
                    *lane = Some(Lane::dial(&self.address, template).await?);
                }
                let open = lane.as_mut().context("connected above")?;
                open.use_template(template);
                open.post(request.clone()).await
            });
            last = match sent.await {
                Ok(Ok(answer)) if Shape::Batch.acknowledged(&answer) == BATCH => return Ok(()),
                Ok(Ok(_)) => "a 200 that does not acknowledge every message".to_owned(),
                Ok(Err(error)) => format!("{error:#}"),
                Err(_) => "no answer in time".to_owned(),
            };
            *lane = None;
            sleep(AFTER_FAILURE).await;
        }
        bail!("a batch failed {ATTEMPTS} times, the last time with: {last}")
    }
}
