//! Power that goes away, and how nodes come back.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::Stage;
use crate::cluster::supervisor::{Health, Start};
use crate::faults::State;
use crate::recovery::{self, Class, Recovery};

/// A second is usual. Who takes this long after a power cut did not come back: others brought it back.
const PATIENCE: Duration = Duration::from_secs(30);

impl Stage {
    /// Takes the power from these nodes at one instant, and gives it back at once: they are started, but do not serve
    /// yet. Nodes that stand still are cut off, too.
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

    /// Takes the power from these nodes at one instant; they are started again, and the fault ends when all serve.
    pub async fn power_cut(&mut self, nodes: &[usize]) -> Result<()> {
        let fault = self.faults.begin("power", nodes, "");
        self.cluster.cut_power(nodes)?;
        self.recover_from_power(nodes).await?;
        self.faults.end(fault, State::Installed)
    }

    /// Starts nodes after a power cut until all serve, and writes down how they came back. Only a node that serves came
    /// back: a disk that kept what was flushed is no reason for anything else.
    pub async fn recover_from_power(&mut self, nodes: &[usize]) -> Result<()> {
        let began = self.world.recorder.now();
        let starts = self.cluster.supervise(nodes, PATIENCE).await?;
        self.note_power(began, &starts)
    }

    /// Writes down how nodes came back after a power cut; an error if one did not.
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
