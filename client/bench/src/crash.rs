//! The mode `crash`: kills the leader under load. It measures the longest time without an acknowledgement and checks
//! that every acknowledged message is still stored.

use std::collections::HashMap;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use agentpost::Agentpost;
use agentpost::api::abbababa::ListResponse;
use agentpost::http::Request;
use anyhow::{Context, bail, ensure};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::Bench;
use crate::lane::{Lane, Template};
use crate::nodes::Nodes;
use crate::report::{Latency, Report, Row};
use crate::traffic::{INBOXES, SENDER, Shape, Source, id_of};

/// Shorter than an election. With a longer timeout the figure would be the timeout.
const SEND_TIMEOUT: Duration = Duration::from_millis(200);
const AFTER_FAILURE: Duration = Duration::from_millis(20);
/// The gap may begin this long before the kill: an acknowledgement then may have been in flight.
const BEFORE_KILL: Duration = Duration::from_millis(200);

/// Parses `NODE=PID`.
pub fn process(text: &str) -> Result<(u64, u32), String> {
    let parsed = text
        .split_once('=')
        .and_then(|(node, pid)| Some((node.parse().ok()?, pid.parse().ok()?)));
    match parsed {
        Some((node, pid)) if pid > 1 => Ok((node, pid)),
        _ => Err("expected NODE=PID, such as 1=4711".to_owned()),
    }
}

/// An acknowledged message.
struct Acked {
    id: u64,
    at: Instant,
}

/// Loads all nodes for three times the duration and kills the leader after the first third.
pub async fn measure(bench: &Bench<'_>, run: u32, report: &mut dyn Report) -> anyhow::Result<()> {
    let nodes = bench.nodes().await?;
    let leader = nodes.leader().id;
    let pid = bench
        .args
        .kill
        .iter()
        .find(|(node, _)| *node == leader)
        .map(|(_, pid)| *pid);
    let pid = pid.with_context(|| format!("node {leader} leads, but --kill does not name its process"))?;
    let lanes = bench.args.in_flight.iter().copied().max().unwrap_or(64);
    let template = Arc::new(Template::new(Shape::Single.path(), bench.key, SENDER)?);
    let addresses: Vec<String> = nodes.all.iter().map(|node| node.address.clone()).collect();
    let begun = Instant::now();
    let (kill_at, end) = (begun + bench.duration(), begun + bench.duration() * 3);
    let mut running = JoinSet::new();
    for number in 0..lanes {
        let seed = bench.args.seed + u64::from(run);
        let source = Source::new(Shape::Single, seed, number, begun.into_std());
        let mut own = addresses.clone();
        own.rotate_left(number as usize % addresses.len());
        running.spawn(drive(own, template.clone(), source, end));
    }
    sleep_until(kill_at).await;
    kill(pid).await?;
    let killed = Instant::now();

    let (mut acked, mut failed, mut stall) = (Vec::new(), 0, Duration::ZERO);
    while let Some(lane) = running.join_next().await {
        let (of_lane, failures) = lane.context("a lane ended early")?;
        stall = stall.max(longest_gap(of_lane.iter().map(|ack| ack.at).collect(), killed));
        acked.extend(of_lane);
        failed += failures;
    }
    let window = longest_gap(acked.iter().map(|ack| ack.at).collect(), killed);
    let found = read_back(bench, &nodes).await?;
    let lost = acked.iter().filter(|ack| !found.contains_key(&ack.id)).count();
    let doubled = found.values().filter(|&&times| times > 1).count();
    report.row(Row {
        peer: "agentpost-http".to_owned(),
        metric: "crash-no-ack-window",
        in_flight: lanes,
        run,
        value: window.as_secs_f64() * 1e3,
        unit: "ms",
        latency: Latency::NONE,
        note: format!(
            "killed=node{leader}(leader) worst-lane-stall-ms={} acked={} lost={lost} doubled={doubled} failed-sends={failed}",
            stall.as_millis(),
            acked.len()
        ),
    });
    ensure!(lost == 0, "{lost} acknowledged messages are missing");
    ensure!(doubled == 0, "{doubled} messages are there more than once");
    Ok(())
}

/// Runs one lane and returns its acknowledged messages and the number of failed sends. After a failure the lane goes on
/// with the next node.
async fn drive(addresses: Vec<String>, template: Arc<Template>, mut source: Source, end: Instant) -> (Vec<Acked>, u64) {
    let (mut acked, mut failed, mut turn) = (Vec::new(), 0, 0);
    let mut lane: Option<Lane> = None;
    while Instant::now() < end {
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
            Ok(Ok(1)) => acked.push(Acked { id, at: Instant::now() }),
            _ => {
                failed += 1;
                (lane, turn) = (None, turn + 1);
                sleep(AFTER_FAILURE).await;
            }
        }
    }
    (acked, failed)
}

/// The longest time between two acknowledgements around and after the kill.
fn longest_gap(mut times: Vec<Instant>, killed: Instant) -> Duration {
    let from = killed.checked_sub(BEFORE_KILL).unwrap_or(killed);
    times.sort_unstable();
    let times: Vec<Instant> = times.into_iter().filter(|&at| at >= from).collect();
    let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
    gaps.max().unwrap_or(Duration::MAX)
}

/// Reads all inboxes of the team and counts how often each id is stored.
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
                .request(&Request::get(path).agent(format!("inbox-{inbox}")))
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

/// Sends SIGKILL by the command `kill`, because the system call needs unsafe code.
async fn kill(pid: u32) -> anyhow::Result<()> {
    let run = move || Command::new("kill").args(["-KILL", &pid.to_string()]).status();
    let status = tokio::task::spawn_blocking(run).await?.context("cannot run kill")?;
    if !status.success() {
        bail!("cannot kill process {pid}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_given_by_node() {
        assert_eq!(process("3=4711"), Ok((3, 4711)));
        for bad in ["", "3", "3=", "a=1", "3=1", "3=-1", "3=0"] {
            assert!(process(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_gap_counts_from_shortly_before_the_kill() {
        let begun = Instant::now();
        let at = |ms: u64| begun + Duration::from_millis(ms);
        let times = vec![at(0), at(500), at(950), at(990), at(1800), at(2100)];
        assert_eq!(longest_gap(times, at(1000)), Duration::from_millis(810));
        assert_eq!(longest_gap(vec![at(0)], at(1000)), Duration::MAX);
    }

    #[test]
    fn ids_come_back_out_of_text_bodies() {
        assert_eq!(id_in("{\"text\":\"00000000000000ffxxxx\"}"), Some(255));
        assert_eq!(id_in("{\"text\":\"short\"}"), None);
    }
}
