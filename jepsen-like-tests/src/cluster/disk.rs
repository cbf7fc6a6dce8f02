//! The storage of the nodes: directories on the machine's own disk, or one image per node ([`images`]) whose power
//! can be cut.

pub mod damage;
pub(super) mod images;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use self::images::Images;

/// The disks of a cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DiskKind {
    /// Directories on the machine's own disk, whose power cannot be cut.
    #[default]
    Plain,
    /// One ext4 file system in a loop image per node; needs root.
    Images {
        /// The size of each image. The files are sparse and take only the space that is written.
        bytes: u64,
        /// Whether the images are in memory, where a flush takes microseconds, or on the machine's disk.
        memory: bool,
    },
}

pub struct Disk {
    dir: PathBuf,
    pub(super) images: Option<Images>,
}

impl Disk {
    /// Creates a disk for each node below a directory.
    pub fn create(kind: DiskKind, dir: &Path, nodes: usize) -> Result<Self> {
        let images = match kind {
            DiskKind::Plain => None,
            DiskKind::Images { bytes, memory } => Some(Images::create(bytes, (!memory).then_some(dir), nodes)?),
        };
        Ok(Disk {
            dir: dir.to_owned(),
            images,
        })
    }

    /// Why this machine cannot cut the power of images, found out by cutting one; `None` if it can.
    pub fn why_no_images() -> Option<String> {
        let tried = Images::create(8 << 20, None, 1).and_then(|images| images.cut(&[1], || Ok(())));
        tried
            .err()
            .map(|error| format!("the power of loop images cannot be cut: {error:#}"))
    }

    pub fn data_dir(&self, node: usize) -> PathBuf {
        match &self.images {
            Some(images) => images.mountpoint(node).join("data"),
            None => self.dir.join(format!("node{node}")),
        }
    }
}

/// Runs a program to its end; its error output becomes the error.
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
