//! `kite agent register`: writes the id of this machine's agent to the configuration file.

use std::io::Write;

use anyhow::bail;

use crate::config::Config;

const HELP: &str = "\
Examples:
  kite agent register --name agent-alpha    the id is agent-alpha
  kite agent register                       the id is a fresh UUID

The command writes the id to ~/.config/kite/config.toml. It asks no server, and replaces an id that was there before.";

#[derive(clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    /// A name for people; its letters and digits make the id
    #[arg(long)]
    name: Option<String>,
}

/// Writes the id to the configuration file and prints how to address the agent.
pub fn run(args: &Args, config: &mut Config) -> anyhow::Result<()> {
    let name = args.name.as_deref();
    let id = match name {
        Some(name) => slug(name),
        None => uuid::Uuid::now_v7().to_string(),
    };
    if id.is_empty() {
        bail!("Agent name must contain at least one alphanumeric character");
    }
    if let Err(invalid) = id.parse::<agentpost_proto::id::AgentId>() {
        bail!("Agent name is too long: {invalid}");
    }
    config.set_agent(&id, name);
    config.save()?;

    let mut out = std::io::stdout().lock();
    writeln!(out, "Registered agent")?;
    if let Some(name) = name {
        writeln!(out, "  name: {name}")?;
    }
    writeln!(out, "  id:   {id}\n")?;
    writeln!(out, "Other agents on your team can address this agent with:")?;
    writeln!(out, "  kite agent send --to {id} \"<message>\"")?;
    Ok(())
}

/// The ASCII letters and digits of a name in lower case. Every run of other characters between them becomes one `-`.
fn slug(name: &str) -> String {
    let words = name
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty());
    words.map(str::to_ascii_lowercase).collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    use super::slug;

    #[test]
    fn slugs() {
        for (name, id) in [
            ("agent-alpha", "agent-alpha"),
            ("Agent Alpha", "agent-alpha"),
            ("  My_Agent_42  ", "my-agent-42"),
            ("agent--with___gaps", "agent-with-gaps"),
            ("-edge-", "edge"),
            ("größe 7", "gr-e-7"),
            ("漢字", ""),
            ("!!!", ""),
            ("", ""),
        ] {
            assert_eq!(slug(name), id, "{name}");
        }
    }
}
