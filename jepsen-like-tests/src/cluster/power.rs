//! Power cuts of nodes that store on images.

use anyhow::{Context as _, Result};

use super::Cluster;

impl Cluster {
    /// Cuts the power of these nodes at one instant: first their disks, under the running processes, then the
    /// processes. When it returns, the disks are mounted again with what was flushed, and the nodes can be launched.
    pub fn cut_power(&mut self, nodes: &[usize]) -> Result<()> {
        let images = self
            .disk
            .images
            .take()
            .context("these nodes do not store on images, so their power cannot be cut")?;
        let cut = images.cut(nodes, || nodes.iter().try_for_each(|node| self.kill(*node)));
        self.disk.images = Some(images);
        cut
    }
}
