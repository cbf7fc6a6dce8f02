//! A running `kite`.

use std::process::{ExitStatus, Stdio};

use agentpost_testkit::PATIENCE;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::time::timeout;

use super::User;

/// A process whose output is read line by line.
pub struct Running {
    pub process: Child,
    out: Option<Lines<BufReader<ChildStdout>>>,
    notes: Lines<BufReader<ChildStderr>>,
}

impl Running {
    pub fn start(mut command: Command) -> Self {
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(process.stdout.take().unwrap()).lines();
        let notes = BufReader::new(process.stderr.take().unwrap()).lines();
        Running {
            process,
            out: Some(out),
            notes,
        }
    }

    /// Starts `kite` and waits until it is connected.
    pub async fn connected(user: &User, args: &[&str]) -> Self {
        let mut running = Running::start(user.command(args));
        running.note_with("Connected (last_seq: ").await;
        running
    }

    /// The next line of stdout.
    pub async fn line(&mut self) -> String {
        let out = self.out.as_mut().expect("stdout is closed");
        let line = timeout(PATIENCE, out.next_line()).await.expect("no line in time");
        line.unwrap().expect("the process ended")
    }

    /// The next line of stderr that begins with `start`.
    pub async fn note_with(&mut self, start: &str) -> String {
        loop {
            let line = timeout(PATIENCE, self.notes.next_line()).await;
            let line = line.unwrap_or_else(|_| panic!("no {start} in time")).unwrap();
            let line = line.unwrap_or_else(|| panic!("the process ended before {start}"));
            if line.starts_with(start) {
                return line;
            }
        }
    }

    /// The remaining lines of stderr, until the process ends.
    pub async fn rest_of_notes(&mut self) -> Vec<String> {
        let mut rest = Vec::new();
        while let Some(line) = timeout(PATIENCE, self.notes.next_line()).await.unwrap().unwrap() {
            rest.push(line);
        }
        rest
    }

    /// Closes the reader of stdout.
    pub fn close_stdout(&mut self) {
        self.out = None;
    }

    /// Sends a signal by the command `kill`, because the system call needs unsafe code.
    pub fn signal(&self, name: &str) {
        let id = self.process.id().expect("it runs").to_string();
        let status = std::process::Command::new("kill").args(["-s", name, &id]).status();
        assert!(status.unwrap().success());
    }

    pub async fn ended(&mut self) -> ExitStatus {
        timeout(PATIENCE, self.process.wait())
            .await
            .expect("it did not end")
            .unwrap()
    }
}
