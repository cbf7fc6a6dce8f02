//! `--exec`: a shell command for each event.
//!
//! Each command leads a process group, so that the processes it started end with it when `kite` is stopped. The group
//! is signalled through the shell's `kill`, because the system call needs unsafe code.
//!
//! Without `--client-id` an event whose command failed is skipped. The server then keeps no position, so it would not
//! deliver the event again, and reopening the session would lose the events that arrive meanwhile.

use std::convert::Infallible;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use agentpost::kite::Event;
use agentpost_cli::terminal::escaped;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::{sleep, timeout};

use crate::note;
use crate::stop::Stopped;

/// The longest pause before an event is repeated because its command failed.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// The time between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(5);
/// The pause between two checks whether the processes have ended.
const LOOK: Duration = Duration::from_millis(50);

/// A command and the state of its latest runs.
pub struct Exec {
    command: String,
    team_id: String,
    /// Whether the server keeps the position of the stream, so that it repeats an event that is not acknowledged.
    repeats: bool,
    running: Option<Child>,
    /// The event whose command failed last, and the number of failures.
    failing: Option<(String, u32)>,
}

/// The result of handling an event.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The event was handled.
    Done,
    /// The event was not handled and is not repeated.
    PassedOver,
    /// The event was not handled and is to be repeated.
    Repeat {
        /// The pause before it.
        after: Duration,
    },
}

impl Exec {
    /// Runs nothing yet.
    pub fn new(command: String, team_id: String, repeats: bool) -> Self {
        Exec {
            command,
            team_id,
            repeats,
            running: None,
            failing: None,
        }
    }

    /// Runs the command for an event. If the future is dropped, the command runs on until [`Exec::end`].
    pub async fn run(&mut self, event: &Event) -> Outcome {
        let why = match self.once(event).await {
            Ok(status) if status.success() => {
                self.failing = None;
                return Outcome::Done;
            }
            Ok(status) => status.to_string(),
            Err(error) => format!("sh: {error}"),
        };
        let (outcome, what) = self.failed(event.id());
        note(&format!(
            "Command failed ({why}) for event {}{what}",
            escaped(event.id())
        ));
        outcome
    }

    async fn once(&mut self, event: &Event) -> std::io::Result<ExitStatus> {
        let mut child = self.command(event).spawn()?;
        let stdin = child.stdin.take();
        let child = self.running.insert(child);
        let status = tokio::select! {
            status = child.wait() => status,
            never = feed(stdin, format!("{event}\n")) => match never {},
        };
        self.running = None;
        status
    }

    fn command(&self, event: &Event) -> Command {
        let mut command = Command::new("sh");
        command
            .args(["-c", &self.command])
            .stdin(Stdio::piped())
            .process_group(0);
        for (name, value) in [
            ("KITE_EVENT_ID", event.id()),
            ("KITE_EVENT_TYPE", event.kind()),
            ("KITE_EVENT_SOURCE", event.source()),
            ("KITE_SOURCE", source_name(event.kind())),
            ("KITE_TEAM_ID", &self.team_id),
            ("KITE_SEQ", &event.seq.to_string()),
        ] {
            // An environment variable cannot contain NUL.
            command.env(name, value.replace('\0', ""));
        }
        command
    }

    /// The outcome of a failure, and the text about it.
    fn failed(&mut self, id: &str) -> (Outcome, String) {
        if !self.repeats {
            let what = ": passed over, because without --client-id nothing comes again";
            return (Outcome::PassedOver, what.to_owned());
        }
        let attempt = match &self.failing {
            Some((failing, attempts)) if failing == id => attempts + 1,
            _ => 1,
        };
        self.failing = Some((id.to_owned(), attempt));
        let after = Duration::from_secs(1 << (attempt - 1).min(5)).min(PAUSE_MAX);
        let what = format!(", attempt {attempt}: it comes again until the command ends with 0");
        (Outcome::Repeat { after }, what)
    }

    /// Ends a running command with its process group: by SIGTERM, and by SIGKILL after [`GRACE`], or as soon as `hurry`
    /// returns.
    pub async fn end(&mut self, hurry: impl Future<Output = Stopped>) {
        let Some(mut child) = self.running.take() else { return };
        let Some(group) = child.id() else { return };
        signal(group, "TERM").await;
        let gone = async {
            let _ = child.wait().await;
            while signal(group, "0").await {
                sleep(LOOK).await;
            }
        };
        tokio::select! {
            gone = timeout(GRACE, gone) => if gone.is_ok() { return },
            _ = hurry => {}
        }
        signal(group, "KILL").await;
        let _ = child.wait().await;
    }
}

/// Writes the event to the command, which need not read it.
async fn feed(stdin: Option<ChildStdin>, text: String) -> Infallible {
    if let Some(mut stdin) = stdin {
        let _ = stdin.write_all(text.as_bytes()).await;
    }
    std::future::pending().await
}

/// The vendor's name of an event source: `github` for `com.github.push`.
fn source_name(kind: &str) -> &str {
    let name = kind.strip_prefix("com.").and_then(|rest| rest.split('.').next());
    name.filter(|name| !name.is_empty()).unwrap_or("unknown")
}

/// Signals a process group. False if it has no processes.
async fn signal(group: u32, name: &str) -> bool {
    let status = Command::new("sh")
        .args(["-c", "kill -s \"$1\" -- \"-$2\"", "sh", name, &group.to_string()])
        .stderr(Stdio::null())
        .status();
    status.await.is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_have_the_vendors_names() {
        for (kind, name) in [
            ("com.kite.agent.message", "kite"),
            ("com.github.push", "github"),
            ("com.github", "github"),
            ("com..push", "unknown"),
            ("github.push", "unknown"),
            ("", "unknown"),
        ] {
            assert_eq!(source_name(kind), name, "{kind}");
        }
    }

    #[test]
    fn the_pause_grows_with_each_failure_of_the_same_event() {
        let mut exec = Exec::new("false".to_owned(), "t".to_owned(), true);
        let mut after = |id: &str| match exec.failed(id) {
            (Outcome::Repeat { after }, _) => after.as_secs(),
            (other, _) => panic!("{other:?}"),
        };
        let pauses: Vec<u64> = (0..7).map(|_| after("a")).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(after("b"), 1);
    }
}
