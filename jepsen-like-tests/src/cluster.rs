//! A cluster of real processes, which ends when the value is dropped: starting, stopping and signalling nodes.
//! [`network`] connects them, [`disk`] provides their storage.

pub mod clock;
pub mod disk;
pub mod members;
pub mod network;
mod operator;
mod power;
mod shim;
pub mod supervisor;
mod team;

use std::fs::File;
use std::io::Write as _;
use std::net::IpAddr;

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use agentpost::Agentpost;
use agentpost::http::Request;
use agentpost::retry::RetryPolicy;
use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use self::clock::Clocks;
use self::disk::Disk;
use self::network::Network;
pub use self::team::{Team, create_team};

/// An election takes about a second; an overloaded machine needs much longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// The settings of a cluster.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// The number of nodes that form it.
    pub nodes: usize,
    pub network: network::NetworkKind,
    pub disk: disk::DiskKind,
    pub clock: clock::ClockKind,
    /// Additional configuration of every node, as TOML. It must not contain the tables that [`Cluster`] writes
    /// itself: `[node]`, `[cluster]`, `[bootstrap]`, `[runtime]`, `[webhooks]`.
    pub config: String,
    /// Environment variables of every node: preloaded libraries, mutants.
    pub env: Vec<(String, String)>,
    /// Whether disk faults can be injected ([`Cluster::set_disk_faults`]).
    pub disk_shim: bool,
    /// The directory of the cluster, which is kept; `None` for a temporary directory.
    pub dir: Option<PathBuf>,
}

/// Nodes 1 to n, numbered as in the scenarios.
pub struct Cluster {
    dir: PathBuf,
    binary: PathBuf,
    settings: Settings,
    network: Network,
    disk: Disk,
    clocks: Clocks,
    nodes: Vec<Node>,
    /// Removes `dir` on drop if it is temporary.
    _temporary: Option<TempDir>,
}

struct Node {
    /// The node's id in the cluster: its number, until it had to rejoin. 0 means that this place has no node now.
    id: u64,
    process: Option<Child>,
}

impl Cluster {
    /// Starts `count` nodes on loopback and waits until all are ready.
    pub async fn start(count: usize) -> Result<Self> {
        Self::start_with(Settings {
            nodes: count,
            ..Settings::default()
        })
        .await
    }

    /// Starts a cluster and waits until all nodes are ready.
    pub async fn start_with(settings: Settings) -> Result<Self> {
        let count = settings.nodes;
        let binary = find_binary()?;
        let (dir, temporary) = match &settings.dir {
            Some(dir) => (dir.clone(), None),
            None => {
                let temporary = tempfile::tempdir()?;
                (temporary.path().to_owned(), Some(temporary))
            }
        };
        std::fs::create_dir_all(&dir)?;
        write_secret(&dir.join("cluster.secret"))?;
        let network = Network::create(settings.network, count)?;
        let disk = Disk::create(settings.disk, &dir, count)?;
        let clocks = Clocks::create(settings.clock, &dir, count)?;
        let nodes = (1..=count as u64).map(|id| Node { id, process: None }).collect();
        let mut cluster = Cluster {
            dir,
            binary,
            settings,
            network,
            disk,
            clocks,
            nodes,
            _temporary: temporary,
        };
        for node in 1..=count {
            std::fs::write(cluster.file(node, "toml"), cluster.config(node))?;
            cluster.spawn(node, None)?;
        }
        for node in 1..=count {
            cluster.wait_ready(node).await?;
        }
        Ok(cluster)
    }

    fn file(&self, node: usize, extension: &str) -> PathBuf {
        self.dir.join(format!("node{node}.{extension}"))
    }

