//! The binary `agentpostd`: its output and its exit codes.

use std::fs::Permissions;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use agentpost_testkit::ports;
use serde_json::json;
use tokio::net::TcpStream;

use crate::common::eventually;
use crate::common::web::{Call, mail, metrics};

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

/// Starts of nodes whose exit status is checked, in each test. Before threads were awaited, one in ten ended by a signal.
const STARTS: usize = 30;

/// A process that is ended with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn write_private(file: &Path, text: &str) {
    std::fs::write(file, text).unwrap();
    std::fs::set_permissions(file, Permissions::from_mode(0o600)).unwrap();
}

/// The files and ports of a cluster of two processes.
struct Pair {
    dir: tempfile::TempDir,
    ports: Vec<u16>,
}

impl Pair {
    fn new() -> Self {
        let pair = Pair {
            dir: tempfile::tempdir().unwrap(),
            ports: ports::free(4).unwrap(),
        };
        for (name, text) in [
            ("secret", "5".repeat(32)),
            ("admin.key", format!("ap_{}", "5".repeat(32))),
        ] {
            write_private(&pair.dir.path().join(name), &text);
        }
        pair
    }

    fn data(&self, id: usize) -> PathBuf {
        self.dir.path().join(format!("data-{id}"))
    }

    fn url(&self, id: usize) -> String {
        format!("http://127.0.0.1:{}", self.ports[2 * id - 2])
    }

    fn config(&self, id: usize) -> String {
        let (client, peer) = (self.ports[2 * id - 2], self.ports[2 * id - 1]);
        let member = |id: usize| {
            let (peer, url) = (self.ports[2 * id - 1], self.url(id));
            format!("{{ id = {id}, peer_addr = \"127.0.0.1:{peer}\", url = \"{url}\" }}")
        };
        let file = |name| self.dir.path().join(name);
        let bootstrap = match id {
            1 => format!("[bootstrap]\nadmin_key_file = {:?}\n", file("admin.key")),
            _ => String::new(),
        };
        format!(
            "[node]\nid = {id}\ndata_dir = {:?}\nclient_addr = \"127.0.0.1:{client}\"\n\
             peer_addr = \"127.0.0.1:{peer}\"\n[cluster]\nsecret_file = {:?}\nnodes = [{}, {}]\n\
             [storage]\nballast_bytes = 0\n{bootstrap}",
            self.data(id),
            file("secret"),
            member(1),
            member(2)
        )
    }

    fn start(&self, id: usize) -> Ended {
        Ended(self.command(id).spawn().unwrap())
    }

    fn command(&self, id: usize) -> Command {
        let file = self.dir.path().join(format!("{id}.toml"));
        std::fs::write(&file, self.config(id)).unwrap();
        let mut command = Command::new(AGENTPOSTD);
        command.args(["start", "--config"]).arg(file).stdout(Stdio::null());
        command
    }
}

/// The other node refuses a wiped one, whose threads are then in the middle of their work.
#[tokio::test]
async fn a_wiped_node_exits_with_1_at_each_start() {
    let pair = Pair::new();
    let [_first, second] = [pair.start(1), pair.start(2)];
    for id in [1, 2] {
        let open = async || TcpStream::connect(pair.url(id).strip_prefix("http://")?).await.ok();
        eventually("an open port", open).await;
        let ready = async || (Call::get("/readyz").to(&pair.url(id)).await.status == 200).then_some(());
        eventually("a node that is ready", ready).await;
    }
    drop(second);
    for start in 1..=STARTS {
        std::fs::remove_dir_all(pair.data(2)).unwrap();
        let status = pair.start(2).0.wait().unwrap();
        assert_eq!(status.code(), Some(1), "start {start}: {status}");
    }
}

/// It is told to stop while a thread opens its databases.
#[tokio::test]
async fn a_node_that_is_stopped_while_it_starts_exits_with_0() {
    let pair = Pair::new();
    for start in 1..=STARTS {
        let _ = std::fs::remove_dir_all(pair.data(1));
        let mut node = pair.start(1);
        // Signals are handled by the time at which the first file is written.
        let floor = pair.data(1).join("shards/0/FLOOR");
        eventually("its first file", async || floor.exists().then_some(())).await;
        let id = node.0.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        let status = node.0.wait().unwrap();
        assert_eq!(status.code(), Some(0), "start {start}: {status}");
    }
}

/// Two nodes with different secrets call each other many times a second, until somebody looks.
#[tokio::test]
async fn a_node_with_another_secret_does_not_fill_the_logs() {
    let pair = Pair::new();
    let stranger = pair.dir.path().join("another");
    write_private(&stranger, &"6".repeat(32));
    let log = |id: usize| pair.dir.path().join(format!("{id}.log"));
    let start = |id: usize| {
        let mut command = pair.command(id);
        if id == 2 {
            command.env("AGENTPOST_CLUSTER__SECRET_FILE", &stranger);
        }
        let log = std::fs::File::create(log(id)).unwrap();
        Ended(command.stderr(log).spawn().unwrap())
    };
    let _nodes = [start(1), start(2)];
    for id in [1, 2] {
        let open = async || TcpStream::connect(pair.url(id).strip_prefix("http://")?).await.ok();
        eventually("an open port", open).await;
    }
    eventually("a hundred refused connections", async || {
        // Node 1 asks node 2 for its vote again and again.
        let text = metrics(&pair.url(2)).await;
        let refused = text
            .lines()
            .find_map(|line| line.strip_prefix("agentpost_handshakes_refused_total "))?;
        (refused.parse::<u64>().unwrap() >= 100).then_some(())
    })
    .await;
    for id in [1, 2] {
        let said = std::fs::read_to_string(log(id)).unwrap();
        let about = |what: &str| said.lines().filter(|line| line.contains(what)).count();
        let (refused, failed) = (
            about("a peer connection was refused"),
            about("connecting to node failed"),
        );
        assert!(refused + failed > 0, "{said}");
        assert!(refused + failed <= 12, "{refused} and {failed} lines:\n{said}");
    }
}
