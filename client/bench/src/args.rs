//! The arguments of `agentpost bench`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;

use crate::control;

/// The arguments of `agentpost bench`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  agentpost bench
  agentpost bench --mode batch --in-flight 1,16 --runs 1
  agentpost bench --mode ws-push --tsv
  agentpost bench --preload 1000000 --mode sustain --seconds 600

Modes:
  http        sends of one message each; in flight counts messages
  batch       sends of 100 messages each; in flight counts requests, the figure counts messages
  ws-push     time from a send on one node to the event on a WebSocket of another, at low load
  fanout      publishes to a topic with 1,000 subscribers; the figure counts inbox entries
  deliver     webhook deliveries to 100 URLs of 10 teams in this program, and the log entries that they cost; then how long
              deliveries wait for their call, and whether a dead and a dripping URL delay the others
  preload     only sends the messages of --preload
  sustain     batches of 10 teams for ten minutes: one row for each 10 s with rate, latency, memory, bytes on disk and leader
              changes; then the last minute in percent of the first
  keyed       sends with an idempotency key each; keyed-batch sends 100 of them a request. On nodes whose cluster time runs
              fast, the rows of a day ago are swept meanwhile: --sizes day=SECONDS tells how long a day takes
  full-inbox  batches to inboxes that hold 100,000 entries, in turns with batches to empty ones, and single sends of another
              team meanwhile
  idle-teams  100,000 teams that do nothing: elections and CPU of a node, and single sends before and after
  busy-teams  single sends of 2,000 teams in turns with those of 100
  agents      single sends to a team of 1,000,000 agents in turns with those to 1,000
  crash       kills the leader under load: the longest time without any acknowledgement, and whether mail was lost
  failover    kills the leader again and again and starts it again: the time without any acknowledgement
  restart     kills a follower and starts it again: the time to /health and to /readyz
  join        an empty node joins under a steady load: the time until it is a voter, and the rate meanwhile

The benchmark creates teams without limits, and keys that it revokes at the end. A send counts when it is acknowledged:
flushed to disk by a majority of the nodes. With one request in flight the leader and a follower are also measured
alone. Columns of --tsv: peer, metric, in flight, run, value, unit, p50 ms, p99 ms, note. The note gives for each node
its log flushes per acknowledged message and its CPU seconds, then the CPU seconds of this program and of the whole
machine.")]
pub struct Args {
    /// What to measure; separate several by commas
    #[arg(long, value_enum, value_delimiter = ',', default_value = "http")]
    mode: Vec<Mode>,
    /// Requests in flight at a time; http and batch measure each of several on its own, the others take the largest
    /// [default: 1,16,64,256 for http and batch, 16 or 64 for the others]
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=4096))]
    in_flight: Vec<u32>,
    /// Length of one measurement [default: 4, sustain and idle-teams 600, keyed 60, join 10]
    #[arg(long, value_name = "SECONDS")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    seconds: Option<u64>,
    /// Load before each measurement, not counted
    #[arg(long, value_name = "SECONDS", default_value_t = 1)]
    warm_up: u64,
    /// Messages that are sent before the first measurement, spread over ten teams
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    preload: u64,
    /// Sizes that differ from those above: entries of full-inbox, teams of idle-teams and busy-teams, agents of agents, and
    /// day, the seconds that a day of cluster time takes
    #[arg(long, value_name = "NAME=COUNT,…", value_delimiter = ',', value_parser = size)]
    sizes: Vec<(Size, u64)>,
    /// Measurements of each kind [default: 3, with --tsv 1; sustain 1]
    #[arg(long, value_name = "COUNT")]
    runs: Option<u32>,
    /// Nodes that get the load
    #[arg(long, value_enum, default_value = "any")]
    target: Target,
    /// Print one row for each measurement, for other programs
    #[arg(long)]
    tsv: bool,
    /// Seed of the random inboxes; the same seed repeats the choice
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Threads of the load generator
    #[arg(long, default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: u16,
    /// For crash, failover and restart: the process id of each node, so that it can be killed
    #[arg(long, value_name = "NODE=PID,…", value_delimiter = ',', value_parser = control::process)]
    kill: Vec<(u64, u32)>,
    /// For failover, restart and join: a program that starts the node whose id is its argument, and prints the process id
    #[arg(long, value_name = "PROGRAM")]
    start: Option<PathBuf>,
    /// For failover: how often the leader is killed
    #[arg(long, value_name = "COUNT", default_value_t = 20)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    kills: u32,
    /// For join: where the other nodes and the clients reach the new node
    #[arg(long, value_name = "HOST:PORT,URL", value_parser = place)]
    place: Option<(String, String)>,
    /// For join: sends per second
    #[arg(long, value_name = "SENDS", default_value_t = 5_000)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    rate: u64,
    /// Directories whose bytes on disk the rows report, one for each node
    #[arg(long, value_name = "NODE=DIR,…", value_delimiter = ',', value_parser = directory)]
    data: Vec<(u64, PathBuf)>,
}

