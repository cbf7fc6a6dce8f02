//! Power loss, and the recovery of the nodes.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Nemesis, undamaged};
use crate::cluster::supervisor::{NodeHealth, SupervisedStart};
use crate::record::faults::FaultState;
use crate::record::recoveries::{self, RecoveryOutcome};

/// Time limit for a node to be ready after a power cut; about a second is normal.
const PATIENCE: Duration = Duration::from_secs(30);

impl Nemesis {
    /// Cuts the power of these nodes at one instant and restores it at once, without starting the nodes. Stopped
    /// nodes lose their power, too.
    pub fn power_off(&mut self, nodes: &[usize]) -> Result<()> {
        let fault = self.faults.begin("power", nodes, "");
        let cut = self.cluster.cut_power(nodes);
        let state = if cut.is_ok() {
            FaultState::Installed
        } else {
            FaultState::Indeterminate
        };
        self.faults.end(fault, state)?;
        cut
    }

    /// Cuts the power of these nodes at one instant and starts them again; the fault ends when all are ready.
    pub async fn power_cut(&mut self, nodes: &[usize]) -> Result<()> {
        let fault = self.faults.begin("power", nodes, "");
        self.cluster.cut_power(nodes)?;
        self.recover_from_power(nodes).await?;
        self.faults.end(fault, FaultState::Installed)
    }

    /// Starts nodes after a power cut until all are ready and records their recovery. Any other outcome is an error,
    /// because the disks kept everything that was flushed.
    pub async fn recover_from_power(&mut self, nodes: &[usize]) -> Result<()> {
        let began = self.ctx.recorder.now();
        let starts = self.cluster.supervise(nodes, PATIENCE).await?;
        self.note_power(began, &starts)
    }

    /// Records the recovery of nodes after a power cut; an error if a node is not ready.
    fn note_power(&mut self, began: u64, starts: &[SupervisedStart]) -> Result<()> {
        let mut lost = Vec::new();
        for start in starts {
            let (outcome, why) = match &start.health {
                NodeHealth::Ready => (RecoveryOutcome::Ready, String::new()),
                NodeHealth::Quarantined(why) => (RecoveryOutcome::Quarantined, why.clone()),
                NodeHealth::Down(why) => (RecoveryOutcome::Down, why.clone()),
            };
            if outcome != RecoveryOutcome::Ready {
                lost.push(format!(
                    "node {} is {} after a power cut: {why}",
                    start.node,
                    outcome.word()
                ));
            }
            let recovery = undamaged(start, "power", began, outcome, why);
            recoveries::append(&self.dir, &recovery)?;
        }
        ensure!(lost.is_empty(), lost.join(", "));
        Ok(())
    }
}
