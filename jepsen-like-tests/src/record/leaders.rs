//! Polls the metrics of every node ten times a second during a run: who leads in which term, which entries are
//! applied, and the hash of the state. `leaders.jsonl` has one line for each response.
//!
//! A node does not read its gauges atomically: during an election one response can combine the new role with the old
//! term. Only what two consecutive responses of a node agree on is certain; [`leaderships`] relies on that.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{interval, timeout};

use crate::record::history::Recorder;

pub const LEADERS: &str = "leaders.jsonl";
/// Time between two requests to a node.
const PERIOD: Duration = Duration::from_millis(100);
/// Time limit for a response.
const PATIENCE: Duration = Duration::from_millis(500);
/// A response older than this says nothing about the present.
const FRESH: Duration = Duration::from_millis(500);

/// The state that a node reported.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeState {
    /// When the response arrived, nanoseconds since the start of the run.
    pub t: u64,
    /// When the request was sent, nanoseconds since the start of the run.
    pub asked: u64,
    pub node: usize,
    pub term: u64,
    /// Whether the node says that it leads.
    pub leads: bool,
    /// The id of the leader that the node knows; 0 if it knows none.
    pub leader: u64,
    /// The index of the last entry in its log.
    pub last: u64,
    /// The index of the last entry that the node knows to be committed.
    pub committed: u64,
    /// The index of the last applied entry.
    pub applied: u64,
    /// The index of the last entry that its snapshot covers.
    pub snapshot: u64,
    /// The index of the last entry that was purged from its log.
    pub purged: u64,
    /// The hash of its state at `hash_index`; it is equal on all nodes at equal indexes.
    pub hash: String,
    /// The applied index that `hash` belongs to.
    pub hash_index: u64,
    /// The number of snapshots that it received since its process started.
    pub installed: u64,
    /// The number of aged rows that its sweeps removed since its process started.
    #[serde(default)]
    pub swept: u64,
}

/// A period in which one node led.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Leadership {
    pub term: u64,
    pub node: usize,
    /// When the node was first seen to lead, nanoseconds since the start of the run.
    pub from: u64,
    /// When the node was last seen to lead.
    pub until: u64,
}

/// Polls all nodes until the last clone is dropped. Cloning is cheap.
#[derive(Clone)]
pub struct NodeMonitor {
    latest: Latest,
    file: Arc<Mutex<BufWriter<File>>>,
    _tasks: Arc<JoinSet<()>>,
}

/// The last response of each node, and when it arrived.
type Latest = Arc<Mutex<Vec<Option<(Instant, NodeState)>>>>;

impl NodeMonitor {
    /// Starts polling the nodes with these base URLs.
    pub fn start(urls: &[String], recorder: &Recorder, dir: &Path) -> Result<Self> {
        let path = dir.join(LEADERS);
        let file = File::create_new(&path).with_context(|| format!("cannot create {}", path.display()))?;
        let file = Arc::new(Mutex::new(BufWriter::new(file)));
        let latest: Latest = Arc::new(Mutex::new(vec![None; urls.len()]));
        let mut tasks = JoinSet::new();
        for (node, url) in (1..).zip(urls) {
            tasks.spawn(ask_on(
                node,
                url.clone(),
                recorder.clone(),
                Arc::clone(&latest),
                Arc::clone(&file),
            ));
        }
        Ok(NodeMonitor {
            latest,
            file,
            _tasks: Arc::new(tasks),
        })
    }

    /// The last response of a node, if it is recent.
    pub fn sample(&self, node: usize) -> Option<NodeState> {
        let latest = self.latest.lock();
        let (at, sample) = latest.get(node - 1)?.clone()?;
        (at.elapsed() < FRESH).then_some(sample)
    }

    /// The node with the highest term among those that say they lead. An old leader that is cut off says so, too.
    pub fn leader(&self) -> Option<usize> {
        let nodes = self.latest.lock().len();
        let leading = (1..=nodes).filter_map(|node| self.sample(node)).filter(|s| s.leads);
        leading.max_by_key(|sample| sample.term).map(|sample| sample.node)
    }

    pub fn flush(&self) -> Result<()> {
        Ok(self.file.lock().flush()?)
    }
}

async fn ask_on(node: usize, url: String, recorder: Recorder, latest: Latest, file: Arc<Mutex<BufWriter<File>>>) {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let asked = recorder.now();
        // A node that is dead or cut off does not answer; that is not an error of the harness.
        let Ok(text) = metrics(&url).await else { continue };
        let Some(sample) = parse(&text) else { continue };
        let sample = NodeState {
            t: recorder.now(),
            asked,
            node,
            ..sample
        };
        if let Ok(mut line) = serde_json::to_vec(&sample) {
            line.push(b'\n');
            let written = file.lock().write_all(&line);
            // Checkers would take a hole in the file for a period without a leader.
            written.unwrap_or_else(|error| panic!("{LEADERS} cannot be written: {error}"));
        }
        latest.lock()[node - 1] = Some((Instant::now(), sample));
    }
}

