//! The network between the nodes, and its faults.
//!
//! | | each node has | cuts | packet loss | slow links |
//! |---|---|---|---|---|
//! | [`Kind::Loopback`] | ports of 127.0.0.1 | – | – | – |
//! | [`Kind::Namespaces`] | a network namespace and an address of its own | packets, including the clients' | yes | bandwidth |
//! | [`Kind::Proxied`] | the same as loopback, and a proxy in front of its peer port | traffic between nodes | – | latency and bandwidth |
//!
//! A cut is a set of directed links. A cut link is silent, as if a cable were pulled. Only namespaces need root.

mod namespaces;
mod proxy;

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Result, bail, ensure};

use self::namespaces::Namespaces;
use self::proxy::Proxies;

/// The network of a cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Kind {
    /// All nodes on 127.0.0.1; no faults.
    #[default]
    Loopback,
    /// One network namespace per node, all on one bridge; the kernel drops packets. Needs root.
    Namespaces,
    /// All nodes on 127.0.0.1, with a proxy in front of each peer port.
    Proxied,
}

impl Kind {
    /// The best kind on this machine that supports cuts.
    pub fn cuttable() -> Self {
        match without_namespaces() {
            None => Kind::Namespaces,
            Some(_) => Kind::Proxied,
        }
    }
}

/// Why [`Kind::Namespaces`] is not available on this machine, found out by trying; `None` if it is.
pub fn without_namespaces() -> Option<&'static str> {
    static TRIED: OnceLock<Option<String>> = OnceLock::new();
    TRIED
        .get_or_init(|| namespaces::try_out().err().map(|e| format!("{e:#}")))
        .as_deref()
}

/// One end of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    Node(usize),
    /// The clients and their servers.
    Clients,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Node(node) => node.fmt(f),
            End::Clients => f.write_str("clients"),
        }
    }
}

/// A set of links that are cut.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cut {
    pairs: BTreeSet<(End, End)>,
    manner: Manner,
}

/// The behaviour of a cut link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Manner {
    /// Packets are dropped silently.
    #[default]
    Silent,
    /// The sender's connection is reset.
    Resets,
    /// Only the connections that are open now are silent; new ones work.
    OpenConnections,
}

impl Cut {
    /// Cuts the links from these nodes to those.
    pub fn one_way(from: &[usize], to: &[usize]) -> Self {
        let pairs = from.iter().flat_map(|a| to.iter().map(|b| (*a, *b)));
        Cut {
            pairs: pairs
                .filter(|(a, b)| a != b)
                .map(|(a, b)| (End::Node(a), End::Node(b)))
                .collect(),
            manner: Manner::Silent,
        }
    }

    /// Cuts the links in both directions.
    pub fn between(some: &[usize], others: &[usize]) -> Self {
        Cut::one_way(some, others).and(Cut::one_way(others, some))
    }

    /// Cuts the links between a node and its clients in both directions.
    pub fn clients_of(node: usize) -> Self {
        let (node, clients) = (End::Node(node), End::Clients);
        Cut {
            pairs: BTreeSet::from([(node, clients), (clients, node)]),
            manner: Manner::Silent,
        }
    }

    /// Adds the links of another cut; the manner stays that of `self`.
    pub fn and(mut self, other: Cut) -> Self {
        self.pairs.extend(other.pairs);
        self
    }

    /// Resets connections instead of being silent.
    pub fn with_resets(mut self) -> Self {
        self.manner = Manner::Resets;
        self
    }

    /// Silences only the connections that are open now, like a firewall that has lost its connection table.
    pub fn of_open_connections(mut self) -> Self {
        self.manner = Manner::OpenConnections;
        self
    }

    /// The nodes at the ends of the links.
    pub fn nodes(&self) -> Vec<usize> {
        let ends = self.pairs.iter().flat_map(|(from, to)| [from, to]);
        let nodes: BTreeSet<usize> = ends
            .filter_map(|end| match end {
                End::Node(node) => Some(*node),
                End::Clients => None,
            })
            .collect();
        nodes.into_iter().collect()
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs: Vec<String> = self.pairs.iter().map(|(from, to)| format!("{from}>{to}")).collect();
        let how = match self.manner {
            Manner::Silent => "",
            Manner::Resets => ", resets",
            Manner::OpenConnections => ", open connections",
        };
        write!(f, "{}{how}", pairs.join(" "))
    }
}

/// The quality of all links between nodes. The default is a perfect network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quality {
    /// One-way delay in milliseconds.
    pub delay_ms: u64,
    /// Maximum deviation from the delay, in milliseconds.
    pub jitter_ms: u64,
    pub loss_percent: u64,
    /// The bandwidth of each node's outgoing traffic; 0 means no limit.
    pub bits_per_s: u64,
}

impl fmt::Display for Quality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Quality {
            delay_ms,
            jitter_ms,
            loss_percent,
            bits_per_s,
        } = self;
        let parts = [
            (delay_ms + jitter_ms, format!("{delay_ms}±{jitter_ms} ms")),
            (*loss_percent, format!("{loss_percent} % lost")),
            (*bits_per_s, format!("{bits_per_s} bit/s")),
        ];
        let parts: Vec<String> = parts.into_iter().filter(|(n, _)| *n > 0).map(|(_, s)| s).collect();
        f.write_str(&parts.join(", "))
    }
}

