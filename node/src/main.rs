//! `agentpostd`, the node daemon: arguments, configuration, logs, exit code.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use agentpost_node::base::config::{self, Config, LogFormat};
use agentpost_node::node::dev::Dev;
use agentpost_node::node::{self, RunningNode, Started, quarantine};
use agentpost_raft_store::disk::in_use;
use clap::{Parser, Subcommand};
use rustix::process::{Signal, getpid, kill_process};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Rows, entries and requests are many small short-lived buffers, and so are RocksDB's. glibc's allocator needs a
/// quarter more CPU per message for them.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Time limit for the threads that use RocksDB to end; then the process kills itself.
const EXIT_DEADLINE: Duration = Duration::from_secs(10);
/// The exit code for an invalid configuration or invalid arguments.
const EXIT_USAGE: u8 = 2;

/// The daemon of Agentpost, a replicated post office for AI agents.
///
/// A cluster is one, three or five of these processes. Any of them answers any request.
#[derive(Parser)]
#[command(
    name = "agentpostd",
    version,
    arg_required_else_help = true,
    after_help = "\
Every setting can also come from the environment as AGENTPOST_<SECTION>__<KEY>, for example
AGENTPOST_NODE__CLIENT_ADDR=127.0.0.1:7701. `agentpostd config` prints all of them, explained.

Exit codes: 0 stopped on request, 1 failed (the process kills itself with SIGKILL if a disk that hangs blocks the exit),
2 invalid configuration or arguments."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run one node of a cluster.
    ///
    /// Runs until SIGTERM or SIGINT, then hands leadership over and stops in order. Logs go to stderr.
    Start {
        /// The TOML file with the settings that differ from the defaults.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Run a single node for development, without any configuration.
    ///
    /// Creates the data directory, a team `default` and keys for it, prints them with commands to try, and
    /// serves until Ctrl-C. The next start with the same directory continues where this one ended.
    Dev {
        /// The directory of all files of the node.
        #[arg(long, value_name = "DIR", default_value = "agentpost-dev")]
        data_dir: PathBuf,
        /// The client port, on 127.0.0.1. The peer port is 100 above it.
        #[arg(long, default_value_t = 7700)]
        port: u16,
    },
    /// Print all settings with their defaults and meanings.
    Config,
}

fn main() -> ExitCode {
    let prepared = match Arguments::parse().command {
        Command::Start { config } => Config::load(config.as_deref())
            .map(|config| (config, None))
            .map_err(Into::into),
        Command::Dev { data_dir, port } => prepare_dev(&data_dir, port),
        Command::Config => {
            print!("{}", config::DEFAULT);
            return ExitCode::SUCCESS;
        }
    };
    let (config, dev) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            eprintln!("agentpostd: {error:#}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    if let Err(error) = start_logging(&config) {
        eprintln!("agentpostd: log.level: {error}");
        return ExitCode::from(EXIT_USAGE);
    }
    match runtime(config.runtime.worker_threads) {
        Ok(runtime) => run(runtime, config, dev),
        Err(error) => failed(&error.into()),
    }
}

fn prepare_dev(dir: &std::path::Path, port: u16) -> anyhow::Result<(Config, Option<Dev>)> {
    let dev = Dev::prepare(dir)?;
    let mut config = dev.config(port)?;
    if std::env::var_os("AGENTPOST_LOG__LEVEL").is_none() {
        // Info logs would hide the keys on the screen, which matter more.
        config.log.level = "warn".to_owned();
    }
    Ok((config, Some(dev)))
}

fn start_logging(config: &Config) -> anyhow::Result<()> {
    let filter = EnvFilter::builder().parse(&config.log.level)?;
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let text = match config.log.format {
        LogFormat::Auto => std::io::stderr().is_terminal(),
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    if text {
        logs.with_ansi(std::io::stderr().is_terminal()).init();
    } else {
        logs.json().flatten_event(true).init();
    }
    Ok(())
}

/// Creates the runtime; 0 means one thread per core. A single thread needs no work-stealing scheduler and is faster
/// without one.
fn runtime(worker_threads: usize) -> std::io::Result<Runtime> {
    use tokio::runtime::Builder;
    let mut builder = match worker_threads {
        0 => Builder::new_multi_thread(),
        1 => Builder::new_current_thread(),
        _ => {
            let mut builder = Builder::new_multi_thread();
            builder.worker_threads(worker_threads);
            builder
        }
    };
    builder.enable_all().thread_name("agentpostd").build()
}

/// Runs the node. Returns when its tasks have ended and no thread uses RocksDB any more.
fn run(runtime: Runtime, config: Config, dev: Option<Dev>) -> ExitCode {
    let served = runtime.block_on(serve(config, dev));
    let code = served.unwrap_or_else(|error| failed(&error));
    limit_the_exit();
    runtime.shutdown_background();
    in_use::end();
    code
}

fn failed(error: &anyhow::Error) -> ExitCode {
    tracing::error!(error = format!("{error:#}"), "agentpostd failed; the error says why");
    ExitCode::FAILURE
}

/// Kills the process if it has not ended at the deadline. A thread that touches a failed disk may hang. Every
/// acknowledged write is on disk or on the other nodes, and SIGKILL writes no core dump to that disk.
fn limit_the_exit() {
    std::thread::spawn(|| {
        std::thread::sleep(EXIT_DEADLINE);
        tracing::error!("a thread hangs in the disk, so this process kills itself; check the disk");
        let _ = kill_process(getpid(), Signal::KILL);
    });
}

async fn serve(config: Config, dev: Option<Dev>) -> anyhow::Result<ExitCode> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let started = tokio::select! {
        started = node::start(config.clone()) => started?,
        // An interrupted start is like a crash, which the data directory survives at any point.
        _ = terminate.recv() => return Ok(ExitCode::SUCCESS),
        _ = interrupt.recv() => return Ok(ExitCode::SUCCESS),
    };
    let node = match started {
        Started::Serving(node) => node,
        Started::Quarantined(quarantined) => {
            let shutdown = CancellationToken::new();
            let stop = shutdown.clone();
            tokio::spawn(async move {
                tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
                stop.cancel();
            });
            quarantine::serve(&config, quarantined, shutdown).await;
            return Ok(ExitCode::SUCCESS);
        }
    };
    let served = tokio::select! {
        _ = terminate.recv() => Ok("SIGTERM"),
        _ = interrupt.recv() => Ok("SIGINT"),
        reason = node.failed() => Err(anyhow::Error::msg(reason)),
        Err(error) = welcome(&node, dev) => Err(error),
    };
    match served {
        Ok(signal) => {
            tracing::info!(signal, "stopping");
            tokio::select! {
                () = node.stop() => tracing::info!("stopped"),
                _ = terminate.recv() => tracing::warn!("second SIGTERM: stopping at once"),
                _ = interrupt.recv() => tracing::warn!("second SIGINT: stopping at once"),
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            let code = failed(&error);
            limit_the_exit();
            node.abort().await;
            Ok(code)
        }
    }
}

/// Prints the developer's welcome; returns only on failure.
async fn welcome(node: &RunningNode, dev: Option<Dev>) -> anyhow::Result<()> {
    if let Some(dev) = dev {
        let welcome = dev.welcome(node).await?;
        // A node whose terminal was closed continues to serve.
        let _ = writeln!(std::io::stdout(), "{welcome}");
    }
    std::future::pending().await
}
