//! One network namespace per node: each node is a host with its own address on a bridge, and the harness is another.
//!
//! Cut packets are dropped inside the node's namespace by nftables, so the rules of the machine do not change. All
//! names begin with the harness's process id and a counter, and only names with that prefix are removed.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, ensure};

use super::cut::{Cut, CutManner, Endpoint, Quality};

/// A process that looks for a free subnet locks this file.
const LOCK: &str = "agentpost-subnets.lock";
/// The harness's host number in the subnet; each node has its own number.
const HARNESS: u8 = 254;
/// The interface of a node in its namespace.
const INTERFACE: &str = "eth0";
/// The first packet of a connection.
const OPENS: &str = "tcp flags & (syn | ack) == syn";
/// A packet that resets a connection.
const RESETS: &str = "tcp flags & rst == rst";
/// How long a packet waits in the queue of a slow link before it is dropped.
const QUEUE: &str = "200ms";

/// The namespaces of a cluster, which are removed when the value is dropped.
pub struct Namespaces {
    /// The name of the bridge; `<name>.<node>` is a node's namespace, and its interface on the bridge.
    name: String,
    /// `10.a.b.0/24`.
    subnet: [u8; 2],
    nodes: usize,
    cut: Cut,
    loss_percent: u64,
}

/// Creates a network of one node and removes it.
pub fn try_out() -> Result<()> {
    let mut namespaces = Namespaces::create(1)?;
    namespaces.cut(&Cut::clients_of(1))?;
    namespaces.set_quality(&Quality {
        loss_percent: 1,
        bits_per_s: 1_000_000,
        ..Quality::default()
    })
}

