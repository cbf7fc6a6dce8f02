//! Where nodes live, how they reach each other, and how that is taken from them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;

use anyhow::Result;

/// Which network a run asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Kind {
    /// All on 127.0.0.1; nothing can be cut.
    #[default]
    Loopback,
}

/// The network of a cluster.
pub struct Network {
    ports: Vec<(u16, u16)>,
}

impl Network {
    /// A network for so many nodes.
    pub fn create(kind: Kind, nodes: usize) -> Result<Self> {
        let Kind::Loopback = kind;
        let ports = free_ports(2 * nodes)?;
        Ok(Network {
            ports: ports.chunks(2).map(|p| (p[0], p[1])).collect(),
        })
    }

    /// Where a node's client port is, for clients and for itself.
    pub fn client_addr(&self, node: usize) -> SocketAddr {
        SocketAddr::new(self.host(), self.ports[node - 1].0)
    }

    /// Where a node listens for the others.
    pub fn peer_addr(&self, node: usize) -> SocketAddr {
        SocketAddr::new(self.host(), self.ports[node - 1].1)
    }

    /// Where the others reach it: itself, or a proxy before it.
    pub fn peer_addr_for_others(&self, node: usize) -> SocketAddr {
        self.peer_addr(node)
    }

    /// Where servers of clients listen so that nodes reach them.
    pub fn host(&self) -> IpAddr {
        Ipv4Addr::LOCALHOST.into()
    }

    /// A command that runs a program where the node lives.
    pub fn command(&self, _node: usize, program: &Path) -> Command {
        Command::new(program)
    }

    /// Makes the network whole again.
    pub async fn heal(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Ports that nobody listens on. All are held while they are chosen, so no two are the same.
fn free_ports(count: usize) -> Result<Vec<u16>> {
    let listeners = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0"))
        .collect::<std::io::Result<Vec<_>>>()?;
    listeners.iter().map(|l| Ok(l.local_addr()?.port())).collect()
}