/// A kind of measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    Http,
    Batch,
    WsPush,
    Fanout,
    Deliver,
    Preload,
    Sustain,
    Keyed,
    KeyedBatch,
    FullInbox,
    IdleTeams,
    BusyTeams,
    Agents,
    Crash,
    Failover,
    Restart,
    Join,
}

impl Mode {
    /// The name on the command line.
    pub fn name(self) -> String {
        let value = self.to_possible_value();
        value.map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// Whether it spreads its load over several teams.
    pub fn has_many_teams(self) -> bool {
        matches!(self, Mode::Deliver | Mode::Sustain | Mode::Preload)
    }

    fn kills(self) -> bool {
        matches!(self, Mode::Crash | Mode::Failover | Mode::Restart)
    }

    fn starts(self) -> bool {
        matches!(self, Mode::Failover | Mode::Restart | Mode::Join)
    }
}

/// A size that `--sizes` can change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Size {
    /// Entries of a full inbox.
    FullInbox,
    /// Idle teams.
    IdleTeams,
    /// The larger number of busy teams.
    BusyTeams,
    /// The larger number of agents of a team.
    Agents,
    /// Seconds that a day of cluster time takes; 0 if it takes a day.
    Day,
}

impl Size {
    fn default(self) -> u64 {
        match self {
            Size::FullInbox | Size::IdleTeams => 100_000,
            Size::BusyTeams => 2_000,
            Size::Agents => 1_000_000,
            Size::Day => 0,
        }
    }
}

/// The nodes that get the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Target {
    Any,
    Leader,
    Follower,
}

impl Target {
    /// What the name of a row ends with.
    pub fn suffix(self) -> &'static str {
        match self {
            Target::Any => "",
            Target::Leader => "-leader",
            Target::Follower => "-follower",
        }
    }
}

fn size(text: &str) -> Result<(Size, u64), String> {
    let (name, count) = text
        .split_once('=')
        .ok_or("expected NAME=COUNT, such as idle-teams=1000")?;
    let count = count.parse().map_err(|_| format!("'{count}' is no count"))?;
    Ok((Size::from_str(name, false)?, count))
}

fn place(text: &str) -> Result<(String, String), String> {
    let (peer, url) = text.split_once(',').ok_or("expected HOST:PORT,URL")?;
    Ok((peer.to_owned(), url.to_owned()))
}

fn directory(text: &str) -> Result<(u64, PathBuf), String> {
    let parsed = text
        .split_once('=')
        .and_then(|(node, dir)| Some((node.parse().ok()?, dir.into())));
    parsed.ok_or_else(|| "expected NODE=DIR, such as 1=/var/lib/agentpost".to_owned())
}

impl Args {
    /// The runtime of the load generator. One thread costs the least; more threads help only if cores are idle.
    pub fn runtime(&self) -> anyhow::Result<tokio::runtime::Runtime> {
        let runtime = match self.threads {
            1 => tokio::runtime::Builder::new_current_thread().enable_all().build(),
            threads => tokio::runtime::Builder::new_multi_thread()
                .worker_threads(threads.into())
                .enable_all()
                .build(),
        };
        runtime.context("cannot start the runtime")
    }

    /// Fails if an argument is missing that a mode needs.
    pub fn validate(&self) -> anyhow::Result<()> {
        for mode in &self.mode {
            let name = mode.name();
            if mode.kills() && self.kill.is_empty() {
                bail!("the mode {name} kills nodes: name the process of each with --kill 1=PID,2=PID,…");
            }
            if mode.starts() && self.start.is_none() {
                bail!("the mode {name} starts nodes: name a program that does it with --start PROGRAM");
            }
            ensure!(
                *mode != Mode::Join || self.place.is_some(),
                "the mode join adds a node: tell where it is reached with --place HOST:PORT,URL"
            );
            ensure!(
                *mode != Mode::Preload || self.preload > 0,
                "the mode preload needs the number of messages: --preload COUNT"
            );
        }
        Ok(())
    }

