//! A load that goes on while nodes die: what was acknowledged when, and whether it is still stored afterwards.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use agentpost::Agentpost;
use agentpost::api::abbababa::ListResponse;
use agentpost::http::Request;
use anyhow::{Context, ensure};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::Bench;
use crate::lane::{Lane, Template};
use crate::nodes::Nodes;
use crate::traffic::{INBOXES, Recipients, SENDER, Shape, Source, id_of};

/// Shorter than an election. With a longer timeout the figure would be the timeout.
const SEND_TIMEOUT: Duration = Duration::from_millis(200);
const AFTER_FAILURE: Duration = Duration::from_millis(20);
/// The gap may begin this long before the kill: an acknowledgement then may have been in flight.
pub const BEFORE_KILL: Duration = Duration::from_millis(200);
/// What the inboxes of this load begin with; no other load fills them, so that every message in them is known.
const PREFIX: &str = "outage-";

/// An acknowledged message.
#[derive(Clone, Copy)]
pub struct Acked {
    pub id: u64,
    pub at: Instant,
}

/// The lanes of the load.
pub struct Traffic {
    running: JoinSet<(Vec<Acked>, u64)>,
    stop: Arc<AtomicBool>,
    last: watch::Receiver<Option<Instant>>,
}

/// What the lanes saw.
pub struct Seen {
    /// The acknowledged messages of each lane.
    pub lanes: Vec<Vec<Acked>>,
    pub failed: u64,
}

impl Traffic {
    /// Starts the lanes. After a failure a lane goes on with the next node.
    pub fn start(bench: &Bench<'_>, nodes: &Nodes, lanes: u32, run: u32) -> anyhow::Result<Self> {
        let template = Arc::new(Template::new(Shape::Single.path(), bench.key, SENDER)?);
        let addresses: Vec<String> = nodes.all.iter().map(|node| node.address.clone()).collect();
        let (begun, stop) = (std::time::Instant::now(), Arc::new(AtomicBool::new(false)));
        let (tell, last) = watch::channel(None);
        let tell = Arc::new(tell);
        let mut running = JoinSet::new();
        for number in 0..lanes {
            let seed = bench.args.seed() + u64::from(run);
            // A lane's ids differ from those of the runs before.
            let lane = number + run * lanes;
            let source = Source::new(Shape::Single, seed, lane, begun).to(Recipients::random(PREFIX, INBOXES));
            let mut own = addresses.clone();
            own.rotate_left(number as usize % addresses.len());
            running.spawn(drive(own, template.clone(), source, stop.clone(), tell.clone()));
        }
        Ok(Traffic { running, stop, last })
    }

    /// Waits until a message is acknowledged after this moment.
    pub async fn acknowledged_after(&mut self, moment: Instant, patience: Duration) -> anyhow::Result<()> {
        let found = self.last.wait_for(|last| last.is_some_and(|at| at > moment));
        let found = timeout(patience, found).await;
        found
            .with_context(|| format!("nothing was acknowledged for {patience:?}"))?
            .context("all lanes ended")?;
        Ok(())
    }

    /// Ends the lanes.
    pub async fn end(mut self) -> anyhow::Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        let (mut lanes, mut failed) = (Vec::new(), 0);
        while let Some(lane) = self.running.join_next().await {
            let (acked, failures) = lane.context("a lane ended early")?;
            lanes.push(acked);
            failed += failures;
        }
        Ok(Seen { lanes, failed })
    }
}

async fn drive(
    addresses: Vec<String>,
    template: Arc<Template>,
    mut source: Source,
    stop: Arc<AtomicBool>,
    tell: Arc<watch::Sender<Option<Instant>>>,
) -> (Vec<Acked>, u64) {
    let (mut acked, mut failed, mut turn) = (Vec::new(), 0, 0);
    let mut lane: Option<Lane> = None;
    while !stop.load(Ordering::Relaxed) {
        let (request, id) = source.next();
        let address = &addresses[turn % addresses.len()];
        let sent = timeout(SEND_TIMEOUT, async {
            if lane.is_none() {
                lane = Some(Lane::dial(address, &template).await?);
            }
            let answer = lane.as_mut().context("connected above")?.post(request).await?;
            anyhow::Ok(Shape::Single.acknowledged(&answer))
        });
        match sent.await {
            Ok(Ok(1)) => {
                let at = Instant::now();
                acked.push(Acked { id, at });
                tell.send_replace(Some(at));
            }
            _ => {
                failed += 1;
                (lane, turn) = (None, turn + 1);
                sleep(AFTER_FAILURE).await;
            }
        }
    }
    (acked, failed)
}

