//! The faults that a script can inject. Every fault goes through this module, so every fault is recorded.

pub mod damage;
mod power;

use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;

use crate::cluster::Cluster;
use crate::cluster::network::{Cut, Quality};
use crate::cluster::supervisor::SupervisedStart;
use crate::record::faults::{FaultLog, FaultState, OngoingFault};
use crate::record::leaders::NodeMonitor;
use crate::record::recoveries::{Recovery, RecoveryOutcome};
use crate::workload::context::ClientContext;

/// Time limit for a healthy majority to elect a leader.
const LEADER_PATIENCE: Duration = Duration::from_secs(30);
/// How much longer than planned a script may run to inject the faults that its scenario requires.
const OVERTIME: Duration = Duration::from_secs(60);

/// The cluster of a run, as its script controls it.
pub struct Nemesis {
    pub cluster: Cluster,
    pub ctx: ClientContext,
    pub faults: FaultLog,
    /// The states that the nodes report.
    pub monitor: NodeMonitor,
    /// The source of all random choices.
    pub random: StdRng,
    /// The planned end of the script.
    pub until: Instant,
    /// The number of faults of each kind that the scenario requires.
    pub required: &'static [(&'static str, u64)],
    /// The directory of the run.
    pub dir: PathBuf,
}

impl Nemesis {
    /// Whether the script should end.
    pub fn over(&self) -> bool {
        self.left().is_zero() && !self.lacks_faults()
    }

    /// The time until the planned end of the script.
    pub fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// Whether the script should inject more faults, because its scenario requires them, even after the planned end:
    /// nodes recover more slowly on a busy machine. It is false after [`OVERTIME`].
    pub fn lacks_faults(&self) -> bool {
        Instant::now() < self.until + OVERTIME && self.faults.lacks(self.required)
    }

    /// Waits until the planned end of the script.
    pub async fn rest(&mut self) -> Result<()> {
        tokio::time::sleep_until(self.until.into()).await;
        Ok(())
    }