pub struct Network {
    /// The client port and the peer port of each node on loopback.
    ports: Vec<(u16, u16)>,
    way: Way,
}

enum Way {
    Direct,
    Namespaces(Namespaces),
    Proxied(Proxies),
}

/// The client port and the peer port in a namespace, where no port is taken.
const PORTS: (u16, u16) = (7700, 7800);

impl Network {
    /// Creates the network of a cluster. Proxies run on the current runtime.
    pub fn create(kind: Kind, nodes: usize) -> Result<Self> {
        let mut network = Network {
            ports: vec![PORTS; nodes],
            way: Way::Direct,
        };
        if kind == Kind::Namespaces {
            network.way = Way::Namespaces(Namespaces::create(nodes)?);
            return Ok(network);
        }
        network.ports = free_ports(2 * nodes)?.chunks(2).map(|p| (p[0], p[1])).collect();
        if kind == Kind::Proxied {
            let peers = (1..=nodes).map(|node| network.peer_addr(node)).collect();
            network.way = Way::Proxied(Proxies::start(peers)?);
        }
        Ok(network)
    }

    /// Adds a node; on loopback only.
    pub fn grow(&mut self) -> Result<()> {
        ensure!(matches!(self.way, Way::Direct), "nodes can be added on loopback only");
        self.ports.extend(free_ports(2)?.chunks(2).map(|p| (p[0], p[1])));
        Ok(())
    }

    /// The address of a node's client port.
    pub fn client_addr(&self, node: usize) -> SocketAddr {
        SocketAddr::new(self.address(node), self.ports[node - 1].0)
    }

    /// The address on which a node listens for other nodes.
    pub fn peer_addr(&self, node: usize) -> SocketAddr {
        SocketAddr::new(self.address(node), self.ports[node - 1].1)
    }

    /// The address under which other nodes reach it: its own, or that of its proxy.
    pub fn peer_addr_for_others(&self, node: usize) -> SocketAddr {
        match &self.way {
            Way::Proxied(proxies) => proxies.address(node),
            _ => self.peer_addr(node),
        }
    }

    fn address(&self, node: usize) -> IpAddr {
        match &self.way {
            Way::Namespaces(namespaces) => namespaces.address(node).into(),
            _ => self.host(),
        }
    }

    /// The address on which servers of clients listen, reachable from the nodes.
    pub fn host(&self) -> IpAddr {
        match &self.way {
            Way::Namespaces(namespaces) => namespaces.host().into(),
            _ => Ipv4Addr::LOCALHOST.into(),
        }
    }

    /// A command that runs a program on a node's network, as the command's own process.
    pub fn command(&self, node: usize, program: &Path) -> Command {
        match &self.way {
            Way::Namespaces(namespaces) => namespaces.command(node, program),
            _ => Command::new(program),
        }
    }

    /// Registers the process of a node; proxies identify the sender of a connection by it.
    pub fn moved_in(&mut self, node: usize, process: u32) {
        if let Way::Proxied(proxies) = &self.way {
            proxies.moved_in(node, process);
        }
    }

    /// Cuts these links and restores all others.
    pub fn cut(&mut self, cut: &Cut) -> Result<()> {
        match &mut self.way {
            Way::Direct => bail!("loopback cannot be cut"),
            Way::Namespaces(namespaces) => namespaces.cut(cut),
            Way::Proxied(proxies) => {
                let clients = |(from, to): &(End, End)| *from == End::Clients || *to == End::Clients;
                ensure!(!cut.pairs.iter().any(clients), "proxies cannot cut clients off");
                proxies.cut(cut);
                Ok(())
            }
        }
    }

    /// Whether [`Self::worsen`] supports this quality.
    pub fn can(&self, quality: &Quality) -> bool {
        match &self.way {
            Way::Direct => *quality == Quality::default(),
            Way::Namespaces(_) => quality.delay_ms + quality.jitter_ms == 0,
            Way::Proxied(_) => quality.loss_percent == 0,
        }
    }

    /// Sets the quality of all links between nodes.
    pub fn worsen(&mut self, quality: &Quality) -> Result<()> {
        ensure!(self.can(quality), "this network does not support {quality}");
        match &mut self.way {
            Way::Direct => Ok(()),
            Way::Namespaces(namespaces) => namespaces.worsen(quality),
            Way::Proxied(proxies) => {
                proxies.worsen(quality);
                Ok(())
            }
        }
    }

    /// Restores a perfect network.
    pub async fn heal(&mut self) -> Result<()> {
        match &mut self.way {
            Way::Direct => Ok(()),
            _ => {
                self.cut(&Cut::default())?;
                self.worsen(&Quality::default())
            }
        }
    }
}

/// Chooses free ports. All are bound while they are chosen, so that no two are the same.
fn free_ports(count: usize) -> Result<Vec<u16>> {
    let listeners = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0"))
        .collect::<std::io::Result<Vec<_>>>()?;
    listeners.iter().map(|l| Ok(l.local_addr()?.port())).collect()
}
