//! What the script of a scenario may do. Every fault goes through here, so that it is written down.

pub mod damage;
mod power;

use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use rand::RngExt;
use rand::rngs::StdRng;

use crate::cluster::Cluster;
use crate::faults::{FaultLog, State};
use crate::world::World;

/// The cluster of a run in the hands of its script.
pub struct Stage {
    /// Its processes.
    pub cluster: Cluster,
    /// What clients know.
    pub world: World,
    /// Where faults are written down.
    pub faults: FaultLog,
    /// Where all choices come from.
    pub random: StdRng,
    /// When the faults shall be over.
    pub until: Instant,
    /// Where the run writes down what happens.
    pub dir: PathBuf,
}

impl Stage {
    /// Whether the script shall end.
    pub fn over(&self) -> bool {
        Instant::now() >= self.until
    }

    /// Waits for the end of the faults.
    pub async fn rest(&mut self) -> Result<()> {
        tokio::time::sleep_until(self.until.into()).await;
        Ok(())
    }

    /// Waits for some milliseconds of a range.
    pub async fn pause(&mut self, ms: Range<u64>) {
        let ms = self.random.random_range(ms);
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    /// SIGKILL to all of them at once; they are started again after some milliseconds of a range.
    pub async fn kill_for(&mut self, nodes: &[usize], ms: Range<u64>) -> Result<()> {
        let fault = self.faults.begin("kill", nodes, "");
        for node in nodes {
            self.cluster.kill(*node)?;
        }
        self.pause(ms).await;
        self.cluster.launch(nodes)?;
        self.cluster.await_ready(nodes).await?;
        self.faults.end(fault, State::Installed)
    }

    /// Lets processes stand still, until [`Stage::thaw`].
    pub fn freeze(&self, nodes: &[usize]) -> Result<()> {
        nodes.iter().try_for_each(|node| self.cluster.pause(*node))
    }

    /// Lets them go on.
    pub fn thaw(&self, nodes: &[usize]) -> Result<()> {
        nodes.iter().try_for_each(|node| self.cluster.resume(*node))
    }

    /// Leaves nothing of any fault: all processes run, the network is whole.
    pub async fn heal(&mut self) -> Result<()> {
        self.thaw(&self.cluster.running().collect::<Vec<_>>())?;
        self.cluster.network().heal().await?;
        let dead: Vec<usize> = self.cluster.stopped().collect();
        self.cluster.launch(&dead)?;
        self.cluster.await_ready(&dead).await
    }
}
