//! `kite stream`: the events of the team, as lines or into a command.

use agentpost::event::Event;
use agentpost::inbox::{Inbox, Options};
use agentpost::limits;
use agentpost_cli::terminal::escaped;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::config::Config;
use crate::environment::Environment;
use crate::exec::Exec;
use crate::listening::{self, Listening, Sink};
use crate::servers::{auth, ws_urls};

const HELP: &str = "\
Examples:
  kite stream                                        a line for each event of the team, as long as it runs
  kite stream --event-type agent.message --compact   only the summaries, only of mail
  kite stream --source agent-beta --json | jq -r .data.body
  kite stream --client-id archive --exec 'cat >> events.jsonl'

A line is [time] #seq type  summary, with the time of the event in the local zone. Line breaks and terminal control
characters are shown as \\n or \\u{1b}; --json leaves the text as it is. With --source and --event-type an event has to
fit both; a source fits an event whose type it is part of, too.

Without --client-id a stream shows what happens while it is connected. With it the server keeps the stream's place: the
first time it begins now, later it goes on after the last event it dealt with, on any node. Each ID has one place; the
server forgets it after 60 days without use.

--exec runs `sh -c CMD` for each event, one after another, in the place of printing it: the event is a line of JSON on
stdin, and in the environment are
  KITE_EVENT_ID, KITE_EVENT_TYPE, KITE_SEQ, KITE_TEAM_ID
  KITE_SOURCE         the name in the type: kite for com.kite.agent.message, unknown if there is none
  KITE_EVENT_SOURCE   the source of the CloudEvent: for mail a URL that ends with the sender
Dealt with is an event whose command ended with 0. If it fails, and there is a --client-id, the stream is opened again
after 1, 2, 4 ... 30 s and the event comes again, for ever, and no later one before it: let the command end with 0 for
what it cannot use. Without --client-id the event is passed over. When kite is stopped, so is a command that runs.";

#[derive(clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    /// Only events whose source or type contains this, such as an agent's id
    #[arg(long, value_parser = scope_text)]
    source: Option<String>,
    /// Only events whose type contains this
    #[arg(long, value_name = "TYPE", value_parser = scope_text)]
    event_type: Option<String>,
    /// Print one CloudEvent as JSON per line
    #[arg(long)]
    json: bool,
    /// Print the summaries only; --json wins over it
    #[arg(long)]
    compact: bool,
    /// Run a command for each event instead of printing it
    #[arg(long, value_name = "CMD", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    exec: Option<String>,
    /// Have the server keep this stream's place under a name
    #[arg(long, value_name = "ID", value_parser = client_id)]
    client_id: Option<String>,
    /// The least importance to show: low or normal; every event of this server is normal
    #[arg(long, value_name = "LEVEL", value_parser = importance)]
    importance: Option<()>,
}

/// Streams until stopped.
pub async fn run(args: Args, environment: &Environment, config: &Config) -> anyhow::Result<()> {
    let auth = auth(environment, config)?;
    let options = Options {
        urls: ws_urls(environment, config)?,
        token: auth.api_key.into(),
        team_id: auth.team_id.clone(),
        scopes: args.scopes(),
        client_id: args.client_id.clone(),
    };
    let sink = match args.exec.clone() {
        Some(command) => Sink::Command(Box::new(Exec::new(command, auth.team_id, args.client_id.is_some()))),
        None => Sink::Lines(args.lines()),
    };
    let listening = Listening {
        inbox: Inbox::new(options)?,
        wanted: Box::new(move |event| args.wants(event)),
        sink,
    };
    listening::run(listening).await
}

impl Args {
    /// What is asked of the server, which shows what any of them matches.
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

    /// Whether an event fits all that was asked for.
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

/// `[HH:MM:SS] #seq type  summary`, in the local time zone.
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

/// Part of a scope. The server refuses others, and a stream that is refused tries again for ever.
fn scope_text(text: &str) -> Result<String, String> {
    let most = limits::SCOPE_BYTES_MAX - "source:".len();
    match text.len() {
        0 => Err("it is empty".to_owned()),
        bytes if bytes > most => Err(format!("at most {most} bytes")),
        _ => Ok(text.to_owned()),
    }
}

/// A name that the server takes.
fn client_id(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > limits::CLIENT_ID_BYTES_MAX || text.contains(char::is_control) {
        return Err(format!("1 to {} printable bytes", limits::CLIENT_ID_BYTES_MAX));
    }
    Ok(text.to_owned())
}

/// The vendor's command line scores events in a queue of its own; where none are scored, all count as normal.
fn importance(level: &str) -> Result<(), &'static str> {
    match level {
        "low" | "normal" => Ok(()),
        "high" | "critical" => Err("every event of this server has importance normal: nothing would be shown"),
        _ => Err("expected low, normal, high or critical"),
    }
}
