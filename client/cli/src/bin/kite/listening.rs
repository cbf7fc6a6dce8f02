//! What `kite agent listen` and `kite stream` share: events on stdout or into a command, one after another, and
//! everything else on stderr, until the process is stopped, nobody reads the output any more or the key is rejected.
//!
//! An event is acknowledged when it has been dealt with: printed and out of this process, or its command ended with 0.
//! While one is in work the session is kept open; while the output is blocked, too.

use std::collections::VecDeque;

use agentpost::event::Event;
use agentpost::inbox::{Inbox, Notice};
use agentpost_cli::terminal::escaped;
use tokio::io::AsyncWriteExt;

use crate::exec::{Exec, Outcome};
use crate::note;
use crate::stop::Stop;

/// Events dealt with lately that are not repeated when a reconnect brings them once more.
const REMEMBERED: usize = 1024;

/// Events and what to do with them.
pub struct Listening {
    /// Where they come from.
    pub inbox: Inbox,
    /// All others are acknowledged unseen.
    pub wanted: Box<dyn Fn(&Event) -> bool>,
    /// Where they go.
    pub sink: Sink,
}

/// Where events go.
pub enum Sink {
    /// One line on stdout for each, without its end.
    Lines(fn(&Event) -> String),
    /// A command for each.
    Command(Box<Exec>),
}

/// Deals with events until something ends it, and leaves nothing running.
pub async fn run(mut listening: Listening) -> anyhow::Result<()> {
    let mut stop = Stop::new()?;
    let outcome = tokio::select! {
        outcome = deal(&mut listening) => outcome,
        stopped = stop.signal() => Err(stopped.into()),
    };
    if let Sink::Command(exec) = &mut listening.sink {
        exec.end(stop.signal()).await;
    }
    listening.inbox.close().await;
    outcome
}

async fn deal(listening: &mut Listening) -> anyhow::Result<()> {
    let Listening { inbox, wanted, sink } = listening;
    let mut dealt_with = Recent::default();
    let mut notes = Notes::default();
    loop {
        let event = match inbox.next().await? {
            Notice::Event(event) => event,
            notice => {
                if let Some(line) = notes.line(&notice) {
                    note(&line);
                }
                continue;
            }
        };
        if !wanted(&event) || dealt_with.has(event.id()) {
            inbox.ack(event.seq).await;
            continue;
        }
        let outcome = tokio::select! {
            biased;
            outcome = sink.take(&event) => outcome?,
            never = inbox.attend() => match never {},
        };
        match outcome {
            Outcome::Done => {
                dealt_with.add(event.id());
                inbox.ack(event.seq).await;
            }
            Outcome::PassedOver => {}
            Outcome::Repeat { after } => inbox.reopen(after).await,
        }
    }
}

impl Sink {
    async fn take(&mut self, event: &Event) -> std::io::Result<Outcome> {
        match self {
            Sink::Lines(line) => {
                let line = line(event) + "\n";
                // On a thread of its own: a reader that stands still must not keep the process from being stopped.
                let mut out = tokio::io::stdout();
                out.write_all(line.as_bytes()).await?;
                out.flush().await?;
                Ok(Outcome::Done)
            }
            Sink::Command(exec) => Ok(exec.run(event).await),
        }
    }
}

/// Lines about the session.
#[derive(Default)]
pub struct Notes {
    dialled: String,
}

impl Notes {
    /// What is said of a notice, if anything.
    pub fn line(&mut self, notice: &Notice) -> Option<String> {
        Some(match notice {
            Notice::Event(_) => return None,
            Notice::Connecting { url } => {
                // Said once for each change of the node; a reconnect to the same node is announced by its pause.
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

/// The last ids, oldest first.
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
