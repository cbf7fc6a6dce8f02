//! `agentpost`, the operator's command line, with a module for each noun.

mod bench;
mod cluster;
mod connection;
mod deliveries;
mod key;
mod login;
mod members;
mod node;
mod signing_keys;
mod team;
mod webhook;

use std::io::IsTerminal;
use std::process::ExitCode;

use agentpost_cli::output;
use clap::{Parser, Subcommand};

use connection::Connection;

#[derive(Parser)]
#[command(
    name = "agentpost",
    version,
    propagate_version = true,
    about = "Operate an Agentpost cluster"
)]
#[command(
    arg_required_else_help = true,
    after_help = "\
Examples:
  agentpost cluster status
  agentpost team create research --monthly-events 0
  agentpost key create --team research --permissions write --agent agent-alpha
  agentpost login approve BCDF-GHJK --team research
  agentpost deliveries list --team research --state dead
  agentpost webhook listen --port 9000 --answer 500,200
  agentpost bench --mode http --in-flight 64

Every node of the cluster answers. With several URLs the command asks the next node when one does not answer. The admin
key is in the file bootstrap.admin_key_file of the node that bootstrapped the cluster.
Exit codes: 0 done, 1 failed, 2 wrong usage."
)]
struct Cli {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show the nodes, add and remove them, choose the leader
    #[command(subcommand, arg_required_else_help = true)]
    Cluster(cluster::Command),
    /// Let the node of this machine rejoin the cluster
    #[command(subcommand, arg_required_else_help = true)]
    Node(node::Command),
    /// Create and list teams, set their limits
    #[command(subcommand, arg_required_else_help = true)]
    Team(team::Command),
    /// Create, list and revoke API keys
    #[command(subcommand, arg_required_else_help = true)]
    Key(key::Command),
    /// Approve or deny machines that wait for a key (`kite login`)
    #[command(subcommand, arg_required_else_help = true)]
    Login(login::Command),
    /// List and show webhook deliveries, deliver dead ones again
    #[command(subcommand, arg_required_else_help = true)]
    Deliveries(deliveries::Command),
    /// Show and rotate the keys that sign the webhooks of a team
    #[command(subcommand, arg_required_else_help = true)]
    SigningKeys(signing_keys::Command),
    /// Receive webhooks on this machine, to try them out
    #[command(subcommand, arg_required_else_help = true)]
    Webhook(webhook::Command),
    /// Measure acknowledged sends, webhook deliveries, fan-out or push latency
    Bench(agentpost_bench::Args),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of a pipe, such as `head`, has closed it.
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints help, the version or a usage error. clap's errors begin with `error:`; here they begin like all others.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.render().to_string().starts_with("error:") {
        error.exit();
    }
    let wants_colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let text = if wants_colour && std::io::stderr().is_terminal() {
        error.render().ansi().to_string()
    } else {
        error.render().to_string()
    };
    eprint!("{}", text.replacen("error:", "Error:", 1));
    ExitCode::from(2)
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let runtime = match &cli.command {
        Command::Bench(args) => args.runtime()?,
        _ => tokio::runtime::Builder::new_current_thread().enable_all().build()?,
    };
    runtime.block_on(async {
        match cli.command {
            Command::Cluster(command) => cluster::run(command, &cli.connection).await,
            Command::Node(command) => node::run(command, &cli.connection).await,
            Command::Team(command) => team::run(command, &cli.connection).await,
            Command::Key(command) => key::run(command, &cli.connection).await,
            Command::Login(command) => login::run(command, &cli.connection).await,
            Command::Deliveries(command) => deliveries::run(command, &cli.connection).await,
            Command::SigningKeys(command) => signing_keys::run(command, &cli.connection).await,
            Command::Webhook(command) => webhook::run(command).await,
            Command::Bench(args) => bench::run(args, &cli.connection).await,
        }
    })
}
