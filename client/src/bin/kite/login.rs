//! `kite login`.

use anyhow::bail;

use crate::config::Config;
use crate::environment::Environment;

#[derive(clap::Args)]
pub struct Args {}

/// Runs it.
pub async fn run(_args: Args, _environment: &Environment, _config: &mut Config) -> anyhow::Result<()> {
    bail!("not built yet")
}
