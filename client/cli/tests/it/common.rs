//! `kite` in a home folder of its own.

pub mod cluster;
pub mod process;
pub mod steps;

use std::process::Output;

use agentpost_testkit::PATIENCE;
use tempfile::TempDir;
use tokio::process::Command;

/// The home folder and the environment variables of one user.
pub struct User {
    pub home: TempDir,
    variables: Vec<(String, String)>,
}

impl User {
    pub fn new() -> Self {
        User {
            home: tempfile::tempdir().unwrap(),
            variables: Vec::new(),
        }
    }

    /// A user with a key and these servers.
    pub fn of(servers: &str) -> Self {
        User::new()
            .with("KITE_API_KEY", "kite_key")
            .with("KITE_TEAM_ID", "team_1")
            .with("AGENTPOST_URLS", servers)
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn config_path(&self) -> std::path::PathBuf {
        self.home.path().join(".config/kite/config.toml")
    }

    /// `kite`, without the environment of the test.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kite"));
        command
            .args(args)
            .env_clear()
            .env("HOME", self.home.path())
            .current_dir(self.home.path());
        command.envs(self.variables.iter().cloned()).kill_on_drop(true);
        command
    }

    pub async fn kite(&self, args: &[&str]) -> Output {
        tokio::time::timeout(PATIENCE, self.command(args).output())
            .await
            .expect("kite did not end")
            .unwrap()
    }
}

/// Exit code, stdout and stderr.
pub fn parts(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}