impl Namespaces {
    /// Creates a bridge and the namespaces.
    pub fn create(nodes: usize) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        ensure!(nodes < usize::from(HARNESS), "a subnet has no room for {nodes} nodes");
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let mut namespaces = Namespaces {
            // The kernel allows 15 characters, including the node's number.
            name: format!("ap{:x}.{count}", std::process::id()),
            subnet: [0, 0],
            nodes,
            cut: Cut::default(),
            loss_percent: 0,
        };
        // If a later step fails, dropping the value removes what exists.
        namespaces.bridge()?;
        for node in 1..=nodes {
            namespaces.node(node)?;
        }
        Ok(namespaces)
    }

    fn bridge(&mut self) -> Result<()> {
        let lock = File::create(std::env::temp_dir().join(LOCK)).context("the lock of the subnets")?;
        lock.lock()?;
        let taken = format!(
            "{}{}",
            output(Command::new("ip").args(["-4", "route", "show", "table", "all"]))?,
            output(Command::new("ip").args(["-4", "-o", "address", "show"]))?
        );
        let wanted = rand::random::<u16>();
        let free = (0..=u16::MAX).map(|n| wanted.wrapping_add(n).to_be_bytes());
        self.subnet = free
            .into_iter()
            .find(|subnet| !is_taken(*subnet, &taken))
            .context("no free subnet in 10.0.0.0/8")?;
        let (name, host) = (&self.name, self.host());
        ip(
            None,
            &format!("link add {name} type bridge\naddress add {host}/24 dev {name}\nlink set {name} up\n"),
        )
    }

    fn node(&self, node: usize) -> Result<()> {
        let (bridge, name, address) = (&self.name, self.name_of(node), self.address(node));
        ip(
            None,
            &format!(
                "netns add {name}\n\
                 link add {name} type veth peer name {INTERFACE} netns {name}\n\
                 link set {name} master {bridge} up\n"
            ),
        )?;
        ip(
            Some(&name),
            &format!("link set lo up\naddress add {address}/24 dev {INTERFACE}\nlink set {INTERFACE} up\n"),
        )
    }

    fn name_of(&self, node: usize) -> String {
        format!("{}.{node}", self.name)
    }

    fn at(&self, place: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, self.subnet[0], self.subnet[1], place)
    }

    pub fn address(&self, node: usize) -> Ipv4Addr {
        self.at(node as u8)
    }

    /// The address of the harness.
    pub fn host(&self) -> Ipv4Addr {
        self.at(HARNESS)
    }

    /// A command that runs a program in a node's namespace, as the command's own process.
    pub fn command(&self, node: usize, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.name_of(node)))
            .arg(program);
        command
    }

    /// Drops the packets of cut links at the receiving node; packets to clients at the sending node.
    pub fn cut(&mut self, cut: &Cut) -> Result<()> {
        self.cut = cut.clone();
        (1..=self.nodes).try_for_each(|node| self.write_rules(node))
    }

    /// Drops random packets between nodes and limits the bandwidth of each node.
    pub fn set_quality(&mut self, quality: &Quality) -> Result<()> {
        self.loss_percent = quality.loss_percent;
        for node in 1..=self.nodes {
            self.write_rules(node)?;
            self.limit(node, quality.bits_per_s)?;
        }
        Ok(())
    }

    fn write_rules(&self, node: usize) -> Result<()> {
        let rules = self.rules(node)?;
        run(self.command(node, Path::new("nft")).args(["-f", "-"]), &rules)
    }

    /// The complete rule set of a node; nftables replaces it atomically.
    fn rules(&self, node: usize) -> Result<String> {
        let mut arriving = String::new();
        let mut leaving = String::new();
        if self.cut.manner == CutManner::OpenConnections {
            // New connections are recorded and pass.
            writeln!(arriving, "{OPENS} add @new {{ ip saddr . tcp sport . tcp dport }}")?;
            writeln!(leaving, "{OPENS} add @new {{ ip daddr . tcp dport . tcp sport }}")?;
            writeln!(arriving, "ip saddr . tcp sport . tcp dport @new accept")?;
            writeln!(leaving, "ip daddr . tcp dport . tcp sport @new accept")?;
        }
        if self.cut.manner == CutManner::Resets {
            // Resets must arrive.
            writeln!(arriving, "{RESETS} accept")?;
            writeln!(leaving, "{RESETS} accept")?;
        }
        for (from, to) in &self.cut.pairs {
            let (chain, field, other) = match (from, to) {
                (from, Endpoint::Node(to)) if *to == node => (&mut arriving, "saddr", from),
                (Endpoint::Node(from), Endpoint::Clients) if *from == node => (&mut leaving, "daddr", to),
                _ => continue,
            };
            let address = match other {
                Endpoint::Node(other) => self.address(*other),
                Endpoint::Clients => self.host(),
            };
            if self.cut.manner == CutManner::Resets {
                writeln!(chain, "ip {field} {address} meta l4proto tcp reject with tcp reset")?;
            }
            writeln!(chain, "ip {field} {address} drop")?;
        }
        if self.loss_percent > 0 {
            let (host, last) = (self.host(), self.loss_percent - 1);
            writeln!(
                arriving,
                "iifname {INTERFACE} ip saddr != {host} numgen random mod 100 <= {last} drop"
            )?;
        }
        Ok(format!(
            "table inet faults\ndelete table inet faults\ntable inet faults {{\n\
             set new {{ typeof ip saddr . tcp sport . tcp dport; flags dynamic; size 65535; }}\n\
             chain arriving {{ type filter hook input priority 0;\n{arriving}}}\n\
             chain leaving {{ type filter hook output priority 0;\n{leaving}}}\n}}\n"
        ))
    }

    fn limit(&self, node: usize, bits_per_s: u64) -> Result<()> {
        let name = self.name_of(node);
        // `noqueue` is the default of the interface and removes an earlier limit.
        let queue = match bits_per_s {
            0 => "noqueue".to_owned(),
            bits_per_s => format!("tbf rate {bits_per_s}bit burst 16kb latency {QUEUE}"),
        };
        run(
            Command::new("tc").args(["-n", &name, "-batch", "-"]),
            &format!("qdisc replace dev {INTERFACE} root {queue}\n"),
        )
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        // Each name separately: some may not exist, and nobody can act on a failure here.
        for node in 1..=self.nodes {
            let name = self.name_of(node);
            let _ = ip(None, &format!("link delete {name}\n"));
            let _ = ip(None, &format!("netns delete {name}\n"));
        }
        let _ = ip(None, &format!("link delete {}\n", self.name));
    }
}

/// Whether `10.a.b.0/24` overlaps an address or network in a text.
fn is_taken([a, b]: [u8; 2], text: &str) -> bool {
    let ours = u32::from(Ipv4Addr::new(10, a, b, 0));
    text.split_whitespace().any(|word| {
        let (address, length) = word.split_once('/').unwrap_or((word, "32"));
        let (Ok(address), Ok(length @ 1..=32)) = (address.parse::<Ipv4Addr>(), length.parse::<u32>()) else {
            return false;
        };
        let mask = u32::MAX << (32 - length.min(24));
        (u32::from(address) ^ ours) & mask == 0
    })
}

/// Runs lines of `ip`, optionally in a namespace.
fn ip(namespace: Option<&str>, lines: &str) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(namespace.iter().flat_map(|name| ["-n", name]));
    run(command.args(["-batch", "-"]), lines)
}

/// Runs a command with an input; its error output becomes the error.
fn run(command: &mut Command, input: &str) -> Result<()> {
    let what = format!("{command:?}");
    let child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.with_context(|| what.clone())?;
    // A command that has failed already does not read its input; its error output says why.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
    let done = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "{what}: {}\n{input}", said.trim());
    Ok(())
}

fn output(command: &mut Command) -> Result<String> {
    let done = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(done.status.success(), "{command:?} ended with {}", done.status);
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}
