//! A cluster of real processes on loopback, each with its own data directory, ended with the value.

use std::fs::File;
use std::io::Write as _;

use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use agentpost::Client;
use agentpost::api::admin::{CreateKey, CreateTeam, LimitsPatch};
use agentpost::client::Request;
use agentpost::retry::RetryPolicy;
use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

/// Elections take a second here; a machine that starves takes many.
const PATIENCE: Duration = Duration::from_secs(60);

/// Nodes 1 to n, as the operator counts them.
pub struct Cluster {
    dir: TempDir,
    binary: PathBuf,
    nodes: Vec<Node>,
}

struct Node {
    client_port: u16,
    peer_port: u16,
    process: Option<Child>,
}

/// A team without limits, and a key that may act as any of its agents.
pub struct Team {
    /// `team_…`.
    pub id: String,
    /// A key with the permission `write`.
    pub key: String,
}

impl Cluster {
    /// Starts `count` nodes and waits until all serve.
    pub async fn start(count: usize) -> Result<Self> {
        let binary = find_binary()?;
        let dir = tempfile::tempdir()?;
        write_secret(&dir.path().join("cluster.secret"))?;
        let ports = free_ports(2 * count)?;
        let nodes = ports
            .chunks(2)
            .map(|p| Node {
                client_port: p[0],
                peer_port: p[1],
                process: None,
            })
            .collect::<Vec<_>>();
        let mut cluster = Cluster { dir, binary, nodes };
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
        self.dir.path().join(format!("node{node}.{extension}"))
    }

    fn config(&self, node: usize) -> String {
        let dir = self.dir.path().display();
        let list: Vec<String> = (1..=self.nodes.len())
            .map(|id| {
                let n = &self.nodes[id - 1];
                format!(
                    "{{ id = {id}, peer_addr = \"127.0.0.1:{}\", url = \"http://127.0.0.1:{}\" }}",
                    n.peer_port, n.client_port
                )
            })
            .collect();
        let admin_key_file = if node == 1 {
            format!("{dir}/admin.key")
        } else {
            String::new()
        };
        let Node {
            client_port, peer_port, ..
        } = &self.nodes[node - 1];
        format!(
            "[node]\nid = {node}\ndata_dir = \"{dir}/node{node}\"\nclient_addr = \"127.0.0.1:{client_port}\"\n\
             peer_addr = \"127.0.0.1:{peer_port}\"\n[cluster]\nsecret_file = \"{dir}/cluster.secret\"\n\
             nodes = [{}]\n[bootstrap]\nadmin_key_file = \"{admin_key_file}\"\n[runtime]\nworker_threads = 1\n\
             [webhooks]\nallow_http = true\nallow_networks = [\"127.0.0.0/8\", \"::1/128\"]\n",
            list.join(", ")
        )
    }

