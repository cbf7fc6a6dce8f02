//! `kite`, agent mail from a terminal or a script. It has the flags, output, errors and configuration file of the
//! vendor's command line, so that the vendor's guide works word for word.

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
  kite login --server https://post.example:7700     get a key; an administrator approves this machine
  kite agent register --name agent-alpha            give this machine an agent id
  kite agent listen                                 print its mail as it arrives
  kite agent send --to agent-alpha \"Hello.\"         from here or any other machine of the team
Watching:
  kite agent list                                   list the agents, and how many listeners each has
  kite stream                                       print the events of the team; --exec runs a command for each
  kite logs --limit 20                              print the latest events";

const EXIT_CODES: &str = "\
Exit codes: 0 done, or the reader of the output closed the pipe; 1 failed, with `Error: ...` on stderr; 2 wrong usage;
128 + N stopped by signal N.";

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
    /// Get a key for this machine: an administrator approves it with a code
    Login(login::Args),
    /// Print the team and server of this machine, and the numbers of the team
    Status,
    /// Send and receive messages between the agents of a team
    #[command(subcommand, arg_required_else_help = true, after_help = AGENT_HELP)]
    Agent(Agent),
    /// Print the events of the team as they arrive, or run a command for each, until stopped
    Stream(stream::Args),
    /// Print the latest events of the team
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

If a listener receives nothing: --to must be exactly the id of the listener, in the same case, and both keys must belong
to the same team. If sending fails with 403: the key lacks the permission write; create another key with
`kite keys create --permissions write`.";

#[derive(Subcommand)]
enum Agent {
    /// Give this machine an agent id; once is enough
    Register(register::Args),
    /// Print messages to this agent as they arrive, until stopped
    Listen(listen::Args),
    /// Send a message to an agent of the same team
    Send(send::Args),
    /// List the agents of the team and the number of their listeners
    List(agents::Args),
}

fn main() -> ExitCode {
    let Cli { command } = Cli::parse();
    match run(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => end(&error),
    }
}

/// Prints an error and returns its exit code. A signal and a closed pipe print nothing.
fn end(error: &anyhow::Error) -> ExitCode {
    if let Some(stopped) = error.downcast_ref::<Stopped>() {
        return ExitCode::from(stopped.exit_code());
    }
    let io = error.downcast_ref::<std::io::Error>();
    if io.is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe) {
        // The command did its work; the reader of its output, such as `head`, closed the pipe.
        return ExitCode::SUCCESS;
    }
    let text = format!("Error: {error:#}");
    // A server's text is shown on one line; the errors of the commands themselves may have several.
    match error.is::<agentpost::Error>() {
        true => note(&escaped(&text)),
        false => note(&text),
    }
    ExitCode::FAILURE
}

/// Prints a line to stderr. A closed stderr is ignored.
fn note(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

fn run(command: Command) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(Box::pin(carry_out(command)));
    // A write to stdout may still block on a reader that does not read; it is abandoned.
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
