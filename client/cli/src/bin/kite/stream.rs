//! `kite stream`: prints the events of the team, or runs a command for each.

use agentpost::kite::Event;
use agentpost::limits;
use agentpost_cli::terminal::escaped;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::config::Config;
use crate::environment::Environment;
use crate::exec::Exec;
use crate::listening::{self, Listening, Sink};
use crate::servers::post;

const HELP: &str = "\
Examples:
  kite stream                                        a line for each event of the team, as long as it runs
  kite stream --event-type agent.message --compact   only the summaries, only of mail
  kite stream --source agent-beta --json | jq -r .data.body
  kite stream --client-id archive --exec 'cat >> events.jsonl'

A line is [time] #seq type  summary, with the time of the event in the local time zone. Without --json, line breaks
and terminal control characters are printed as \\n or \\u{1b}. With both --source and --event-type, an event must
match both; --source matches the source or the type of an event.

Without --client-id a stream shows the events that happen while it is connected. With it the server keeps the position
of the stream under that ID: the first run begins now, and a later run continues after the last event that was
handled, on any node. The server forgets a position after 60 days without use.

--exec runs `sh -c CMD` for each event instead of printing it, one command at a time. The event is a line of JSON on
stdin, and the environment contains
  KITE_EVENT_ID, KITE_EVENT_TYPE, KITE_SEQ, KITE_TEAM_ID
  KITE_SOURCE         the name in the type: kite for com.kite.agent.message, unknown if there is none
  KITE_EVENT_SOURCE   the source of the CloudEvent: for mail a URL that ends with the sender
An event is handled when its command exits with 0. If the command fails, a stream with --client-id repeats the event
after 1, 2, 4 ... 30 s until the command succeeds, and no later event comes before it: let the command exit with 0 for
events that it cannot use. Without --client-id the event is skipped. When kite is stopped, it stops a running command
too.";

#[derive(clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    /// Only events whose source or type contains this text, such as the id of an agent
    #[arg(long, value_parser = scope_text)]
    source: Option<String>,
    /// Only events whose type contains this text
    #[arg(long, value_name = "TYPE", value_parser = scope_text)]
    event_type: Option<String>,
    /// Print each event as a line of JSON (CloudEvent)
    #[arg(long)]
    json: bool,
    /// Print the summaries only; --json takes precedence
    #[arg(long)]
    compact: bool,
    /// Run a command for each event instead of printing it
    #[arg(long, value_name = "CMD", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    exec: Option<String>,
    /// Let the server keep the position of this stream under this name
    #[arg(long, value_name = "ID", value_parser = client_id)]
    client_id: Option<String>,
    /// The least importance to print: low or normal; every event of this server is normal
    #[arg(long, value_name = "LEVEL", value_parser = importance)]
    importance: Option<()>,
}

/// Streams until stopped.
pub async fn run(args: Args, environment: &Environment, config: &Config) -> anyhow::Result<()> {
    let post = post(environment, config)?;
    let session = post.kite().session(args.scopes(), args.client_id.clone())?;
    let team = post.team().unwrap_or_default().to_owned();
    let sink = match args.exec.clone() {
        Some(command) => Sink::Command(Box::new(Exec::new(command, team, args.client_id.is_some()))),
        None => Sink::Lines(args.lines()),
    };
    let listening = Listening {
        session,
        wanted: Box::new(move |event| args.wants(event)),
        sink,
    };
    listening::run(listening).await
}

impl Args {
    /// The scopes for the server, which sends the events that match any of them.
    fn scopes(&self) -> Vec<String> {
        let source = self.source.iter().map(|name| format!("source:{name}"));
        let kind = self.event_type.iter().map(|name| format!("type:{name}"));
        let scopes: Vec<String> = source.chain(kind).collect();
        if scopes.is_empty() {
            vec!["*".to_owned()]
        } else {
            scopes
        }
    }

    /// Whether an event matches all filters.
    fn wants(&self, event: &Event) -> bool {
        let fits = |asked: &Option<String>, texts: &[&str]| {
            let asked = asked.as_deref().unwrap_or_default();
            texts.iter().any(|text| text.contains(asked))
        };
        fits(&self.source, &[event.source(), event.kind()]) && fits(&self.event_type, &[event.kind()])
    }

    fn lines(&self) -> fn(&Event) -> String {
        match (self.json, self.compact) {
            (true, _) => Event::to_string,
            (false, true) => compact_line,
            (false, false) => line,
        }
    }
}

/// `[HH:MM:SS] #seq type  summary`, with the time in the local time zone.
pub fn line(event: &Event) -> String {
    let time = event.time().parse().unwrap_or_else(|_| Timestamp::now());
    format!(
        "[{}] #{} {}  {}",
        time.to_zoned(TimeZone::system()).strftime("%H:%M:%S"),
        event.seq,
        escaped(event.kind()),
        escaped(event.summary().unwrap_or_default())
    )
}

/// The summary, or the type of an event that has none.
pub fn compact_line(event: &Event) -> String {
    escaped(event.summary().unwrap_or(event.kind())).into_owned()
}

/// Checks a part of a scope here, because a stream that the server refuses tries again forever.
fn scope_text(text: &str) -> Result<String, String> {
    let most = limits::SCOPE_BYTES_MAX - "source:".len();
    match text.len() {
        0 => Err("it is empty".to_owned()),
        bytes if bytes > most => Err(format!("at most {most} bytes")),
        _ => Ok(text.to_owned()),
    }
}

/// Checks a client id by the rules of the server.
fn client_id(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > limits::CLIENT_ID_BYTES_MAX || text.contains(char::is_control) {
        return Err(format!("1 to {} printable bytes", limits::CLIENT_ID_BYTES_MAX));
    }
    Ok(text.to_owned())
}

/// Checks an importance. This server does not rate events, so all of them count as normal.
fn importance(level: &str) -> Result<(), &'static str> {
    match level {
        "low" | "normal" => Ok(()),
        "high" | "critical" => Err("every event of this server has importance normal: nothing would be shown"),
        _ => Err("expected low, normal, high or critical"),
    }
}