    fn config(&self, node: usize) -> String {
        let dir = self.dir.display();
        let list: Vec<String> = (1..=self.nodes.len())
            .filter(|other| self.nodes[other - 1].id != 0)
            .map(|other| {
                let (peer, client) = (
                    self.network.peer_addr_for_others(other),
                    self.network.client_addr(other),
                );
                let id = self.nodes[other - 1].id;
                format!("{{ id = {id}, peer_addr = \"{peer}\", url = \"http://{client}\" }}")
            })
            .collect();
        let admin_key_file = if node == 1 {
            format!("{dir}/admin.key")
        } else {
            String::new()
        };
        let (client, peer) = (self.network.client_addr(node), self.network.peer_addr(node));
        let id = self.nodes[node - 1].id;
        let insecure = !client.ip().is_loopback();
        let host = self.network.host();
        format!(
            "insecure_listen = {insecure}\n\
             [node]\nid = {id}\ndata_dir = \"{}\"\nclient_addr = \"{client}\"\npeer_addr = \"{peer}\"\n\
             [cluster]\nsecret_file = \"{dir}/cluster.secret\"\nnodes = [{}]\n\
             [bootstrap]\nadmin_key_file = \"{admin_key_file}\"\n[runtime]\nworker_threads = 1\n\
             [webhooks]\nallow_http = true\nallow_networks = [\"127.0.0.0/8\", \"::1/128\", \"{host}/32\"]\n{}",
            self.disk.data_dir(node).display(),
            list.join(", "),
            self.settings.config
        )
    }