/// Fetches the text of a node's `/metrics`.
pub async fn metrics(url: &str) -> Result<String> {
    let address = url.trim_start_matches("http://");
    let asked = async {
        let mut stream = TcpStream::connect(address).await?;
        // HTTP/1.0: the response ends with the connection.
        let request = format!("GET /metrics HTTP/1.0\r\nHost: {address}\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        anyhow::Ok(answer)
    };
    let answer = timeout(PATIENCE, asked).await??;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP")?;
    ensure!(head.split(' ').nth(1) == Some("200"), "{url}/metrics: {head}");
    Ok(body.to_owned())
}

/// The value of a gauge or counter without labels.
pub fn metric<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
}

/// `None` if the node reports nothing about Raft because it does not take part.
fn parse(text: &str) -> Option<NodeState> {
    let number = |name: &str| metric(text, &format!("agentpost_{name}"))?.parse().ok();
    let (hash, hash_index) = text.lines().find_map(|line| {
        line.strip_prefix("agentpost_state_hash_index{hash=\"")?
            .split_once("\"} ")
    })?;
    Some(NodeState {
        term: number("term")?,
        leads: number("is_leader")? == 1,
        leader: number("leader")?,
        last: number("last_log_index")?,
        committed: number("committed_index")?,
        applied: number("applied_index")?,
        snapshot: number("snapshot_index")?,
        purged: number("purged_index")?,
        hash: hash.to_owned(),
        hash_index: hash_index.parse().ok()?,
        installed: number("snapshots_received_total")?,
        // Earlier nodes do not count them.
        swept: number("swept_rows_total").unwrap_or(0),
        ..NodeState::default()
    })
}

/// Reads the responses of the nodes of a run, sorted by their arrival.
pub fn load(dir: &Path) -> Result<Vec<NodeState>> {
    let path = dir.join(LEADERS);
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let samples: Result<Vec<NodeState>, _> = text.lines().map(serde_json::from_str).collect();
    let mut samples = samples.with_context(|| path.display().to_string())?;
    samples.sort_by_key(|sample| sample.t);
    Ok(samples)
}

/// The periods of leadership, sorted by their begin. Only what a node said in two consecutive responses counts.
pub fn leaderships(samples: &[NodeState]) -> Vec<Leadership> {
    let nodes = samples.iter().map(|sample| sample.node).max().unwrap_or(0);
    let mut leaderships: Vec<Leadership> = Vec::new();
    for node in 1..=nodes {
        let own: Vec<&NodeState> = samples.iter().filter(|sample| sample.node == node).collect();
        for pair in own.windows(2) {
            if !pair[0].leads || !pair[1].leads || pair[0].term != pair[1].term {
                continue;
            }
            match leaderships.last_mut() {
                Some(last) if (last.node, last.term) == (node, pair[0].term) => last.until = pair[1].t,
                _ => leaderships.push(Leadership {
                    term: pair[0].term,
                    node,
                    from: pair[0].t,
                    until: pair[1].t,
                }),
            }
        }
    }
    leaderships.sort_by_key(|leadership| (leadership.from, leadership.term));
    leaderships
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP agentpost_term The term\nagentpost_term 7\nagentpost_is_leader 1\nagentpost_leader 2\n\
        agentpost_last_log_index 90\nagentpost_committed_index 80\nagentpost_applied_index 70\nagentpost_snapshot_index 60\n\
        agentpost_purged_index 50\nagentpost_state_hash_index{hash=\"00ab\"} 70\nagentpost_snapshots_received_total 3\nagentpost_swept_rows_total 512\n# EOF\n";

    #[test]
    fn a_node_is_understood_and_one_that_takes_no_part_says_nothing() {
        let sample = parse(TEXT).unwrap();
        assert_eq!((sample.term, sample.leads, sample.leader), (7, true, 2));
        assert_eq!((sample.last, sample.committed, sample.applied), (90, 80, 70));
        assert_eq!((sample.snapshot, sample.purged, sample.installed), (60, 50, 3));
        assert_eq!(sample.swept, 512);
        assert_eq!((sample.hash.as_str(), sample.hash_index), ("00ab", 70));
        assert_eq!(parse("agentpost_quarantined 1\n# EOF\n"), None);
    }

    #[test]
    fn a_node_led_if_two_consecutive_responses_say_so() {
        let sample = |t, node, term, leads| NodeState {
            t,
            node,
            term,
            leads,
            ..NodeState::default()
        };
        let samples = [
            sample(10, 1, 1, true),
            sample(11, 2, 1, false),
            sample(20, 1, 1, true),
            sample(25, 2, 1, true),
            sample(30, 1, 1, true),
            sample(35, 2, 2, true),
            sample(45, 2, 2, true),
            sample(50, 1, 2, false),
        ];
        let leadership = |term, node, from, until| Leadership {
            term,
            node,
            from,
            until,
        };
        assert_eq!(
            leaderships(&samples),
            [leadership(1, 1, 10, 30), leadership(2, 2, 35, 45)]
        );
    }
}
