//! `kite agent list`: the agents of the team and their listeners.

use std::collections::BTreeSet;
use std::io::Write;

use agentpost::api::kite::Agent;
use agentpost::{Agentpost, Error, limits};
use agentpost_cli::table::{Align, Paint, Table, Tone};
use agentpost_cli::terminal::escaped;
use anyhow::{anyhow, bail};

use crate::config::Config;
use crate::environment::Environment;
use crate::note;
use crate::servers::post;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  kite agent list
  kite agent list --json | jq -r 'select(.sessions > 0) | .id'

The list has the agents with a key of their own, those registered with the server (POST /api/v1/agents) and those that
have received mail. `kite agent register` alone does not add an agent: it asks no server. LISTENING is the number of
open connections that listen to the agent, on all nodes.")]
pub struct Args {
    /// Print each agent as a line of JSON
    #[arg(long)]
    json: bool,
}

/// Prints the agents of all pages.
pub async fn run(args: Args, environment: &Environment, config: &Config) -> anyhow::Result<()> {
    let (agents, unreachable) = all(&post(environment, config)?).await?;
    let mut out = std::io::stdout().lock();
    if args.json {
        for agent in &agents {
            writeln!(out, "{}", serde_json::to_string(agent)?)?;
        }
    } else if agents.is_empty() {
        writeln!(out, "No agents found.")?;
    } else {
        write!(out, "{}", table(&agents).render(Paint::for_stdout()))?;
    }
    out.flush()?;
    if let Some(who) = named(&unreachable) {
        note(&format!("{who} did not answer: who listens there is not counted"));
    }
    Ok(())
}

/// All agents, and the nodes that did not answer for one of the pages.
async fn all(post: &Agentpost) -> anyhow::Result<(Vec<Agent>, BTreeSet<u64>)> {
    let (mut agents, mut unreachable) = (Vec::new(), BTreeSet::new());
    let mut after: Option<String> = None;
    loop {
        let mut query = post.agents().limit(limits::PAGE_MAX);
        if let Some(after) = &after {
            query = query.after(after);
        }
        let page = query.await.map_err(|e| failed(&e))?;
        agents.extend(page.agents);
        unreachable.extend(page.unreachable_nodes);
        match page.next {
            None => return Ok((agents, unreachable)),
            Some(next) if after.as_ref().is_some_and(|after| next <= *after) => {
                bail!("the server's pages do not go on after {}", escaped(&next));
            }
            next => after = next,
        }
    }
}

fn failed(error: &Error) -> anyhow::Error {
    match error.answer() {
        Some(answer) => anyhow!("list failed ({}): {}", answer.status, escaped(&answer.body)),
        None => anyhow!("list failed: {}", escaped(&error.to_string())),
    }
}

fn table(agents: &[Agent]) -> Table {
    let mut table = Table::new(&[
        ("AGENT", Align::Left),
        ("NAME", Align::Left),
        ("LISTENING", Align::Right),
        ("REGISTERED", Align::Left),
    ]);
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    for agent in agents {
        let tone = if agent.sessions > 0 { Tone::Good } else { Tone::Plain };
        let cells = vec![
            agent.id.clone(),
            or_dash(&agent.name),
            agent.sessions.to_string(),
            or_dash(&agent.registered_at),
        ];
        table.row(tone, cells);
    }
    table
}

/// `Node 3` or `Nodes 2, 3`; `None` without nodes.
fn named(nodes: &BTreeSet<u64>) -> Option<String> {
    let ids: Vec<String> = nodes.iter().map(u64::to_string).collect();
    match ids.as_slice() {
        [] => None,
        [one] => Some(format!("Node {one}")),
        several => Some(format!("Nodes {}", several.join(", "))),
    }
}
