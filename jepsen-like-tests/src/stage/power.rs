//! Power loss, and the recovery of the nodes.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::Stage;
use crate::cluster::supervisor::{Health, Start};
use crate::faults::State;
use crate::recovery::{self, Class, Recovery};

/// Time limit for a node to be ready after a power cut; about a second is normal.
const PATIENCE: Duration = Duration::from_secs(30);

impl Stage {
    /// Cuts the power of these nodes at one instant and restores it at once, without starting the nodes. Stopped
    /// nodes lose their power, too.
    pub fn power_off(&mut self, nodes: &[usize]) -> Result<()> {
        let fault = self.faults.begin("power", nodes, "");
        let cut = self.cluster.cut_power(nodes);
        let state = if cut.is_ok() {
            State::Installed
        } else {
            State::Indeterminate
        };
        self.faults.end(fault, state)?;
        cut
    }

    /// Cuts the power of these nodes at one instant and starts them again; the fault ends when all are ready.
    pub async fn power_cut(&mut self, nodes: &[usize]) -> Result<()> {
        let fault = self.faults.begin("power", nodes, "");
        self.cluster.cut_power(nodes)?;
        self.recover_from_power(nodes).await?;
        self.faults.end(fault, State::Installed)
    }

    /// Starts nodes after a power cut until all are ready and records their recovery. Any other outcome is an error,
    /// because the disks kept everything that was flushed.
    pub async fn recover_from_power(&mut self, nodes: &[usize]) -> Result<()> {
        let began = self.world.recorder.now();
        let starts = self.cluster.supervise(nodes, PATIENCE).await?;
        self.note_power(began, &starts)
    }

    /// Records the recovery of nodes after a power cut; an error if a node is not ready.
    fn note_power(&mut self, began: u64, starts: &[Start]) -> Result<()> {
        let mut lost = Vec::new();
        for start in starts {
            let (class, why) = match &start.health {
                Health::Ready => (Class::Ready, String::new()),
                Health::Quarantined(why) => (Class::Quarantined, why.clone()),
                Health::Down(why) => (Class::Down, why.clone()),
            };
            if class != Class::Ready {
                lost.push(format!(
                    "node {} is {} after a power cut: {why}",
                    start.node,
                    class.word()
                ));
            }
            let recovery = Recovery::of(start, "power", began, class, why);
            recovery::append(&self.dir, &recovery)?;
        }
        ensure!(lost.is_empty(), lost.join(", "));
        Ok(())
    }
}
