//! Three node processes on loopback, and the operator's command line against them.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use agentpost::Client;
use agentpost::client::Request;
use agentpost::retry::RetryPolicy;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::PATIENCE;

/// A running cluster. Its processes and files go with it.
pub struct Cluster {
    folder: TempDir,
    nodes: Vec<Node>,
}

struct Node {
    url: String,
    process: Child,
}

impl Cluster {
    pub async fn start() -> Self {
        let binary = agentpostd();
        let folder = tempfile::tempdir().unwrap();
        let secret = folder.path().join("secret");
        write_private(&secret, &[7; 32]);
        let ports = free_ports(6);
        let url = |n: usize| format!("http://127.0.0.1:{}", ports[n - 1]);
        let peer = |n: usize| format!("127.0.0.1:{}", ports[n + 2]);
        let members: String = (1..=3)
            .map(|n| format!("  {{ id = {n}, peer_addr = \"{}\", url = \"{}\" }},\n", peer(n), url(n)))
            .collect();
        let mut nodes = Vec::new();
        for n in 1..=3 {
            let file = |name: &str| folder.path().join(format!("{n}.{name}"));
            let mut config = format!(
                "[node]\nid = {n}\ndata_dir = {:?}\nclient_addr = \"127.0.0.1:{}\"\npeer_addr = \"{}\"\n\
                 [cluster]\nsecret_file = {secret:?}\nnodes = [\n{members}]\n[runtime]\nworker_threads = 1\n",
                file("data"),
                ports[n - 1],
                peer(n)
            );
            if n == 1 {
                config.push_str(&format!(
                    "[bootstrap]\nadmin_key_file = {:?}\n",
                    folder.path().join("admin.key")
                ));
            }
            std::fs::write(file("toml"), config).unwrap();
            let log = std::fs::File::create(file("log")).unwrap();
            let process = Command::new(&binary)
                .args(["start", "--config", file("toml").to_str().unwrap()])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                .kill_on_drop(true)
                .spawn()
                .unwrap();
            nodes.push(Node { url: url(n), process });
        }
        let mut cluster = Cluster { folder, nodes };
        cluster.await_ready().await;
        cluster
    }

    async fn await_ready(&mut self) {
        for (index, node) in self.nodes.iter_mut().enumerate() {
            let client = Client::builder(&node.url).retry(RetryPolicy::once()).build().unwrap();
            let deadline = tokio::time::Instant::now() + PATIENCE;
            while client.request(&Request::get("/readyz")).await.is_err() {
                let ended = node.process.try_wait().unwrap();
                let late = tokio::time::Instant::now() > deadline;
                if ended.is_some() || late {
                    let log = self.folder.path().join(format!("{}.log", index + 1));
                    panic!(
                        "node {} is not ready ({ended:?}):\n{}",
                        index + 1,
                        std::fs::read_to_string(log).unwrap()
                    );
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    /// The HTTP base of node `n`, from 1.
    pub fn url(&self, n: usize) -> &str {
        &self.nodes[n - 1].url
    }

    /// All bases, node `first` first.
    pub fn urls_from(&self, first: usize) -> String {
        (0..3)
            .map(|i| self.url((first - 1 + i) % 3 + 1))
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// SIGKILL.
    pub async fn kill(&mut self, n: usize) {
        self.nodes[n - 1].process.kill().await.unwrap();
    }

    /// The operator's command line.
    pub async fn agentpost(&self, args: &[&str]) -> Output {
        let output = Command::new(env!("CARGO_BIN_EXE_agentpost"))
            .args(args)
            .env_clear()
            .env("AGENTPOST_URLS", self.urls_from(1))
            .arg("--admin-key-file")
            .arg(self.folder.path().join("admin.key"))
            .kill_on_drop(true)
            .output();
        tokio::time::timeout(PATIENCE, output)
            .await
            .expect("agentpost did not end")
            .unwrap()
    }

    /// The same, where it has to succeed and print JSON.
    pub async fn agentpost_json(&self, args: &[&str]) -> serde_json::Value {
        let output = self.agentpost(&[args, &["--json"]].concat()).await;
        assert!(output.status.success(), "{args:?}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

/// Cargo gives a test the binaries of its own package only, so this one is looked up.
fn agentpostd() -> PathBuf {
    if let Some(named) = std::env::var_os("AGENTPOSTD_BIN") {
        return named.into();
    }
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(Path::parent).expect("target/PROFILE/deps/TEST");
    let binary = profile.join("agentpostd");
    assert!(
        binary.exists(),
        "{} is missing: run `cargo build -p agentpost-node` first, or name the binary in AGENTPOSTD_BIN",
        binary.display()
    );
    binary
}

fn free_ports(count: usize) -> Vec<u16> {
    let listeners: Vec<_> = (0..count)
        .map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
    listeners
        .iter()
        .map(|listener| listener.local_addr().unwrap().port())
        .collect()
}

fn write_private(path: &Path, content: &[u8]) {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = std::fs::OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .unwrap();
    file.write_all(content).unwrap();
}
