//! The network between the nodes, and its faults.
//!
//! | | each node has | cuts | packet loss | slow links |
//! |---|---|---|---|---|
//! | [`NetworkKind::Loopback`] | ports of 127.0.0.1 | – | – | – |
//! | [`NetworkKind::Namespaces`] | a network namespace and an address of its own | packets, including the clients' | yes | bandwidth |
//! | [`NetworkKind::Proxied`] | the same as loopback, and a proxy in front of its peer port | traffic between nodes | – | latency and bandwidth |
//!
//! A cut is a set of directed links. A cut link is silent, as if a cable were pulled. Only namespaces need root.

mod cut;
mod namespaces;
mod proxy;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Result, bail, ensure};

pub use self::cut::{Cut, Endpoint, Quality};
use self::namespaces::Namespaces;
use self::proxy::Proxies;

/// The network of a cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum NetworkKind {
    /// All nodes on 127.0.0.1; no faults.
    #[default]
    Loopback,
    /// One network namespace per node, all on one bridge; the kernel drops packets. Needs root.
    Namespaces,
    /// All nodes on 127.0.0.1, with a proxy in front of each peer port.
    Proxied,
}

impl NetworkKind {
    /// The best kind on this machine that supports cuts.
    pub fn cuttable() -> Self {
        match why_no_namespaces() {
            None => NetworkKind::Namespaces,
            Some(_) => NetworkKind::Proxied,
        }
    }
}

/// Why [`NetworkKind::Namespaces`] is not available on this machine, found out by trying; `None` if it is.
pub fn why_no_namespaces() -> Option<&'static str> {
    static TRIED: OnceLock<Option<String>> = OnceLock::new();
    TRIED
        .get_or_init(|| namespaces::try_out().err().map(|e| format!("{e:#}")))
        .as_deref()
}

pub struct Network {
    /// The client port and the peer port of each node on loopback.
    ports: Vec<(u16, u16)>,
    backend: Backend,
}

enum Backend {
    Direct,
    Namespaces(Namespaces),
    Proxied(Proxies),
}

/// The client port and the peer port in a namespace, where no port is taken.
const PORTS: (u16, u16) = (7700, 7800);

impl Network {
    /// Creates the network of a cluster. Proxies run on the current runtime.
    pub fn create(kind: NetworkKind, nodes: usize) -> Result<Self> {
        let mut network = Network {
            ports: vec![PORTS; nodes],
            backend: Backend::Direct,
        };
        if kind == NetworkKind::Namespaces {
            network.backend = Backend::Namespaces(Namespaces::create(nodes)?);
            return Ok(network);
        }
        network.ports = free_ports(2 * nodes)?.chunks(2).map(|p| (p[0], p[1])).collect();
        if kind == NetworkKind::Proxied {
            let peers = (1..=nodes).map(|node| network.peer_addr(node)).collect();
            network.backend = Backend::Proxied(Proxies::start(peers)?);
        }
        Ok(network)
    }

    /// Adds a node; on loopback only.
    pub fn grow(&mut self) -> Result<()> {
        ensure!(
            matches!(self.backend, Backend::Direct),
            "nodes can be added on loopback only"
        );
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
        match &self.backend {
            Backend::Proxied(proxies) => proxies.address(node),
            _ => self.peer_addr(node),
        }
    }

    fn address(&self, node: usize) -> IpAddr {
        match &self.backend {
            Backend::Namespaces(namespaces) => namespaces.address(node).into(),
            _ => self.host(),
        }
    }

    /// The address on which servers of clients listen, reachable from the nodes.
    pub fn host(&self) -> IpAddr {
        match &self.backend {
            Backend::Namespaces(namespaces) => namespaces.host().into(),
            _ => Ipv4Addr::LOCALHOST.into(),
        }
    }

    /// A command that runs a program on a node's network, as the command's own process.
    pub fn command(&self, node: usize, program: &Path) -> Command {
        match &self.backend {
            Backend::Namespaces(namespaces) => namespaces.command(node, program),
            _ => Command::new(program),
        }
    }

    /// Registers the process of a node; proxies identify the sender of a connection by it.
    pub fn register_process(&mut self, node: usize, process: u32) {
        if let Backend::Proxied(proxies) = &self.backend {
            proxies.register_process(node, process);
        }
    }

    /// Cuts these links and restores all others.
    pub fn cut(&mut self, cut: &Cut) -> Result<()> {
        match &mut self.backend {
            Backend::Direct => bail!("loopback cannot be cut"),
            Backend::Namespaces(namespaces) => namespaces.cut(cut),
            Backend::Proxied(proxies) => {
                ensure!(!cut.concerns_clients(), "proxies cannot cut clients off");
                proxies.cut(cut);
                Ok(())
            }
        }
    }

    /// Whether [`Self::set_quality`] supports this quality.
    pub fn supports(&self, quality: &Quality) -> bool {
        match &self.backend {
            Backend::Direct => *quality == Quality::default(),
            Backend::Namespaces(_) => quality.delay_ms + quality.jitter_ms == 0,
            Backend::Proxied(_) => quality.loss_percent == 0,
        }
    }

    /// Sets the quality of all links between nodes.
    pub fn set_quality(&mut self, quality: &Quality) -> Result<()> {
        ensure!(self.supports(quality), "this network does not support {quality}");
        match &mut self.backend {
            Backend::Direct => Ok(()),
            Backend::Namespaces(namespaces) => namespaces.set_quality(quality),
            Backend::Proxied(proxies) => {
                proxies.set_quality(quality);
                Ok(())
            }
        }
    }

    /// Restores a perfect network.
    pub async fn heal(&mut self) -> Result<()> {
        match &mut self.backend {
            Backend::Direct => Ok(()),
            _ => {
                self.cut(&Cut::default())?;
                self.set_quality(&Quality::default())
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
