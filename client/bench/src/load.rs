//! A closed loop of sends: every lane sends a request, waits for the acknowledgement and sends the next one.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use hdrhistogram::Histogram;
use hyper::header::HeaderValue;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::args::Target;
use crate::lane::{Lane, Template};
use crate::meter::{Meter, Tally};
use crate::nodes::Nodes;
use crate::observe::Snapshot;
use crate::report::{Latency, Row};
use crate::traffic::{INBOXES, Recipients, SENDER, Shape, Source};
use crate::{Bench, fresh_number};

/// A send without an answer for this long is an error.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause before a lane that failed connects again.
const AFTER_FAILURE: Duration = Duration::from_millis(20);

/// A load on the cluster.
#[derive(Clone)]
pub struct Load {
    /// The name of its rows.
    pub name: String,
    pub shape: Shape,
    pub target: Target,
    /// Requests in flight at a time.
    pub in_flight: u32,
    pub to: Recipients,
    /// The keys of the teams; each request takes one at random.
    pub keys: Vec<String>,
    /// Whether every message carries an idempotency key of its own.
    pub keyed: bool,
    /// The time between the begins of two requests of a lane, unless an answer takes longer; zero for no pause.
    pub gap: Duration,
}

impl Load {
    /// A load on all nodes with messages to the usual inboxes of the first team.
    pub fn new(bench: &Bench<'_>, name: impl Into<String>, shape: Shape, in_flight: u32) -> Self {
        Load {
            name: name.into(),
            shape,
            target: bench.args.target(),
            in_flight,
            to: Recipients::random("inbox-", INBOXES),
            keys: vec![bench.key.to_owned()],
            keyed: false,
            gap: Duration::ZERO,
        }
    }
}

/// Measures a load for `seconds` after the warm-up.
pub async fn measure(bench: &Bench<'_>, load: &Load, run: u32, seconds: u64) -> anyhow::Result<Row> {
    let nodes = bench.nodes().await?;
    let lanes = Lanes::dial(&nodes, load, bench.args.seed() + u64::from(run)).await?;
    let clients = nodes.clients()?;
    let meter = Meter::start(bench.args.warm_up(), Duration::from_secs(seconds), 1);
    let mut running = lanes.run(&meter);
    meter.reached(0).await;
    let before = Snapshot::take(&clients).await;
    meter.reached(1).await;
    let after = Snapshot::take(&clients).await;
    while let Some(lane) = running.join_next().await {
        lane.context("a lane ended early")?;
    }
    let tally = meter.take(0);
    let note = after.note_since(&before, tally.acknowledged, seconds as f64) + &tally.complaint();
    Ok(row_of(load, run, &tally, seconds as f64, note))
}

/// The row of what a load measured in `seconds`.
pub fn row_of(load: &Load, run: u32, tally: &Tally, seconds: f64, note: String) -> Row {
    Row {
        peer: format!("agentpost-{}", load.name),
        metric: "acked-writes",
        in_flight: load.in_flight,
        run,
        value: tally.acknowledged as f64 / seconds,
        unit: "msg/s",
        latency: Latency::of(&tally.latencies_ns),
        note,
    }
}

/// The lanes of a load, connected and idle.
pub struct Lanes(Vec<Driver>);

impl Lanes {
    pub async fn dial(nodes: &Nodes, load: &Load, seed: u64) -> anyhow::Result<Self> {
        let addresses = nodes.addresses(load.target)?;
        let path = load.shape.path();
        let templates = load
            .keys
            .iter()
            .map(|key| anyhow::Ok(Arc::new(Template::new(path, key, SENDER)?)));
        let templates: Arc<[Arc<Template>]> = templates.collect::<Result<_, _>>()?;
        let (started, nonce) = (std::time::Instant::now(), load.keyed.then(fresh_number));
        let mut lanes = Vec::new();
        for number in 0..load.in_flight {
            let source = Source::new(load.shape, seed, number, started).to(load.to.clone());
            let source = match nonce {
                Some(nonce) => source.keyed(nonce),
                None => source,
            };
            let own = of_lane(&addresses, number as usize, load.in_flight as usize);
            lanes.push(Driver::dial(own, &templates, source, load.gap).await?);
        }
        Ok(Lanes(lanes))
    }

    /// Starts the lanes; they run until the measurement is over.
    pub fn run(self, meter: &Arc<Meter>) -> JoinSet<()> {
        let mut running = JoinSet::new();
        for lane in self.0 {
            running.spawn(lane.drive(meter.clone()));
        }
        running
    }
}

/// The nodes of a lane. With fewer lanes than nodes, a lane sends to several nodes in turn, so that every node gets its
/// share of the load.
fn of_lane(addresses: &[String], number: usize, of: usize) -> Vec<String> {
    let count = if of < addresses.len() { addresses.len() } else { 1 };
    addresses.iter().cycle().skip(number).take(count).cloned().collect()
}

/// A lane and its requests.
struct Driver {
    addresses: Vec<String>,
    lanes: Vec<Option<Lane>>,
    turn: usize,
    templates: Arc<[Arc<Template>]>,
    source: Source,
    gap: Duration,
}

impl Driver {
    async fn dial(
        addresses: Vec<String>,
        templates: &Arc<[Arc<Template>]>,
        source: Source,
        gap: Duration,
    ) -> anyhow::Result<Self> {
        let first = templates.first().context("a load needs a key")?;
        let mut lanes = Vec::new();
        for address in &addresses {
            lanes.push(Some(Lane::dial(address, first).await?));
        }
        Ok(Driver {
            addresses,
            lanes,
            turn: 0,
            templates: templates.clone(),
            source,
            gap,
        })
    }

    async fn drive(mut self, meter: Arc<Meter>) {
        let expected = self.source.shape().expected();
        loop {
            let begun = Instant::now();
            if meter.is_over(begun) {
                return;
            }
            match timeout(SEND_TIMEOUT, self.send()).await {
                Ok(Ok(acknowledged)) => {
                    meter.answered(begun, Instant::now(), acknowledged);
                    if acknowledged < expected {
                        meter.failed("a 200 that does not acknowledge every message");
                    }
                    self.turn = (self.turn + 1) % self.lanes.len();
                }
                Ok(Err(error)) => {
                    meter.failed(format!("{error:#}"));
                    self.reconnect().await;
                }
                Err(_) => {
                    meter.failed("no answer in time");
                    self.reconnect().await;
                }
            }
            if !self.gap.is_zero() {
                sleep_until(begun + self.gap).await;
            }
        }
    }

    async fn send(&mut self) -> anyhow::Result<usize> {
        let team = self.source.choose(self.templates.len());
        let (request, id) = self.source.next();
        let key = self.source.key_of(id, Shape::Single).map(HeaderValue::try_from);
        let lane = self.lanes[self.turn].as_mut().context("not connected")?;
        lane.use_template(&self.templates[team]);
        let answer = lane.post_keyed(request, key.transpose()?).await?;
        Ok(self.source.shape().acknowledged(&answer))
    }

    async fn reconnect(&mut self) {
        sleep(AFTER_FAILURE).await;
        let dialled = Lane::dial(&self.addresses[self.turn], &self.templates[0]).await;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_lanes_send_to_every_node_and_many_to_one_each() {
        let addresses: Vec<String> = ["a", "b", "c"].map(str::to_owned).to_vec();
        assert_eq!(of_lane(&addresses, 1, 2), ["b", "c", "a"]);
        assert_eq!(of_lane(&addresses, 4, 64), ["b"]);
    }
}