/// The longest time between two acknowledgements from shortly before a kill until `until`.
pub fn longest_gap(mut times: Vec<Instant>, killed: Instant, until: Instant) -> Duration {
    let from = killed.checked_sub(BEFORE_KILL).unwrap_or(killed);
    times.sort_unstable();
    let times: Vec<Instant> = times.into_iter().filter(|&at| at >= from && at < until).collect();
    let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
    gaps.max().unwrap_or(Duration::MAX)
}

/// How many acknowledged messages are missing, and how many messages are stored more than once.
pub async fn missing_and_doubled(bench: &Bench<'_>, nodes: &Nodes, seen: &Seen) -> anyhow::Result<(usize, usize)> {
    let found = read_back(bench, nodes).await?;
    let acked = seen.lanes.iter().flatten();
    let lost = acked.filter(|ack| !found.contains_key(&ack.id)).count();
    Ok((lost, found.values().filter(|&&times| times > 1).count()))
}

/// Fails if a message is missing or stored twice.
pub fn ensure_kept((lost, doubled): (usize, usize)) -> anyhow::Result<()> {
    ensure!(lost == 0, "{lost} acknowledged messages are missing");
    ensure!(doubled == 0, "{doubled} messages are there more than once");
    Ok(())
}

/// Reads all inboxes of the load and counts how often each id is stored.
async fn read_back(bench: &Bench<'_>, nodes: &Nodes) -> anyhow::Result<HashMap<u64, u32>> {
    let urls: Vec<&str> = nodes.all.iter().map(|node| node.base.as_str()).collect();
    let post = Agentpost::builder(urls.join(" ")).key(bench.key).build()?;
    let client = post.http();
    let mut found = HashMap::new();
    for inbox in 0..INBOXES {
        let mut cursor = String::new();
        loop {
            let path = format!("/v1/messages?limit=200{cursor}");
            let answer = client
                .request(&Request::get(path).agent(format!("{PREFIX}{inbox}")))
                .await?;
            let page: ListResponse = serde_json::from_str(&answer.body)?;
            if page.messages.is_empty() {
                break;
            }
            for message in &page.messages {
                *found
                    .entry(
                        id_in(message.body.get())
                            .context("an inbox holds a message that the benchmark did not send")?,
                    )
                    .or_insert(0) += 1;
            }
            cursor = format!("&cursor={}", page.cursor);
        }
    }
    Ok(found)
}

/// The id in a body. The API returns a text body as `{"text": …}`.
fn id_in(body: &str) -> Option<u64> {
    let body: serde_json::Value = serde_json::from_str(body).ok()?;
    id_of(body.get("text")?.as_str()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gap_counts_from_shortly_before_the_kill_to_the_next_one() {
        let begun = Instant::now();
        let at = |ms: u64| begun + Duration::from_millis(ms);
        let times = vec![at(0), at(500), at(950), at(990), at(1800), at(2100), at(9000)];
        assert_eq!(
            longest_gap(times.clone(), at(1000), at(9000)),
            Duration::from_millis(810)
        );
        assert_eq!(longest_gap(times, at(1000), at(9001)), Duration::from_millis(6900));
        assert_eq!(longest_gap(vec![at(0)], at(1000), at(9000)), Duration::MAX);
    }

    #[test]
    fn ids_come_back_out_of_text_bodies() {
        assert_eq!(id_in("{\"text\":\"00000000000000ffxxxx\"}"), Some(255));
        assert_eq!(id_in("{\"text\":\"short\"}"), None);
    }
}
