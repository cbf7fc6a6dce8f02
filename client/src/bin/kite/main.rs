//! `kite`: agent mail from a terminal or a script. Flags, output, errors and the configuration file are those of the
//! vendor's command line, so that its guide can be followed word for word.

mod agents;
mod config;
mod environment;
mod keys;
mod listen;
mod login;
mod logs;
mod register;
mod send;
mod servers;
mod status;
mod stream;

use std::io::Write;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use config::Config;
use environment::Environment;

const SERVERS: &str = "\
Servers and keys, the first that is set:
  key      KITE_API_KEY, [auth] api_key
  team     KITE_TEAM_ID, [auth] team_id
  listen   KITE_WS_URL, AGENTPOST_URLS, [server] url
  send     KITE_HOOK_BASE_URL, KITE_WS_URL, AGENTPOST_URLS, [server] http_base or url
AGENTPOST_URLS holds the HTTP URLs of several nodes with blanks between them. Together with a KITE_ variable it names
the nodes to turn to when that one does not answer. Variables may also stand in the file .env of the current folder;
the [sections] are those of ~/.config/kite/config.toml.";

#[derive(Parser)]
#[command(
    name = "kite",
    version,
    propagate_version = true,
    about = "Agent mail from the command line"
)]
#[command(after_help = SERVERS, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Get a key for this machine: somebody lets it in with a code
    Login(login::Args),
    /// Send and receive messages between the agents of a team
    #[command(subcommand, arg_required_else_help = true)]
    Agent(Agent),
    /// Print the team's events as they arrive, until stopped
    Stream(stream::Args),
    /// Print the team's latest events
    Logs(logs::Args),
    /// Create, list and revoke API keys of the team
    #[command(subcommand, arg_required_else_help = true)]
    Keys(keys::Command),
    /// Print where this machine is logged in, and the team's numbers
    Status,
}

#[derive(Subcommand)]
enum Agent {
    /// Give this machine an agent id; once is enough
    #[command(after_help = "\
Examples:
  kite agent register --name agent-alpha    the id is agent-alpha
  kite agent register                       the id is a fresh UUID

Nothing is sent: the id is written to ~/.config/kite/config.toml.")]
    Register(Register),
    /// Print messages to this agent as they arrive, until stopped
    #[command(after_help = "\
Examples:
  kite agent listen
  kite agent listen --as-id agent-beta --json | jq -r .data.body

A message is acknowledged once it is printed. What arrives while nobody listens waits in the inbox. In lines for
people, line breaks and terminal control characters of a message are shown as \\n or \\u{1b}; --json leaves the text
as it is.")]
    Listen(Listen),
    /// Send a message to an agent of the same team
    #[command(after_help = "\
Examples:
  kite agent send --to agent-alpha \"Here are the results you asked for.\"
  kite agent send --to agent-alpha --thread thread-abc123 --reply-to 01HABC \"Re: those results\"

The message is on the disks of a majority of nodes when the command succeeds. A failure that leaves the outcome open
is repeated by itself, and the message is stored once.")]
    Send(Send),
    /// List the agents of the team, and who listens
    List(agents::Args),
}

#[derive(Args)]
struct Register {
    /// A name for people; the id is made of its letters and digits
    #[arg(long)]
    name: Option<String>,
}

#[derive(Args)]
struct Listen {
    /// Listen as this agent instead of the registered one
    #[arg(long, value_name = "AGENT_ID")]
    as_id: Option<String>,
    /// Print one CloudEvent as JSON per line
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Send {
    /// The receiving agent
    #[arg(long, value_name = "AGENT_ID")]
    to: String,
    /// The sending agent; the registered one when absent or without a value
    #[arg(long, value_name = "AGENT_ID", num_args = 0..=1)]
    from: Option<Option<String>>,
    /// Groups messages into a conversation
    #[arg(long, value_name = "THREAD_ID")]
    thread: Option<String>,
    /// The event that this message answers
    #[arg(long, value_name = "EVENT_ID")]
    reply_to: Option<String>,
    /// The message
    body: String,
}

fn main() -> ExitCode {
    let Cli { command } = Cli::parse();
    match run(command) {
        Ok(()) => ExitCode::SUCCESS,
        // What was asked for is done; only nobody reads about it any more.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            note(&format!("Error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

/// A line on stderr, if anybody is there to read it.
fn note(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

fn run(command: Command) -> anyhow::Result<()> {
    let mut config = Config::load(Config::default_path()?)?;
    if let Command::Agent(Agent::Register(args)) = command {
        return register::run(args.name, &mut config);
    }
    let environment = Environment::load()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match command {
        Command::Login(args) => runtime.block_on(login::run(args, &environment, &mut config)),
        Command::Agent(Agent::Register(_)) => unreachable!("handled above"),
        Command::Agent(Agent::Listen(args)) => runtime.block_on(listen::run(args, &environment, &config)),
        Command::Agent(Agent::Send(args)) => runtime.block_on(send::run(args, &environment, &config)),
        Command::Agent(Agent::List(args)) => runtime.block_on(agents::run(args, &environment, &config)),
        Command::Stream(args) => runtime.block_on(stream::run(args, &environment, &config)),
        Command::Logs(args) => runtime.block_on(logs::run(args, &environment, &config)),
        Command::Keys(command) => runtime.block_on(keys::run(command, &environment, &config)),
        Command::Status => runtime.block_on(status::run(&environment, &config)),
    }
}
