//! The binary `agentpostd`: its output and its exit codes.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::common::web::{Call, mail};
use serde_json::json;

const AGENTPOSTD: &str = env!("CARGO_BIN_EXE_agentpostd");

fn refused(arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let run = Command::new(AGENTPOSTD)
        .args(arguments)
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    let stderr = String::from_utf8(run.stderr).unwrap();
    assert_eq!(run.status.code(), Some(2), "{stderr}");
    stderr
}

#[test]
fn bad_settings_are_named_and_exit_with_2() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    std::fs::write(&file, "[node]\ncolour = 1\n").unwrap();
    let path = file.to_str().unwrap();
    assert!(refused(&["start", "--config", path], &[]).contains("unknown key node.colour"));
    assert!(refused(&["start", "--config", "/nowhere.toml"], &[]).contains("/nowhere.toml"));
    let open = refused(&["start"], &[("AGENTPOST_NODE__PEER_ADDR", "0.0.0.0:7800")]);
    assert!(
        open.contains("node.peer_addr") && open.contains("insecure_listen"),
        "{open}"
    );
    assert!(refused(&["start"], &[("AGENTPOST_LOG__LEVEL", "info,=")]).contains("log.level"));
    assert!(refused(&["fly"], &[]).contains("fly"));
}

#[test]
fn a_failure_while_starting_exits_with_1() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("secret");
    let run = Command::new(AGENTPOSTD)
        .args(["start"])
        .env("AGENTPOST_CLUSTER__SECRET_FILE", &missing)
        .env("AGENTPOST_NODE__DATA_DIR", dir.path())
        .env("AGENTPOST_NODE__CLIENT_ADDR", "127.0.0.1:0")
        .env("AGENTPOST_NODE__PEER_ADDR", "127.0.0.1:0")
        .output()
        .unwrap();
    assert_eq!(run.status.code(), Some(1));
    assert!(String::from_utf8(run.stderr).unwrap().contains("cluster.secret_file"));
}

#[test]
fn the_settings_that_are_printed_are_a_configuration() {
    let run = Command::new(AGENTPOSTD).arg("config").output().unwrap();
    assert!(run.status.success());
    let text = String::from_utf8(run.stdout).unwrap();
    agentpost_node::base::config::Config::from_parts("printed", &text, []).unwrap();
}

/// A running `agentpostd dev` and its output up to the last line.
struct Dev {
    process: Child,
    said: String,
}

impl Dev {
    fn start(dir: &Path) -> Self {
        let mut process = Command::new(AGENTPOSTD)
            .args(["dev", "--port", "0", "--data-dir"])
            .arg(dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        let mut lines = BufReader::new(process.stdout.take().unwrap());
        while !said.contains("Ctrl-C") {
            assert_ne!(lines.read_line(&mut said).unwrap(), 0, "it ended: {said}");
        }
        Dev { process, said }
    }

    /// The first word after a label of the output.
    fn word(&self, label: &str) -> String {
        let line = self.said.lines().find(|line| line.trim_start().starts_with(label));
        let rest = line
            .unwrap_or_else(|| panic!("no {label} in {}", self.said))
            .trim_start();
        rest[label.len()..].split_whitespace().next().unwrap().to_owned()
    }

    fn terminate(mut self) {
        let id = self.process.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        assert_eq!(self.process.wait().unwrap().code(), Some(0));
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn dev_serves_at_once_and_goes_on_where_it_ended() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("dev");
    let first = Dev::start(&dir);
    let (key, agent_key) = (first.word("Team key"), first.word("Agent key"));
    let greeting = mail("agent-alpha", &json!({ "text": "hello" }));
    Call::get("/readyz").to(&first.word("URL")).await.ok();
    Call::post("/v1/messages", &greeting)
        .key(&key)
        .agent("beta")
        .to(&first.word("URL"))
        .await
        .ok();
    assert!(
        first.said.contains("(new)") && first.said.contains("KITE_WS_URL=ws://"),
        "{}",
        first.said
    );
    first.terminate();

    let second = Dev::start(&dir);
    let keys = dir.join("keys.env");
    assert!(
        second.said.contains("(reused)") && second.said.contains(keys.to_str().unwrap()),
        "{}",
        second.said
    );
    assert!(!second.said.contains(&key), "keys are shown once");
    assert!(
        std::fs::read_to_string(&keys)
            .unwrap()
            .contains(&format!("KITE_API_KEY=\"{key}\""))
    );
    let read = Call::get("/v1/messages")
        .key(&agent_key)
        .to(&second.word("URL"))
        .await
        .ok();
    assert_eq!(read["messages"][0]["body"], json!({ "text": "hello" }));
    second.terminate();
}
