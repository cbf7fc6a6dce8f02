//! `kite keys create|list|revoke`.

use anyhow::bail;

use crate::config::Config;
use crate::environment::Environment;

#[derive(clap::Subcommand)]
pub enum Command {
    /// List the keys of the team, without their secrets
    List,
}

/// Runs it.
pub async fn run(_command: Command, _environment: &Environment, _config: &Config) -> anyhow::Result<()> {
    bail!("not built yet")
}
