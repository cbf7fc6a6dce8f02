//! The loop of `kite agent listen` and `kite stream`. It prints events to stdout or runs a command for each, one after
//! another, and prints everything else to stderr. It ends when the process is stopped, the reader closes the output, or
//! the server rejects the key.
//!
//! An event is acknowledged when it is handled: stdout has taken its line, or its command exited with 0. The session
//! stays open while a command runs and while the output is blocked.
//!
//! A server may count an answered ping as an acknowledgement of everything before it, until a client has acknowledged
//! for the first time. `Session::attend` therefore acknowledges the handled events before it answers a ping.

use std::collections::VecDeque;

use agentpost::kite::{Event, Notice, Session};
use agentpost_cli::terminal::escaped;
use tokio::io::AsyncWriteExt;

use crate::exec::{Exec, Outcome};
use crate::note;
use crate::stop::Stop;

/// The number of recent events that are recognised when a reconnect delivers them again.
const REMEMBERED: usize = 1024;

/// The parts of the loop.
pub struct Listening {
    /// The source of the events.
    pub session: Session,
    /// Events that do not pass this filter are acknowledged and dropped.
    pub wanted: Box<dyn Fn(&Event) -> bool>,
    /// The destination of the events.
    pub sink: Sink,
}

/// The destination of events.
pub enum Sink {
    /// A line on stdout for each event. The function returns it without a line end.
    Lines(fn(&Event) -> String),
    /// A command for each event.
    Command(Box<Exec>),
}

/// Handles events until the loop ends. No command runs on afterwards.
pub async fn run(mut listening: Listening) -> anyhow::Result<()> {
    let mut stop = Stop::new()?;
    let outcome = tokio::select! {
        outcome = deal(&mut listening) => outcome,
        stopped = stop.signal() => Err(stopped.into()),
    };
    if let Sink::Command(exec) = &mut listening.sink {
        exec.end(stop.signal()).await;
    }
    listening.session.close().await;
    outcome
}

async fn deal(listening: &mut Listening) -> anyhow::Result<()> {
    let Listening { session, wanted, sink } = listening;
    let mut dealt_with = Recent::default();
    let mut notes = Notes::default();
    loop {
        let event = match session.next().await? {
            Notice::Event(event) => event,
            notice => {
                if let Some(line) = notes.line(&notice) {
                    note(&line);
                }
                continue;
            }
        };
        if !wanted(&event) || dealt_with.has(event.id()) {
            session.ack(event.seq).await;
            continue;
        }
        let outcome = tokio::select! {
            biased;
            outcome = sink.take(&event) => outcome?,
            never = session.attend() => match never {},
        };
        match outcome {
            Outcome::Done => {
                dealt_with.add(event.id());
                session.ack(event.seq).await;
            }
            Outcome::PassedOver => {}
            Outcome::Repeat { after } => session.reopen(after).await,
        }
    }
}

impl Sink {
    async fn take(&mut self, event: &Event) -> std::io::Result<Outcome> {
        match self {
            Sink::Lines(line) => {
                let line = line(event) + "\n";
                // tokio writes on another thread, so a reader that does not read cannot keep the process from ending.
                let mut out = tokio::io::stdout();
                out.write_all(line.as_bytes()).await?;
                out.flush().await?;
                Ok(Outcome::Done)
            }
            Sink::Command(exec) => Ok(exec.run(event).await),
        }
    }
}

/// Formats the lines about the session.
#[derive(Default)]
pub struct Notes {
    dialled: String,
}

impl Notes {
    /// The line of a notice, if it has one.
    pub fn line(&mut self, notice: &Notice) -> Option<String> {
        Some(match notice {
            Notice::Event(_) => return None,
            Notice::Connecting { url } => {
                // A reconnect to the same node is already announced by the line about the pause.
                if *url == self.dialled {
                    return None;
                }
                self.dialled.clone_from(url);
                format!("Connecting to {}...", escaped(url))
            }
            Notice::Connected { last_seq, .. } => format!("Connected (last_seq: {last_seq})"),
            Notice::CursorExpired { oldest_available_seq } => {
                format!("Some mail was removed before it was read; continuing at seq {oldest_available_seq}")
            }
            Notice::BillingBlock { reason } => {
                format!("The team cannot send now, only receive: {}", escaped(reason))
            }
            Notice::Disconnected { reason } => format!("Disconnected: {}", escaped(reason)),
            Notice::ConnectionFailed { reason } => format!("Connection failed: {}", escaped(reason)),
            Notice::Reconnecting { after } => format!("Reconnecting in {}s...", after.as_secs()),
        })
    }
}

/// The ids of recent events, oldest first.
#[derive(Default)]
struct Recent(VecDeque<String>);

impl Recent {
    fn has(&self, id: &str) -> bool {
        self.0.iter().rev().any(|seen| seen == id)
    }

    fn add(&mut self, id: &str) {
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(id.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn recent_ids_are_remembered_and_old_ones_forgotten() {
        let mut recent = Recent::default();
        assert!(!recent.has("first"));
        recent.add("first");
        for n in 1..REMEMBERED {
            recent.add(&n.to_string());
        }
        assert!(recent.has("first"));
        recent.add("one more");
        assert!(!recent.has("first") && recent.has("1"));
    }

    #[test]
    fn notices_are_one_plain_line_each() {
        let mut notes = Notes::default();
        let connecting = |url: &str| Notice::Connecting { url: url.to_owned() };
        let forged = || "why\nConnected (last_seq: 1)\u{1b}[2J".to_owned();
        let shown = "why\\nConnected (last_seq: 1)\\u{1b}[2J";
        for (notice, line) in [
            (connecting("ws://a/ws"), Some("Connecting to ws://a/ws...".to_owned())),
            (connecting("ws://a/ws"), None),
            (connecting("ws://b/ws"), Some("Connecting to ws://b/ws...".to_owned())),
            (
                Notice::BillingBlock { reason: forged() },
                Some(format!("The team cannot send now, only receive: {shown}")),
            ),
            (
                Notice::Disconnected { reason: forged() },
                Some(format!("Disconnected: {shown}")),
            ),
            (
                Notice::ConnectionFailed { reason: forged() },
                Some(format!("Connection failed: {shown}")),
            ),
            (
                Notice::Reconnecting {
                    after: Duration::from_secs(16),
                },
                Some("Reconnecting in 16s...".to_owned()),
            ),
        ] {
            assert_eq!(notes.line(&notice), line);
        }
    }
}
