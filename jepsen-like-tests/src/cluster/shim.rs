//! Disk faults: nodes run with the library of `disk-shim/` preloaded, each with its own file of rules.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::Cluster;

/// Longer than the 10 ms between two checks of the shim, so that the next file operation applies new rules.
const SEEN: Duration = Duration::from_millis(30);

impl Cluster {
    /// Sets the disk faults of a node, as rules described in `disk-shim/src/lib.rs`; without rules the disk works.
    /// Returns when the rules apply. Needs [`super::Settings::disk_shim`].
    pub async fn set_disk_faults(&self, node: usize, rules: &str) -> Result<()> {
        ensure!(self.settings.disk_shim, "this cluster runs without the disk shim");
        let (file, staged) = (self.file(node, "shim"), self.file(node, "shim.new"));
        std::fs::write(&staged, rules)?;
        std::fs::rename(&staged, &file)?;
        tokio::time::sleep(SEEN).await;
        Ok(())
    }

    /// The environment variables that a node needs for disk faults.
    pub(super) fn shim(&self, node: usize) -> Result<Vec<(&'static str, PathBuf)>> {
        if !self.settings.disk_shim {
            return Ok(Vec::new());
        }
        Ok(vec![
            ("LD_PRELOAD", find_library()?),
            ("DISK_SHIM_FILE", self.file(node, "shim")),
        ])
    }
}

/// Finds the library: `DISK_SHIM_LIB`, or the one of the same build as this program, which is built now if it is
/// missing.
fn find_library() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("DISK_SHIM_LIB") {
        return Ok(path.into());
    }
    let program = std::env::current_exe()?; // <target>/<profile>/<program> or <target>/<profile>/deps/<test>
    let dir = program.parent().context("this program has no directory")?;
    let profile = match dir.ends_with("deps") {
        true => dir.parent().context("deps/ has no parent")?,
        false => dir,
    };
    let library = profile.join("libdisk_shim.so");
    if !library.exists() {
        let release = profile.ends_with("release").then_some("--release");
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let built = Command::new(cargo)
            .args(["build", "--quiet", "--package", "disk-shim"])
            .args(release)
            .status();
        ensure!(
            built.is_ok_and(|status| status.success()) && library.exists(),
            "{} is missing: run `cargo build -p disk-shim`, or name the library in DISK_SHIM_LIB",
            library.display()
        );
    }
    Ok(library)
}
