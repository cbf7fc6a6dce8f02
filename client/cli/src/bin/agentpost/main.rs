//! `agentpost`: the operator's command line. A file per noun; every command is a call of the library.

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

Any node of the cluster serves; with several URLs the next one is asked when one does not answer. The admin key is in
the file that bootstrap.admin_key_file names on the node that founded the cluster.
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
    /// Look at the nodes and act on them
    #[command(subcommand, arg_required_else_help = true)]
    Cluster(cluster::Command),
    /// Bring the node of this machine back into the cluster
    #[command(subcommand, arg_required_else_help = true)]
    Node(node::Command),
    /// Create and list teams
    #[command(subcommand, arg_required_else_help = true)]
    Team(team::Command),
    /// Create, list and revoke API keys
    #[command(subcommand, arg_required_else_help = true)]
    Key(key::Command),
    /// Let machines in that wait with the code of `kite login`, or turn them away
    #[command(subcommand, arg_required_else_help = true)]
    Login(login::Command),
    /// List deliveries to webhooks, look at one, deliver dead ones again
    #[command(subcommand, arg_required_else_help = true)]
    Deliveries(deliveries::Command),
    /// Show and rotate what the webhooks of a team are signed with
    #[command(subcommand, arg_required_else_help = true)]
    SigningKeys(signing_keys::Command),
    /// Receive webhooks on this machine: for trying things out
    #[command(subcommand, arg_required_else_help = true)]
    Webhook(webhook::Command),
    /// Measure acknowledged sends, webhook deliveries, fan-out or push latency
    Bench(agentpost_bench::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of a pipe may have enough.
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
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
