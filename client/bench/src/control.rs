//! The processes of the nodes: killing them, starting them again and waiting until they answer.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use agentpost::Agentpost;
use agentpost::http::Request;
use agentpost::retry::RetryPolicy;
use anyhow::{Context, bail, ensure};
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use crate::Bench;

/// The time for a node to be ready after its start.
const READY: Duration = Duration::from_secs(300);
/// The pause between two questions to a node.
const ASK_AGAIN: Duration = Duration::from_millis(2);

/// Parses `NODE=PID`.
pub fn process(text: &str) -> Result<(u64, u32), String> {
    let parsed = text
        .split_once('=')
        .and_then(|(node, pid)| Some((node.parse().ok()?, pid.parse().ok()?)));
    match parsed {
        Some((node, pid)) if pid > 1 => Ok((node, pid)),
        _ => Err("expected NODE=PID, such as 1=4711".to_owned()),
    }
}

/// The processes of the nodes as far as the caller named them.
pub struct Processes {
    pids: HashMap<u64, u32>,
    starter: Option<PathBuf>,
}

impl Processes {
    pub fn new(bench: &Bench<'_>) -> Self {
        Processes {
            pids: bench.args.processes().iter().copied().collect(),
            starter: bench.args.starter().cloned(),
        }
    }

    /// Sends SIGKILL by the command `kill`, because the system call needs unsafe code.
    pub async fn kill(&mut self, node: u64) -> anyhow::Result<()> {
        let pid = self.pids.remove(&node);
        let pid = pid.with_context(|| format!("--kill does not name the process of node {node}"))?;
        let status = Command::new("kill").args(["-KILL", &pid.to_string()]).status().await;
        if !status.context("cannot run kill")?.success() {
            bail!("cannot kill process {pid}");
        }
        Ok(())
    }

    /// Runs the program of `--start`.
    pub async fn start(&mut self, node: u64) -> anyhow::Result<()> {
        let starter = self.starter.as_ref().context("no program that starts nodes")?;
        let output = Command::new(starter).arg(node.to_string()).output().await;
        let output = output.with_context(|| format!("cannot run {}", starter.display()))?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.success(),
            "{} {node} ended with {}: {}",
            starter.display(),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        let pid = said.trim().parse();
        self.pids.insert(
            node,
            pid.with_context(|| format!("expected a process id, not '{said}'"))?,
        );
        Ok(())
    }
}

/// Waits until the node with this base URL answers `path` with 200, and returns the time since `began`.
pub async fn answers(base: &str, path: &str, began: Instant) -> anyhow::Result<Duration> {
    let post = Agentpost::builder(base).retry(RetryPolicy::once()).build()?;
    let request = Request::get(path);
    while post.http().request(&request).await.is_err() {
        ensure!(began.elapsed() < READY, "{base}{path} did not answer within {READY:?}");
        sleep(ASK_AGAIN).await;
    }
    Ok(began.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_given_by_node() {
        assert_eq!(process("3=4711"), Ok((3, 4711)));
        for bad in ["", "3", "3=", "a=1", "3=1", "3=-1", "3=0"] {
            assert!(process(bad).is_err(), "{bad}");
        }
    }
}