    /// A failpoint, `name` or `name:pass`, ends the process where the node's `failpoint.rs` says.
    fn spawn(&mut self, node: usize, failpoint: Option<&str>) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.file(node, "log"))?;
        let process = Command::new(&self.binary)
            .envs(failpoint.map(|place| ("AGENTPOST_FAILPOINT", place)))
            .arg("start")
            .arg("--config")
            .arg(self.file(node, "toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", self.binary.display()))?;
        self.nodes[node - 1].process = Some(process);
        Ok(())
    }

    /// SIGKILL.
    pub fn kill(&mut self, node: usize) -> Result<()> {
        if let Some(mut process) = self.nodes[node - 1].process.take() {
            process.kill()?;
            process.wait()?;
        }
        Ok(())
    }

    /// Starts a killed node again and waits until it serves.
    pub async fn restart(&mut self, node: usize) -> Result<()> {
        ensure!(self.nodes[node - 1].process.is_none(), "node {node} runs already");
        self.spawn(node, None)?;
        self.wait_ready(node).await
    }

    /// Starts a node again that will end itself at a failpoint. Needs a binary with the feature `failpoints`.
    pub async fn arm(&mut self, node: usize, failpoint: &str) -> Result<()> {
        self.kill(node)?;
        self.spawn(node, Some(failpoint))?;
        self.wait_ready(node).await
    }

    /// SIGSTOP: the process stands still and knows nothing of it.
    pub fn pause(&self, node: usize) -> Result<()> {
        self.signal(node, "-STOP")
    }

    /// SIGCONT.
    pub fn resume(&self, node: usize) -> Result<()> {
        self.signal(node, "-CONT")
    }

    /// Through the command, because sending signals oneself takes unsafe code.
    fn signal(&self, node: usize, signal: &str) -> Result<()> {
        let process = self.nodes[node - 1].process.as_ref().context("the node does not run")?;
        let status = Command::new("kill")
            .arg(signal)
            .arg(process.id().to_string())
            .status()?;
        ensure!(status.success(), "kill {signal} ended with {status}");
        Ok(())
    }

    /// The node that leads without one that is away.
    pub async fn leader_without(&self, away: usize) -> Result<usize> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            for node in self.running().filter(|node| *node != away) {
                let key = std::fs::read_to_string(self.admin_key_file())?;
                let one = Client::builder(self.url(node))
                    .api_key(key.trim())
                    .retry(RetryPolicy::once())
                    .build()?;
                let leader = one.cluster().await.ok().and_then(|status| status.leader);
                if let Some(leader) = leader.filter(|leader| *leader as usize != away) {
                    return Ok(leader as usize);
                }
            }
            ensure!(
                Instant::now() < deadline,
                "no leader without {away} within {PATIENCE:?}"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until a node has ended by itself.
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
        bail!("node {node} lives on:\n{}", self.log(node))
    }

    /// Hands leadership to a node, in peace.
    pub async fn transfer(&self, node: usize) -> Result<()> {
        let admin = self.admin()?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            // Refused while the node is behind or nobody leads.
            let refused = admin.transfer(node as u64).await.err();
            if self.leader().await? == node {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "node {node} does not lead: {refused:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until all nodes have the same state hash at the same applied index.
    pub async fn same_state(&self) -> Result<()> {
        let admin = self.admin()?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = admin.cluster().await?;
            let hash = |n: &agentpost::api::admin::Node| n.state_hash_index.zip(n.state_hash.clone());
            let hashes: Vec<_> = status.nodes.iter().map(hash).collect();
            if hashes.len() == self.nodes.len() && hashes[0].is_some() && hashes.iter().all(|h| *h == hashes[0]) {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "the replicas' hashes never agreed: {status:?}"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Nodes whose process runs.
    pub fn running(&self) -> impl Iterator<Item = usize> {
        (1..=self.nodes.len()).filter(|node| self.nodes[node - 1].process.is_some())
    }

    /// Base URL of a node's client port.
    pub fn url(&self, node: usize) -> String {
        format!("http://127.0.0.1:{}", self.nodes[node - 1].client_port)
    }

    /// The base URLs of all nodes, separated by blanks.
    pub fn urls(&self) -> String {
        (1..=self.nodes.len())
            .map(|node| self.url(node))
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// What a node wrote to its log, for a failure's message.
    pub fn log(&self, node: usize) -> String {
        std::fs::read_to_string(self.file(node, "log")).unwrap_or_default()
    }

    /// Where node 1 wrote the first admin key.
    pub fn admin_key_file(&self) -> PathBuf {
        self.dir.path().join("admin.key")
    }

    /// A client of all nodes with the first admin key.
    pub fn admin(&self) -> Result<Client> {
        let key = std::fs::read_to_string(self.admin_key_file())?;
        Ok(Client::builder(self.urls()).api_key(key.trim()).build()?)
    }

    /// Creates a team without limits.
    pub async fn team(&self, name: &str) -> Result<Team> {
        let admin = self.admin()?;
        let limits = LimitsPatch {
            daily_sends: Some(0),
            daily_reads: Some(0),
            monthly_events: Some(0),
            ..Default::default()
        };
        let team = admin
            .create_team(&CreateTeam {
                name: name.to_owned(),
                limits: Some(limits),
            })
            .await?;
        let permissions = vec!["write".to_owned()];
        let key = CreateKey {
            name: "test".to_owned(),
            permissions,
            agent_id: None,
            scopes: None,
            expires_at: None,
        };
        let key = admin.create_key(&team.id, &key).await?;
        Ok(Team {
            id: team.id,
            key: key.api_key.into(),
        })
    }

    /// A client of one node only, that tries once.
    pub fn node_client(&self, node: usize, team: &Team, agent: &str) -> Result<Client> {
        let client = Client::builder(self.url(node))
            .api_key(&team.key)
            .agent(agent)
            .retry(RetryPolicy::once());
        Ok(client.build()?)
    }

    /// A client of all nodes.
    pub fn client(&self, team: &Team, agent: &str) -> Result<Client> {
        let client = Client::builder(self.urls()).api_key(&team.key).agent(agent);
        Ok(client.build()?)
    }

    /// The node that leads, once there is one.
    pub async fn leader(&self) -> Result<usize> {
        let admin = self.admin()?;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Ok(status) = admin.cluster().await
                && let Some(leader) = status.leader.map(|id| id as usize)
                && self.running().any(|node| node == leader)
            {
                return Ok(leader);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        bail!("no leader within {PATIENCE:?}")
    }

    async fn wait_ready(&mut self, node: usize) -> Result<()> {
        let client = Client::builder(self.url(node)).retry(RetryPolicy::once()).build()?;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if client.request(&Request::get("/readyz")).await.is_ok() {
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
        bail!("node {node} is not ready within {PATIENCE:?}:\n{}", self.log(node))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in 1..=self.nodes.len() {
            // Nobody can act on a failure here, and the process may have ended by itself.
            let _ = self.kill(node);
        }
    }
}

/// 32 random bytes that only the owner reads; a node refuses any other mode.
fn write_secret(path: &Path) -> Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    Ok(file.write_all(&rand::random::<[u8; 32]>())?)
}

/// Ports that nobody listens on. All are held while they are chosen, so no two are the same.
fn free_ports(count: usize) -> Result<Vec<u16>> {
    let listeners = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0"))
        .collect::<std::io::Result<Vec<_>>>()?;
    listeners.iter().map(|l| Ok(l.local_addr()?.port())).collect()
}

/// `AGENTPOSTD_BIN`, or the binary of the same build as this test.
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
