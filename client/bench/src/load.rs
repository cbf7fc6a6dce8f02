//! The modes `http` and `batch`: a closed loop of sends.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use hdrhistogram::Histogram;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::lane::{Lane, Template};
use crate::observe::Snapshot;
use crate::report::{Latency, Row};
use crate::traffic::{SENDER, Shape, Source};
use crate::{Bench, Target};

/// A send without an answer for this long is an error.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause before a lane that failed connects again.
const AFTER_FAILURE: Duration = Duration::from_millis(20);

/// Only answers in this interval count.
#[derive(Clone, Copy)]
struct Window {
    from: Instant,
    to: Instant,
}

/// Counters of one or more lanes.
#[derive(Default)]
struct Tally {
    latencies_ns: Vec<u64>,
    acknowledged: u64,
    errors: u64,
    first_error: Option<String>,
}

impl Tally {
    fn add(&mut self, other: Tally) {
        self.latencies_ns.extend(other.latencies_ns);
        self.acknowledged += other.acknowledged;
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
    }

    fn failed(&mut self, error: impl std::fmt::Display) {
        self.errors += 1;
        self.first_error.get_or_insert_with(|| error.to_string());
    }
}

/// Loads the target with `in_flight` lanes and returns the acknowledged messages per second.
pub async fn measure(bench: &Bench<'_>, shape: Shape, target: Target, in_flight: u32, run: u32) -> anyhow::Result<Row> {
    let nodes = bench.nodes().await?;
    let addresses = nodes.addresses(target)?;
    let template = Arc::new(Template::new(shape.path(), bench.key, SENDER)?);
    let started = std::time::Instant::now();
    let mut lanes = Vec::new();
    for number in 0..in_flight {
        let seed = bench.args.seed + u64::from(run);
        let source = Source::new(shape, seed, number, started);
        lanes.push(Driver::new(&addresses, number as usize, in_flight as usize, &template, source).await?);
    }
    let clients = nodes.clients()?;
    let from = Instant::now() + Duration::from_secs(bench.args.warm_up);
    let window = Window {
        from,
        to: from + bench.duration(),
    };
    let mut running = JoinSet::new();
    for lane in lanes {
        running.spawn(lane.drive(window));
    }
    sleep_until(window.from).await;
    let before = Snapshot::take(&clients).await;
    sleep_until(window.to).await;
    let after = Snapshot::take(&clients).await;
    let mut tally = Tally::default();
    while let Some(lane) = running.join_next().await {
        tally.add(lane.context("a lane ended early")?);
    }
    let seconds = bench.duration().as_secs_f64();
    let mut note = after.note_since(&before, tally.acknowledged, seconds);
    if let Some(error) = &tally.first_error {
        note.push_str(&format!(" errors={} first: {error}", tally.errors));
    }
    let name = if shape == Shape::Batch { "batch" } else { "http" };
    Ok(Row {
        peer: format!("agentpost-{name}{}", target.suffix()),
        metric: "acked-writes",
        in_flight,
        run,
        value: tally.acknowledged as f64 / seconds,
        unit: "msg/s",
        latency: Latency::of(&tally.latencies_ns),
        note,
    })
}

/// A lane and its requests. With fewer lanes than nodes, a lane sends to several nodes in turn, so that every node gets
/// its share of the load.
struct Driver {
    addresses: Vec<String>,
    lanes: Vec<Option<Lane>>,
    turn: usize,
    template: Arc<Template>,
    source: Source,
    shape: Shape,
}

impl Driver {
    async fn new(
        addresses: &[String],
        number: usize,
        of: usize,
        template: &Arc<Template>,
        source: Source,
    ) -> anyhow::Result<Self> {
        let own: Vec<String> = if of < addresses.len() {
            addresses
                .iter()
                .cycle()
                .skip(number)
                .take(addresses.len())
                .cloned()
                .collect()
        } else {
            vec![addresses[number % addresses.len()].clone()]
        };
        let mut lanes = Vec::new();
        for address in &own {
            lanes.push(Some(Lane::dial(address, template).await?));
        }
        let shape = source.shape();
        Ok(Driver {
            addresses: own,
            lanes,
            turn: 0,
            template: template.clone(),
            source,
            shape,
        })
    }

    async fn drive(mut self, window: Window) -> Tally {
        let mut tally = Tally {
            latencies_ns: Vec::with_capacity(1 << 14),
            ..Tally::default()
        };
        loop {
            let begun = Instant::now();
            if begun >= window.to {
                return tally;
            }
            let sent = timeout(SEND_TIMEOUT, self.send()).await;
            let ended = Instant::now();
            match sent {
                Ok(Ok(acknowledged)) => {
                    if ended >= window.from && ended < window.to {
                        tally
                            .latencies_ns
                            .push(u64::try_from((ended - begun).as_nanos()).unwrap_or(u64::MAX));
                        tally.acknowledged += acknowledged as u64;
                    }
                    if acknowledged < self.shape.expected() {
                        tally.failed("a 200 that does not acknowledge every message");
                    }
                    self.turn = (self.turn + 1) % self.lanes.len();
                }
                Ok(Err(error)) => {
                    tally.failed(format!("{error:#}"));
                    self.reconnect().await;
                }
                Err(_) => {
                    tally.failed("no answer in time");
                    self.reconnect().await;
                }
            }
        }
    }

    async fn send(&mut self) -> anyhow::Result<usize> {
        let (request, _) = self.source.next();
        let lane = self.lanes[self.turn].as_mut().context("not connected")?;
        Ok(self.shape.acknowledged(&lane.post(request).await?))
    }

    async fn reconnect(&mut self) {
        sleep(AFTER_FAILURE).await;
        let dialled = Lane::dial(&self.addresses[self.turn], &self.template).await;
        self.lanes[self.turn] = dialled.ok();
    }
}

/// A histogram of latencies in nanoseconds.
pub fn histogram(latencies_ns: &[u64]) -> Histogram<u64> {
    // Three significant digits up to a minute; a longer latency counts as a minute.
    let mut histogram = Histogram::new_with_max(60_000_000_000, 3).expect("constant bounds");
    for &latency in latencies_ns {
        histogram.saturating_record(latency);
    }
    histogram
}
