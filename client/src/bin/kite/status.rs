//! `kite status`.

use anyhow::bail;

use crate::config::Config;
use crate::environment::Environment;

/// Runs it.
pub async fn run(_environment: &Environment, _config: &Config) -> anyhow::Result<()> {
    bail!("not built yet")
}