    /// Whether `--tsv` was given.
    pub fn is_tsv(&self) -> bool {
        self.tsv
    }

    pub(crate) fn modes(&self) -> &[Mode] {
        &self.mode
    }

    pub(crate) fn runs(&self) -> u32 {
        self.runs.unwrap_or(if self.tsv { 1 } else { 3 })
    }

    /// The requests in flight that http and batch measure.
    pub(crate) fn in_flight_list(&self) -> Vec<u32> {
        match self.in_flight.is_empty() {
            true => vec![1, 16, 64, 256],
            false => self.in_flight.clone(),
        }
    }

    /// The requests in flight of a mode that measures one number only.
    pub(crate) fn in_flight(&self, default: u32) -> u32 {
        self.in_flight.iter().copied().max().unwrap_or(default)
    }

    pub(crate) fn seconds(&self, default: u64) -> u64 {
        self.seconds.unwrap_or(default)
    }

    /// The length of a measurement of a mode without a default of its own.
    pub(crate) fn duration(&self) -> Duration {
        Duration::from_secs(self.seconds(4))
    }

    pub(crate) fn warm_up(&self) -> Duration {
        Duration::from_secs(self.warm_up)
    }

    pub(crate) fn preload(&self) -> u64 {
        self.preload
    }

    pub(crate) fn size(&self, of: Size) -> u64 {
        let given = self.sizes.iter().rev().find(|(size, _)| *size == of);
        given.map_or(of.default(), |(_, count)| *count)
    }

    pub(crate) fn target(&self) -> Target {
        self.target
    }

    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    pub(crate) fn processes(&self) -> &[(u64, u32)] {
        &self.kill
    }

    pub(crate) fn starter(&self) -> Option<&PathBuf> {
        self.start.as_ref()
    }

    pub(crate) fn kills(&self) -> u32 {
        self.kills
    }

    pub(crate) fn place(&self) -> Option<&(String, String)> {
        self.place.as_ref()
    }

    pub(crate) fn rate(&self) -> u64 {
        self.rate
    }

    pub(crate) fn data(&self) -> &[(u64, PathBuf)] {
        &self.data
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        args: Args,
    }

    fn parsed(words: &str) -> Args {
        let words = std::iter::once("bench").chain(words.split_whitespace());
        Program::try_parse_from(words).unwrap().args
    }

    #[test]
    fn a_mode_has_defaults_of_its_own() {
        let args = parsed("--mode sustain,full-inbox --sizes full-inbox=500,idle-teams=20");
        assert_eq!(args.modes(), [Mode::Sustain, Mode::FullInbox]);
        assert_eq!((args.seconds(600), args.in_flight(16)), (600, 16));
        let sizes = [
            Size::FullInbox,
            Size::IdleTeams,
            Size::BusyTeams,
            Size::Agents,
            Size::Day,
        ];
        assert_eq!(sizes.map(|size| args.size(size)), [500, 20, 2_000, 1_000_000, 0]);
        let args = parsed("--seconds 7 --in-flight 1,8");
        assert_eq!((args.seconds(600), args.in_flight(16)), (7, 8));
        assert_eq!(args.in_flight_list(), [1, 8]);
        assert_eq!(parsed("").in_flight_list(), [1, 16, 64, 256]);
    }

    #[test]
    fn sizes_places_and_directories_are_parsed() {
        assert_eq!(size("agents=10"), Ok((Size::Agents, 10)));
        for bad in ["", "agents", "agents=", "agents=x", "nothing=1"] {
            assert!(size(bad).is_err(), "{bad}");
        }
        assert_eq!(
            place("127.0.0.1:7803,http://127.0.0.1:7703"),
            Ok(("127.0.0.1:7803".to_owned(), "http://127.0.0.1:7703".to_owned()))
        );
        assert_eq!(directory("2=/data"), Ok((2, "/data".into())));
        assert!(place("x").is_err() && directory("/data").is_err() && directory("a=/data").is_err());
    }

    #[test]
    fn a_mode_names_the_argument_that_it_lacks() {
        let complaint = |words: &str| parsed(words).validate().unwrap_err().to_string();
        assert!(complaint("--mode crash").contains("--kill"));
        assert!(complaint("--mode failover --kill 1=77").contains("--start"));
        assert!(complaint("--mode join --start /bin/true").contains("--place"));
        assert!(complaint("--mode preload").contains("--preload"));
        assert!(
            parsed("--mode restart --kill 1=77 --start /bin/true")
                .validate()
                .is_ok()
        );
    }
}
