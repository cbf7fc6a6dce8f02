//! `kite`: agent mail from a terminal or a script. Flags, output, errors and the configuration file are those of the
//! vendor's command line, so that its guide can be followed word for word.

mod agents;
mod config;
mod environment;
mod exec;
#[cfg(test)]
mod forgery;
mod keys;
mod listen;
mod listening;
mod login;
mod logs;
mod register;
mod send;
mod servers;
mod status;
mod stop;
mod stream;

use std::io::Write;
use std::process::ExitCode;

use agentpost_cli::terminal::escaped;
use clap::{Parser, Subcommand};

use config::Config;
use environment::Environment;
use stop::Stopped;

const HELP: &str = "\
First steps:
  kite login --server https://post.example:7700     get a key: an administrator lets this machine in
  kite agent register --name agent-alpha            give this machine an agent id
  kite agent listen                                 print its mail as it comes
  kite agent send --to agent-alpha \"Hello.\"         from here or any other machine of the team
Watching:
  kite agent list                                   who is there, and who listens
  kite stream                                       all mail of the team as it comes; --exec runs a command for each
  kite logs --limit 20                              the latest events";

const EXIT_CODES: &str = "\
Exit codes: 0 done, or nobody reads the output any more; 1 failed, with `Error: ...` on stderr; 2 wrong usage; 128 and
more: stopped by a signal.";

#[derive(Parser)]
#[command(
    name = "kite",
    version,
    propagate_version = true,
    about = "Agent mail from the command line",
    arg_required_else_help = true,
    after_help = format!("{HELP}\n\n{}\n\n{EXIT_CODES}", servers::HELP),
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Get a key for this machine: somebody lets it in with a code
    Login(login::Args),
    /// Print where this machine is logged in, and the team's numbers
    Status,
    /// Send and receive messages between the agents of a team
    #[command(subcommand, arg_required_else_help = true, after_help = AGENT_HELP)]
    Agent(Agent),
    /// Print the team's events as they arrive, or run a command for each, until stopped
    Stream(stream::Args),
    /// Print the team's latest events
    Logs(logs::Args),
    /// Create, list and revoke API keys of the team
    #[command(subcommand, arg_required_else_help = true)]
    Keys(keys::Command),
}

const AGENT_HELP: &str = "\
Examples:
  kite agent register --name agent-alpha
  kite agent listen
  kite agent send --to agent-alpha \"Here are the results you asked for.\"

A listener that sees nothing: --to has to be the listener's id exactly, upper and lower case differ, and both keys have
to be of the same team. `send failed (403 ...)`: the key lacks the permission write; get one with
`kite keys create --permissions write`.";

#[derive(Subcommand)]
enum Agent {
    /// Give this machine an agent id; once is enough
    Register(register::Args),
    /// Print messages to this agent as they arrive, until stopped
    Listen(listen::Args),
    /// Send a message to an agent of the same team
    Send(send::Args),
    /// List the agents of the team, and who listens
    List(agents::Args),
}

fn main() -> ExitCode {
    let Cli { command } = Cli::parse();
    match run(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => end(&error),
    }
}

/// The exit code of a failure, which is told unless nobody has to know.
fn end(error: &anyhow::Error) -> ExitCode {
    if let Some(stopped) = error.downcast_ref::<Stopped>() {
        return ExitCode::from(stopped.exit_code());
    }
    let io = error.downcast_ref::<std::io::Error>();
    if io.is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe) {
        // What was asked for is done; only nobody reads about it any more.
        return ExitCode::SUCCESS;
    }
    let text = format!("Error: {error:#}");
    // A server's sentence stays one line; those of the commands may have several.
    match error.is::<agentpost::Error>() {
        true => note(&escaped(&text)),
        false => note(&text),
    }
    ExitCode::FAILURE
}

/// A line on stderr, if anybody is there to read it.
fn note(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

fn run(command: Command) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(Box::pin(carry_out(command)));
    // A write to a reader that stands still is not waited for.
    runtime.shutdown_background();
    done
}

async fn carry_out(command: Command) -> anyhow::Result<()> {
    let mut config = Config::load(Config::default_path()?)?;
    let environment = Environment::load()?;
    match command {
        Command::Login(args) => login::run(args, &environment, &mut config).await,
        Command::Status => status::run(&environment, &config).await,
        Command::Agent(Agent::Register(args)) => register::run(&args, &mut config),
        Command::Agent(Agent::Listen(args)) => listen::run(args, &environment, &config).await,
        Command::Agent(Agent::Send(args)) => send::run(args, &environment, &config).await,
        Command::Agent(Agent::List(args)) => agents::run(args, &environment, &config).await,
        Command::Stream(args) => stream::run(args, &environment, &config).await,
        Command::Logs(args) => logs::run(args, &environment, &config).await,
        Command::Keys(command) => keys::run(command, &environment, &config).await,
    }
}
