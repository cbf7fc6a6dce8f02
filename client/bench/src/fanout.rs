//! The mode `fanout`: inbox entries per second for a topic with a thousand subscribers. A publish is answered when
//! the last inbox has the message. One publish at a time therefore compares with a transaction of a thousand writes;
//! several publishes at a time show the throughput of the cluster.

use std::sync::Arc;
use std::time::Instant;

use agentpost::Agentpost;
use agentpost::api::abbababa::ListResponse;
use agentpost::http::{Http, Request};
use anyhow::{Context, ensure};
use futures::stream::{StreamExt, TryStreamExt, iter};
use tokio::task::JoinSet;

use crate::Bench;
use crate::args::Target;
use crate::lane::{Lane, Template};
use crate::report::{Latency, Report, Row};
use crate::traffic::{SENDER, Shape, Source};

const SUBSCRIBERS: usize = 1_000;
/// Publishes of each measurement.
const ROUNDS: usize = 20;
/// Publishes before each measurement, not counted.
const COLD: usize = 2;
/// Publishers of the second measurement; none waits for another.
const PUBLISHERS: usize = 4;
const TOPIC: &str = "bench.fanout";
/// Subscriptions in flight at a time.
const SUBSCRIBING: usize = 32;

/// Subscribes, publishes one message at a time and several at a time, and checks that the inboxes have every message.
pub async fn measure(bench: &Bench<'_>, run: u32, report: &mut dyn Report) -> anyhow::Result<()> {
    let nodes = bench.nodes().await?;
    let target = match bench.args.target() {
        Target::Follower => nodes.follower()?,
        _ => nodes.leader(),
    };
    let client = Agentpost::builder(&target.base).key(bench.key).build()?.http().clone();
    let before = subscribe(&client).await?;
    let mut published = COLD;
    run_of(bench, &target.address, 1, COLD).await?;
    for publishers in [1, PUBLISHERS] {
        let began = Instant::now();
        let samples = run_of(bench, &target.address, publishers, ROUNDS).await?;
        let seconds = began.elapsed().as_secs_f64();
        published += samples.len();
        let (name, note) = match publishers {
            1 => (
                "",
                "one publish at a time, answered when the last inbox has it".to_owned(),
            ),
            n => (
                "-pipelined",
                format!("{n} publishers, each answered when the last inbox has its message"),
            ),
        };
        report.row(Row {
            peer: format!("agentpost-fanout{name}{}", bench.args.target().suffix()),
            metric: "fanout-durable-copies",
            in_flight: SUBSCRIBERS as u32,
            run,
            value: (samples.len() * SUBSCRIBERS) as f64 / seconds,
            unit: "deliveries/s",
            latency: Latency::of(&samples),
            note,
        });
    }
    let after = entries(&client).await?;
    let missing = after
        .iter()
        .zip(&before)
        .filter(|(now, then)| **now != **then + published)
        .count();
    ensure!(
        missing == 0,
        "{missing} of the checked inboxes do not hold each publish exactly once"
    );
    Ok(())
}

fn subscriber(n: usize) -> String {
    format!("fan-{n}")
}

/// Subscribes all agents and returns the number of entries that the checked inboxes hold already.
async fn subscribe(client: &Http) -> anyhow::Result<Vec<usize>> {
    let body = serde_json::json!({ "topic": TOPIC });
    let requests = iter(0..SUBSCRIBERS).map(|n| {
        let request = Request::post("/v1/messages/subscribe").json(&body);
        async move { client.request(&request?.agent(subscriber(n))).await }
    });
    let made: Vec<_> = requests
        .buffer_unordered(SUBSCRIBING)
        .try_collect()
        .await
        .context("cannot subscribe")?;
    debug_assert_eq!(made.len(), SUBSCRIBERS);
    entries(client).await
}

/// Counts the entries of some inboxes: the first, the last and some between.
async fn entries(client: &Http) -> anyhow::Result<Vec<usize>> {
    let mut counts = Vec::new();
    for n in (0..SUBSCRIBERS).step_by(111) {
        let request = Request::get("/v1/messages?limit=200").agent(subscriber(n));
        let page: ListResponse = serde_json::from_str(&client.request(&request).await?.body)?;
        ensure!(page.messages.len() < 200, "too many runs for one team");
        counts.push(page.messages.len());
    }
    Ok(counts)
}

/// Publishes `rounds` messages in all and returns the duration of each publish in nanoseconds.
async fn run_of(bench: &Bench<'_>, address: &str, publishers: usize, rounds: usize) -> anyhow::Result<Vec<u64>> {
    let template = Arc::new(Template::new(Shape::Single.path(), bench.key, SENDER)?);
    let mut running = JoinSet::new();
    for number in 0..publishers {
        let mut lane = Lane::dial(address, &template).await?;
        let mut source = Source::new(Shape::Single, bench.args.seed(), number as u32, Instant::now());
        running.spawn(async move {
            let mut samples = Vec::new();
            for _ in 0..rounds / publishers.min(rounds) {
                let began = Instant::now();
                let answer = lane.post(source.for_topic(TOPIC)).await?;
                let pending = String::from_utf8_lossy(&answer).contains("\"fanout\":\"pending\"");
                ensure!(!pending, "a publish was answered before the last inbox had it");
                samples.push(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX));
            }
            Ok(samples)
        });
    }
    let mut samples = Vec::new();
    while let Some(lane) = running.join_next().await {
        samples.extend(lane.context("a lane ended early")??);
    }
    Ok(samples)
}
