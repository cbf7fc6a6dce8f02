//! Where nodes live, how they reach each other, and how that is taken from them.
//!
//! | | each node has | cuts | loses packets | slows down |
//! |---|---|---|---|---|
//! | [`Kind::Loopback`] | ports of 127.0.0.1 | – | – | – |
//! | [`Kind::Namespaces`] | a network namespace and an address of its own | packets, also the clients' | yes | bandwidth |
//! | [`Kind::Proxied`] | the same as loopback, and a proxy before its peer port | what runs between nodes | – | latency and bandwidth |
//!
//! A cut is a set of directed pairs, and what is cut is silent: nobody is told, as when a cable is pulled. Only the
//! namespaces need root.

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

/// Which network a run asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Kind {
    /// All on 127.0.0.1; nothing can be cut.
    #[default]
    Loopback,
    /// A network namespace for each node, all on one bridge; the kernel drops. Needs root.
    Namespaces,
    /// All on 127.0.0.1, with a proxy before each node's peer port.
    Proxied,
}

impl Kind {
    /// One that can be cut, on this machine: the kernel's where it lets us.
    pub fn cuttable() -> Self {
        match without_namespaces() {
            None => Kind::Namespaces,
            Some(_) => Kind::Proxied,
        }
    }
}

/// Why this machine has no [`Kind::Namespaces`], found out by trying.
pub fn without_namespaces() -> Option<&'static str> {
    static TRIED: OnceLock<Option<String>> = OnceLock::new();
    TRIED
        .get_or_init(|| namespaces::try_out().err().map(|e| format!("{e:#}")))
        .as_deref()
}

/// One end of a way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// A node.
    Node(usize),
    /// The clients, and servers of clients.
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

/// What does not arrive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cut {
    pairs: BTreeSet<(End, End)>,
    manner: Manner,
}

/// How it does not arrive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Manner {
    /// Nobody is told.
    #[default]
    Silent,
    /// Whoever sends is told that the connection is gone.
    Resets,
    /// Only what goes over connections that are open now; nobody is told.
    OpenConnections,
}

impl Cut {
    /// Nothing that these nodes send to those arrives.
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

    /// Neither way.
    pub fn between(some: &[usize], others: &[usize]) -> Self {
        Cut::one_way(some, others).and(Cut::one_way(others, some))
    }

    /// A node and its clients, neither way.
    pub fn clients_of(node: usize) -> Self {
        let (node, clients) = (End::Node(node), End::Clients);
        Cut {
            pairs: BTreeSet::from([(node, clients), (clients, node)]),
            manner: Manner::Silent,
        }
    }

    /// Both, in the manner of the first.
    pub fn and(mut self, other: Cut) -> Self {
        self.pairs.extend(other.pairs);
        self
    }

    /// Not silent: whoever sends is told that the connection is gone.
    pub fn with_resets(mut self) -> Self {
        self.manner = Manner::Resets;
        self
    }

    /// As when a firewall forgot its connections: those that are open now are silent, new ones work.
    pub fn of_open_connections(mut self) -> Self {
        self.manner = Manner::OpenConnections;
        self
    }

    /// The nodes that it touches.
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

/// How bad the ways between all nodes are. The default is as good as they get.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quality {
    /// Everything comes so much later, one way.
    pub delay_ms: u64,
    /// Up to so much more or less.
    pub jitter_ms: u64,
    /// So many packets of a hundred are lost.
    pub loss_percent: u64,
    /// A node sends this much at most; 0 = no bound.
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

/// The network of a cluster.
pub struct Network {
    /// Of each node on loopback: client port and peer port.
    ports: Vec<(u16, u16)>,
    way: Way,
}

enum Way {
    Direct,
    Namespaces(Namespaces),
    Proxied(Proxies),
}

/// In a namespace no port is taken.
const PORTS: (u16, u16) = (7700, 7800);

impl Network {
    /// A network for so many nodes. Proxies run on the runtime that this is called on.
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

    /// One more node, on loopback only.
    pub fn grow(&mut self) -> Result<()> {
        ensure!(matches!(self.way, Way::Direct), "only loopback grows");
        self.ports.extend(free_ports(2)?.chunks(2).map(|p| (p[0], p[1])));
        Ok(())
    }

    /// Where a node's client port is, for clients and for itself.
    pub fn client_addr(&self, node: usize) -> SocketAddr {
        SocketAddr::new(self.address(node), self.ports[node - 1].0)
    }

    /// Where a node listens for the others.
    pub fn peer_addr(&self, node: usize) -> SocketAddr {
        SocketAddr::new(self.address(node), self.ports[node - 1].1)
    }

    /// Where the others reach it: itself, or a proxy before it.
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

    /// Where servers of clients listen so that nodes reach them.
    pub fn host(&self) -> IpAddr {
        match &self.way {
            Way::Namespaces(namespaces) => namespaces.host().into(),
            _ => Ipv4Addr::LOCALHOST.into(),
        }
    }

    /// A command that runs a program where the node lives. The program's process is the command's own.
    pub fn command(&self, node: usize, program: &Path) -> Command {
        match &self.way {
            Way::Namespaces(namespaces) => namespaces.command(node, program),
            _ => Command::new(program),
        }
    }

    /// Tells it which process a node is now: proxies tell by that who dials.
    pub fn moved_in(&mut self, node: usize, process: u32) {
        if let Way::Proxied(proxies) = &self.way {
            proxies.moved_in(node, process);
        }
    }

    /// Cuts these ways; what was cut before is whole again.
    pub fn cut(&mut self, cut: &Cut) -> Result<()> {
        match &mut self.way {
            Way::Direct => bail!("loopback cannot be cut"),
            Way::Namespaces(namespaces) => namespaces.cut(cut),
            Way::Proxied(proxies) => {
                let clients = |(from, to): &(End, End)| *from == End::Clients || *to == End::Clients;
                ensure!(!cut.pairs.iter().any(clients), "clients do not pass the proxies");
                proxies.cut(cut);
                Ok(())
            }
        }
    }

    /// Whether [`Self::worsen`] can do this.
    pub fn can(&self, quality: &Quality) -> bool {
        match &self.way {
            Way::Direct => *quality == Quality::default(),
            Way::Namespaces(_) => quality.delay_ms + quality.jitter_ms == 0,
            Way::Proxied(_) => quality.loss_percent == 0,
        }
    }

    /// Makes the ways between all nodes as bad as this.
    pub fn worsen(&mut self, quality: &Quality) -> Result<()> {
        ensure!(self.can(quality), "this network cannot do {quality}");
        match &mut self.way {
            Way::Direct => Ok(()),
            Way::Namespaces(namespaces) => namespaces.worsen(quality),
            Way::Proxied(proxies) => {
                proxies.worsen(quality);
                Ok(())
            }
        }
    }

    /// Makes the network whole again.
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

/// Ports that nobody listens on. All are held while they are chosen, so no two are the same.
fn free_ports(count: usize) -> Result<Vec<u16>> {
    let listeners = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0"))
        .collect::<std::io::Result<Vec<_>>>()?;
    listeners.iter().map(|l| Ok(l.local_addr()?.port())).collect()
}