    /// Waits for a random number of milliseconds from a range.
    pub async fn pause(&mut self, ms: Range<u64>) {
        let ms = self.random.random_range(ms);
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    /// Draws a duration from 200 ms up to half of the remaining time, at most `most`, with a logarithmic
    /// distribution.
    pub fn random_duration(&mut self, most: Duration) -> Range<u64> {
        let left = self.left() / 2;
        let most_ms = left.min(most).as_millis().max(400) as f64;
        let ms = 200.0 * (most_ms / 200.0).powf(self.random.random_range(0.0..1.0));
        ms as u64..ms as u64 + 1
    }

    /// All nodes in random order.
    pub fn shuffled(&mut self) -> Vec<usize> {
        let mut nodes: Vec<usize> = (1..=self.cluster.nodes()).collect();
        nodes.shuffle(&mut self.random);
        nodes
    }

    /// All nodes but one, in random order.
    pub fn others(&mut self, node: usize) -> Vec<usize> {
        let mut nodes = self.shuffled();
        nodes.retain(|other| *other != node);
        nodes
    }

    /// Waits for a leader and returns it, as the nodes themselves report it.
    pub async fn leader(&self) -> Result<usize> {
        self.leader_other_than(0).await
    }

    /// Waits for a leader other than `away` and returns it.
    pub async fn leader_other_than(&self, away: usize) -> Result<usize> {
        let deadline = Instant::now() + LEADER_PATIENCE;
        loop {
            if let Some(leader) = self.monitor.leader().filter(|leader| *leader != away) {
                return Ok(leader);
            }
            ensure!(Instant::now() < deadline, "no leader within {LEADER_PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Kills nodes with SIGKILL at once and restarts them after a random number of milliseconds.
    pub async fn kill_for(&mut self, nodes: &[usize], ms: Range<u64>) -> Result<()> {
        let fault = self.faults.begin("kill", nodes, "");
        for node in nodes {
            self.cluster.kill(*node)?;
        }
        self.pause(ms).await;
        self.cluster.launch(nodes)?;
        self.cluster.await_ready(nodes).await?;
        self.faults.end(fault, FaultState::Installed)
    }

    /// Stops processes with SIGSTOP until [`Nemesis::thaw`].
    pub fn freeze(&self, nodes: &[usize]) -> Result<()> {
        nodes.iter().try_for_each(|node| self.cluster.pause(*node))
    }

    /// Lets stopped processes go on.
    pub fn thaw(&self, nodes: &[usize]) -> Result<()> {
        nodes.iter().try_for_each(|node| self.cluster.resume(*node))
    }

    /// Ends a node with SIGTERM and starts it again.
    pub async fn restart(&mut self, node: usize) -> Result<()> {
        let fault = self.faults.begin("restart", &[node], "");
        self.cluster.stop(node).await?;
        self.cluster.restart(node).await?;
        self.faults.end(fault, FaultState::Installed)
    }

    /// Stops processes with SIGSTOP for a random number of milliseconds.
    pub async fn pause_for(&mut self, nodes: &[usize], ms: Range<u64>) -> Result<()> {
        let fault = self.faults.begin("pause", nodes, "");
        nodes.iter().try_for_each(|node| self.cluster.pause(*node))?;
        self.pause(ms).await;
        nodes.iter().try_for_each(|node| self.cluster.resume(*node))?;
        self.faults.end(fault, FaultState::Installed)
    }

    /// Begins the record of a partition of these nodes.
    pub fn begin_partition(&self, cut: &Cut, nodes: &[usize]) -> OngoingFault {
        let mut fault = self.faults.begin("partition", nodes, cut.to_string());
        fault.set_cut_links(cut.node_links());
        fault
    }

    /// Cuts network links for a random number of milliseconds.
    pub async fn cut_for(&mut self, cut: &Cut, ms: Range<u64>) -> Result<()> {
        let fault = self.begin_partition(cut, &cut.nodes());
        self.cluster.network().cut(cut)?;
        self.pause(ms).await;
        self.cluster.network().cut(&Cut::default())?;
        self.faults.end(fault, FaultState::Installed)
    }

    /// Degrades all links between nodes for a random number of milliseconds.
    pub async fn degrade_for(&mut self, kind: &str, quality: &Quality, ms: Range<u64>) -> Result<()> {
        let nodes: Vec<usize> = (1..=self.cluster.nodes()).collect();
        let fault = self.faults.begin(kind, &nodes, quality.to_string());
        self.cluster.network().set_quality(quality)?;
        self.pause(ms).await;
        self.cluster.network().set_quality(&Quality::default())?;
        self.faults.end(fault, FaultState::Installed)
    }

    /// Kills the leader again and again until the script should end, with 1 to 4 s between two kills.
    pub async fn kill_leaders_repeatedly(&mut self) -> Result<()> {
        while !self.over() {
            self.pause(1_000..4_000).await;
            let leader = self.leader().await?;
            self.kill_for(&[leader], 200..1_500).await?;
        }
        Ok(())
    }

    /// Undoes all faults: all processes run, the network is whole, the clocks are right.
    pub async fn heal(&mut self) -> Result<()> {
        self.cluster.network().heal().await?;
        self.cluster.clocks().heal()?;
        self.thaw(&self.cluster.running().collect::<Vec<_>>())?;
        self.restart_crashed().await?;
        let dead: Vec<usize> = self.cluster.stopped().collect();
        self.cluster.launch(&dead)?;
        self.cluster.await_ready(&dead).await
    }
}

/// The recovery of a node none of whose files the nemesis damaged.
fn undamaged(start: &SupervisedStart, fault: &str, began: u64, outcome: RecoveryOutcome, why: String) -> Recovery {
    Recovery {
        node: start.node,
        fault: fault.to_owned(),
        files: Vec::new(),
        began,
        after_ms: start.after.as_millis() as u64,
        starts: start.starts,
        outcome,
        why,
    }
}
