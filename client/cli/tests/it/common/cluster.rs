//! `agentpost` against three node processes.

use std::process::Output;
use std::time::Duration;

use agentpost_testkit::PATIENCE;
use jepsen_like_tests::cluster::Cluster as Nodes;
use tokio::process::Command;

/// A running cluster. Dropping it ends its processes and removes its files.
pub struct Cluster(Nodes);

impl Cluster {
    pub async fn start() -> Self {
        Cluster(Nodes::start(3).await.unwrap())
    }

    /// The HTTP base of node `n`, from 1.
    pub fn url(&self, n: usize) -> String {
        self.0.url(n)
    }

    /// All bases, node `first` first.
    pub fn urls_from(&self, first: usize) -> String {
        (0..3)
            .map(|i| self.url((first - 1 + i) % 3 + 1))
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// The processes of the nodes as `--kill` takes them.
    pub fn pids(&self) -> String {
        let pids = (1..=3).map(|n| format!("{n}={}", self.0.pid(n).unwrap()));
        pids.collect::<Vec<_>>().join(",")
    }

    /// The command that starts node `n` again.
    pub fn start_command(&self, n: usize) -> String {
        self.0.start_command(n)
    }

    /// Kills a node with SIGKILL.
    pub fn kill(&mut self, n: usize) {
        self.0.kill(n).unwrap();
    }

    /// Stops a node with SIGSTOP: its connections stay open, and it answers nothing.
    pub fn pause(&self, n: usize) {
        self.0.pause(n).unwrap();
    }

    /// Continues a node after [`Self::pause`].
    pub fn resume(&self, n: usize) {
        self.0.resume(n).unwrap();
    }

    /// Runs `agentpost`.
    pub async fn agentpost(&self, args: &[&str]) -> Output {
        self.agentpost_within(PATIENCE, args).await
    }

    /// Runs a slow `agentpost` command.
    pub async fn agentpost_within(&self, patience: Duration, args: &[&str]) -> Output {
        let output = Command::new(env!("CARGO_BIN_EXE_agentpost"))
            .args(args)
            .env_clear()
            .env("AGENTPOST_URLS", self.urls_from(1))
            .arg("--admin-key-file")
            .arg(self.0.admin_key_file())
            .kill_on_drop(true)
            .output();
        tokio::time::timeout(patience, output)
            .await
            .expect("agentpost did not end")
            .unwrap()
    }

    /// Runs `agentpost` with `--json` and returns its output; the command must succeed.
    pub async fn agentpost_json(&self, args: &[&str]) -> serde_json::Value {
        let output = self.agentpost(&[args, &["--json"]].concat()).await;
        assert!(output.status.success(), "{args:?}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }
}
