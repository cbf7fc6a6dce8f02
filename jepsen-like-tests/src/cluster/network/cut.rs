//! The faults of a network: links that are cut, and links of bad quality.

use std::collections::BTreeSet;
use std::fmt;

/// One end of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Endpoint {
    Node(usize),
    /// The clients and their servers.
    Clients,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Node(node) => node.fmt(f),
            Endpoint::Clients => f.write_str("clients"),
        }
    }
}

/// A set of links that are cut.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cut {
    pub(super) pairs: BTreeSet<(Endpoint, Endpoint)>,
    pub(super) manner: CutManner,
}

/// The behaviour of a cut link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum CutManner {
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
                .map(|(a, b)| (Endpoint::Node(a), Endpoint::Node(b)))
                .collect(),
            manner: CutManner::Silent,
        }
    }

    /// Cuts the links in both directions.
    pub fn between(some: &[usize], others: &[usize]) -> Self {
        Cut::one_way(some, others).and(Cut::one_way(others, some))
    }

    /// Cuts the links between a node and its clients in both directions.
    pub fn clients_of(node: usize) -> Self {
        let (node, clients) = (Endpoint::Node(node), Endpoint::Clients);
        Cut {
            pairs: BTreeSet::from([(node, clients), (clients, node)]),
            manner: CutManner::Silent,
        }
    }

    /// Adds the links of another cut; the manner stays that of `self`.
    pub fn and(mut self, other: Cut) -> Self {
        self.pairs.extend(other.pairs);
        self
    }

    /// Resets connections instead of being silent.
    pub fn with_resets(mut self) -> Self {
        self.manner = CutManner::Resets;
        self
    }

    /// Silences only the connections that are open now, like a firewall that has lost its connection table.
    pub fn of_open_connections(mut self) -> Self {
        self.manner = CutManner::OpenConnections;
        self
    }

    /// The links whose ends are both nodes.
    pub fn node_links(&self) -> Vec<(usize, usize)> {
        let links = self.pairs.iter().filter_map(|pair| match pair {
            (Endpoint::Node(from), Endpoint::Node(to)) => Some((*from, *to)),
            _ => None,
        });
        links.collect()
    }

    /// Whether any link leads to or from clients.
    pub(super) fn concerns_clients(&self) -> bool {
        let mut pairs = self.pairs.iter();
        pairs.any(|(from, to)| *from == Endpoint::Clients || *to == Endpoint::Clients)
    }

    /// The nodes at the ends of the links.
    pub fn nodes(&self) -> Vec<usize> {
        let ends = self.pairs.iter().flat_map(|(from, to)| [from, to]);
        let nodes: BTreeSet<usize> = ends
            .filter_map(|end| match end {
                Endpoint::Node(node) => Some(*node),
                Endpoint::Clients => None,
            })
            .collect();
        nodes.into_iter().collect()
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs: Vec<String> = self.pairs.iter().map(|(from, to)| format!("{from}>{to}")).collect();
        let how = match self.manner {
            CutManner::Silent => "",
            CutManner::Resets => ", resets",
            CutManner::OpenConnections => ", open connections",
        };
        write!(f, "{}{how}", pairs.join(" "))
    }
}

/// The quality of all links between nodes. The default is a perfect network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quality {
    /// One-backend delay in milliseconds.
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
