//! What nodes store on, and how that is taken from them: directories of the machine's own disk, or an image for each
//! node ([`images`]) whose power can be cut.

pub mod damage;
mod images;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use self::images::Images;
use super::Cluster;

/// Which disks a run asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Kind {
    /// Directories of the machine's own disk: no power to cut.
    #[default]
    Plain,
    /// An ext4 file system in a loop image for each node. Takes root.
    Images {
        /// Size of each. The file is sparse: what is not written costs nothing.
        bytes: u64,
        /// In memory, where a flush costs microseconds, or on the machine's disk.
        memory: bool,
    },
}

/// The disks of a cluster.
pub struct Disk {
    dir: PathBuf,
    images: Option<Images>,
}

impl Disk {
    /// A disk for each of so many nodes, under a directory.
    pub fn create(kind: Kind, dir: &Path, nodes: usize) -> Result<Self> {
        let images = match kind {
            Kind::Plain => None,
            Kind::Images { bytes, memory } => Some(Images::create(bytes, (!memory).then_some(dir), nodes)?),
        };
        Ok(Disk {
            dir: dir.to_owned(),
            images,
        })
    }

    /// Why this machine has no images whose power can be cut; none if it has. Found out by cutting one.
    pub fn lacks_images() -> Option<String> {
        let tried = Images::create(8 << 20, None, 1).and_then(|mut images| images.cut(&[1], || Ok(())));
        tried
            .err()
            .map(|error| format!("no loop images with a power switch: {error:#}"))
    }

    /// A node's data directory.
    pub fn data_dir(&self, node: usize) -> PathBuf {
        match self.mountpoint(node) {
            Some(mountpoint) => mountpoint.join("data"),
            None => self.dir.join(format!("node{node}")),
        }
    }

    /// Where a node's own file system is mounted, if it has one.
    pub fn mountpoint(&self, node: usize) -> Option<PathBuf> {
        self.images.as_ref().map(|images| images.mountpoint(node))
    }

    /// Makes disks for nodes that join later, up to this number.
    pub fn grow(&mut self, nodes: usize) -> Result<()> {
        self.images.as_mut().map_or(Ok(()), |images| images.grow(nodes))
    }
}

impl Cluster {
    /// Takes the power from these nodes at one instant: first their disks, under the running processes, then the
    /// processes. When it returns, the disks are back with what was flushed and the nodes can be launched.
    pub fn cut_power(&mut self, nodes: &[usize]) -> Result<()> {
        let mut images = self.disk.images.take().context("these nodes have no power to cut")?;
        let cut = images.cut(nodes, || nodes.iter().try_for_each(|node| self.kill(*node)));
        self.disk.images = Some(images);
        cut
    }
}

/// Runs a program to its end; what it says is the error.
fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{program} {}: {}",
        arguments.join(" "),
        said.trim()
    );
    Ok(())
}