    /// Starts the process of a node. A failpoint, `name` or `name:pass`, ends the process at the place that the
    /// node's `failpoint.rs` names.
    fn spawn(&mut self, node: usize, failpoint: Option<&str>) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.file(node, "log"))?;
        let process = self
            .network
            .command(node, &self.binary)
            .envs(self.settings.env.iter().map(|(name, value)| (name, value)))
            .envs(self.clocks.env(node))
            .envs(self.shim(node)?)
            .envs(failpoint.map(|place| ("AGENTPOST_FAILPOINT", place)))
            .arg("start")
            .arg("--config")
            .arg(self.file(node, "toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", self.binary.display()))?;
        self.network.register_process(node, process.id());
        self.nodes[node - 1].process = Some(process);
        Ok(())
    }

    /// Kills a node with SIGKILL.
    pub fn kill(&mut self, node: usize) -> Result<()> {
        if let Some(mut process) = self.nodes[node - 1].process.take() {
            process.kill()?;
            process.wait()?;
        }
        Ok(())
    }

    /// Sends SIGTERM and waits until the process has ended.
    pub async fn stop(&mut self, node: usize) -> Result<()> {
        self.signal(node, "-TERM")?;
        self.ended(node).await
    }

    /// Starts a node that does not run and waits until it is ready.
    pub async fn restart(&mut self, node: usize) -> Result<()> {
        ensure!(self.nodes[node - 1].process.is_none(), "node {node} is already running");
        self.spawn(node, None)?;
        self.wait_ready(node).await
    }

    /// Starts nodes that do not run, without waiting for them.
    pub fn launch(&mut self, nodes: &[usize]) -> Result<()> {
        nodes.iter().try_for_each(|node| self.spawn(*node, None))
    }

    /// Waits until these nodes are ready.
    pub async fn await_ready(&mut self, nodes: &[usize]) -> Result<()> {
        for node in nodes {
            self.wait_ready(*node).await?;
        }
        Ok(())
    }

    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// Nodes whose process does not run although it should.
    pub fn stopped(&self) -> impl Iterator<Item = usize> {
        let stopped = |node: &Node| node.process.is_none() && node.id != 0;
        (1..=self.nodes.len()).filter(move |node| stopped(&self.nodes[node - 1]))
    }

    /// Copies the logs of all nodes into a directory.
    pub fn save_logs(&self, to: &Path) -> Result<()> {
        for node in 1..=self.nodes.len() {
            std::fs::copy(self.file(node, "log"), to.join(format!("node{node}.log")))?;
        }
        Ok(())
    }

    /// Restarts a node with a failpoint that will end it. Needs a binary with the feature `failpoints`.
    pub async fn arm(&mut self, node: usize, failpoint: &str) -> Result<()> {
        self.kill(node)?;
        self.spawn(node, Some(failpoint))?;
        self.wait_ready(node).await
    }

    /// Stops a process with SIGSTOP.
    pub fn pause(&self, node: usize) -> Result<()> {
        self.signal(node, "-STOP")
    }

    /// Continues a process with SIGCONT.
    pub fn resume(&self, node: usize) -> Result<()> {
        self.signal(node, "-CONT")
    }

    /// Uses the command `kill`, because calling kill(2) directly takes unsafe code.
    fn signal(&self, node: usize, signal: &str) -> Result<()> {
        let process = self.nodes[node - 1]
            .process
            .as_ref()
            .context("the node is not running")?;
        let status = Command::new("kill")
            .arg(signal)
            .arg(process.id().to_string())
            .status()?;
        ensure!(status.success(), "kill {signal} ended with {status}");
        Ok(())
    }

    /// Nodes whose process ended unexpectedly since the last call, and their exit status. They can be started again.
    pub fn crashed(&mut self) -> Result<Vec<(usize, ExitStatus)>> {
        let mut crashed = Vec::new();
        for (number, node) in (1..).zip(&mut self.nodes) {
            if let Some(process) = &mut node.process
                && let Some(status) = process.try_wait()?
            {
                node.process = None;
                crashed.push((number, status));
            }
        }
        Ok(crashed)
    }

    /// The address on which servers of clients listen, reachable from the nodes.
    pub fn client_host(&self) -> IpAddr {
        self.network.host()
    }

    pub fn network(&mut self) -> &mut Network {
        &mut self.network
    }

    pub fn clocks(&mut self) -> &mut Clocks {
        &mut self.clocks
    }

    pub fn disk(&mut self) -> &mut Disk {
        &mut self.disk
    }

    /// Waits until the process of a node has ended.
    pub async fn ended(&mut self, node: usize) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let process = self.nodes[node - 1]
                .process
                .as_mut()
                .context("the node was not started")?;
            if process.try_wait()?.is_some() {
                return self.kill(node);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bail!("node {node} did not end within {PATIENCE:?}:\n{}", self.log(node))
    }

    /// The process id of a node that was started here and has not been killed.
    pub fn pid(&self, node: usize) -> Option<u32> {
        self.nodes[node - 1].process.as_ref().map(Child::id)
    }

    /// The command that starts a node, for a program that starts it itself.
    pub fn start_command(&self, node: usize) -> String {
        let config = self.file(node, "toml");
        format!("{} start --config {}", self.binary.display(), config.display())
    }

    /// Nodes whose process runs.
    pub fn running(&self) -> impl Iterator<Item = usize> {
        (1..=self.nodes.len()).filter(|node| self.nodes[node - 1].process.is_some())
    }

    /// Base URL of a node's client port.
    pub fn url(&self, node: usize) -> String {
        format!("http://{}", self.network.client_addr(node))
    }

    /// The base URLs of all nodes, separated by spaces.
    pub fn urls(&self) -> String {
        (1..=self.nodes.len())
            .map(|node| self.url(node))
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// The log of a node.
    pub fn log(&self, node: usize) -> String {
        std::fs::read_to_string(self.file(node, "log")).unwrap_or_default()
    }

    async fn wait_ready(&mut self, node: usize) -> Result<()> {
        self.wait_ready_within(node, PATIENCE).await
    }

    async fn wait_ready_within(&mut self, node: usize, patience: Duration) -> Result<()> {
        let post = Agentpost::builder(self.url(node)).retry(RetryPolicy::once()).build()?;
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if post.http().request(&Request::get("/readyz")).await.is_ok() {
                return Ok(());
            }
            let process = self.nodes[node - 1]
                .process
                .as_mut()
                .context("the node was not started")?;
            if let Some(status) = process.try_wait()? {
                bail!("node {node} ended with {status}:\n{}", self.log(node));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("node {node} is not ready within {patience:?}:\n{}", self.log(node))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in 1..=self.nodes.len() {
            // Nobody can act on a failure here, and the process may have ended already.
            let _ = self.kill(node);
        }
    }
}

/// Writes 32 random bytes that only the owner can read; a node refuses any other mode.
fn write_secret(path: &Path) -> Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    Ok(file.write_all(&rand::random::<[u8; 32]>())?)
}

/// Finds `agentpostd`: `AGENTPOSTD_BIN`, or the binary of the same build as this program.
fn find_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("AGENTPOSTD_BIN") {
        return Ok(path.into());
    }
    let test = std::env::current_exe()?; // <target>/<profile>/deps/<test>
    let profile = test
        .parent()
        .and_then(Path::parent)
        .context("the test has no target directory")?;
    let binary = profile.join("agentpostd");
    ensure!(
        binary.exists(),
        "{} is missing: run `cargo build -p agentpost-node` first, or name the binary in AGENTPOSTD_BIN",
        binary.display()
    );
    Ok(binary)
}
