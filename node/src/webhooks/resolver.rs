//! Resolves host names to addresses that webhooks may dial.
//!
//! The resolver runs for each new connection, and the addresses it returns are the ones that are dialled. A name that
//! resolved differently at registration, or will in a moment, gains nothing.
//!
//! Names are looked up by `getaddrinfo`, although a look-up occupies a thread. `hickory-resolver` 0.26 reads
//! `resolv.conf` and `hosts` only once and knows no `nsswitch.conf`; nodes dial each other by `getaddrinfo`, and a
//! resolver that knows other names could miss a listener of the cluster that [`Rules::check`] must refuse.

use std::collections::HashMap;
use std::future::Future;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use agentpost_raft_store::disk::types::Member;
use parking_lot::{Mutex, RwLock};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use url::{Host, Url};

use crate::base::config::Config;
use crate::base::networks::{Kind, Network, kind};

/// Upper bound on the DNS look-ups at a time on one node. Each occupies a thread that cannot be stopped.
const LOOKUPS_MAX: usize = 192;
/// How long the addresses of the cluster's own nodes are cached.
const OWN_ADDRESSES_FOR: Duration = Duration::from_secs(30);
/// How long a connection waits for their lookup.
const OWN_LOOKUP_TIMEOUT: Duration = Duration::from_secs(1);

/// The future of a lookup.
pub type Looked = Pin<Box<dyn Future<Output = std::io::Result<Vec<IpAddr>>> + Send>>;

/// A source of addresses for names.
pub trait Lookup: Send + Sync {
    /// Returns all addresses of `name`.
    fn lookup(&self, name: String) -> Looked;
}

/// The machine's resolver.
pub struct SystemLookup {
    slots: Arc<Semaphore>,
}

impl Default for SystemLookup {
    fn default() -> Self {
        SystemLookup {
            slots: Arc::new(Semaphore::new(LOOKUPS_MAX)),
        }
    }
}

impl Lookup for SystemLookup {
    fn lookup(&self, name: String) -> Looked {
        let slots = Arc::clone(&self.slots);
        Box::pin(async move {
            let slot = slots.acquire_owned().await.map_err(std::io::Error::other)?;
            // A task of its own: the slot must be held as long as the thread runs, also when no caller waits any more.
            let looking = tokio::spawn(async move {
                let found = tokio::net::lookup_host((name.as_str(), 0)).await;
                drop(slot);
                Ok(found?.map(|address| address.ip()).collect())
            });
            looking.await?
        })
    }
}

/// The egress rules refuse an address. The error does not name it, because a team could map the private network.
#[derive(Debug, thiserror::Error)]
#[error("the address is not open to webhooks")]
pub struct Refused;

/// A listener of this cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Listener {
    host: Host,
    port: u16,
}

/// The rules that decide which addresses are open.
pub struct Rules {
    allow: Vec<Network>,
    /// Listeners of this node and of its configuration.
    configured: Vec<Listener>,
    /// Listeners of the current members.
    members: RwLock<Vec<Listener>>,
    lookup: Arc<dyn Lookup>,
    own: Mutex<HashMap<String, (Instant, Vec<IpAddr>)>>,
}

impl Rules {
    /// The rules of the configuration. `bound` are the addresses at which this node really listens.
    pub fn new(config: &Config, bound: &[SocketAddr], lookup: Arc<dyn Lookup>) -> Self {
        let own = bound
            .iter()
            .chain([&config.node.client_addr, &config.node.peer_addr])
            .map(|address| Listener {
                host: host_of(address.ip()),
                port: address.port(),
            });
        let nodes = config.cluster.nodes.iter();
        let named = nodes
            .flat_map(|node| listeners_of(&node.peer_addr, &node.url))
            .chain(listener_at(&config.node.public_url));
        let mut configured: Vec<Listener> = Vec::new();
        for listener in own.chain(named) {
            if listener.port != 0 && !configured.contains(&listener) {
                configured.push(listener);
            }
        }
        Rules {
            allow: config.webhooks.allow_networks.clone(),
            configured,
            members: RwLock::default(),
            lookup,
            own: Mutex::default(),
        }
    }

    /// Updates the listeners of the members.
    pub fn set_members<'a>(&self, members: impl Iterator<Item = &'a Member>) {
        let listeners = members
            .flat_map(|member| listeners_of(&member.peer_addr, &member.url))
            .filter(|listener| !self.configured.contains(listener))
            .collect();
        *self.members.write() = listeners;
    }

    /// The cluster's listeners on a port.
    fn listeners(&self, port: u16) -> Vec<Listener> {
        let members = self.members.read();
        let all = self.configured.iter().chain(members.iter());
        all.filter(|listener| listener.port == port).cloned().collect()
    }

    /// Whether the cluster listens on this port, so that [`Rules::check`] must know the port of a connection.
    pub fn is_listener_port(&self, port: u16) -> bool {
        !self.listeners(port).is_empty()
    }

    /// Whether loopback addresses are open.
    pub fn open_loopback(&self) -> bool {
        self.allow.iter().any(Network::opens_loopback)
    }

    /// Whether addresses of a private network are open.
    pub fn open_inner(&self) -> bool {
        self.allow.iter().any(Network::opens_inner)
    }

    /// Whether the address is in `webhooks.allow_networks`.
    pub fn is_allowed(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.allow.iter().any(|network| network.contains(address))
    }

    /// Checks an address without a lookup.
    pub fn check_address(&self, address: IpAddr, port: u16) -> Result<(), Refused> {
        let address = address.to_canonical();
        let open = match kind(address) {
            Kind::Public => true,
            Kind::Private => self.is_allowed(address),
            Kind::Never => false,
        };
        let listens = |listener: &Listener| match listener.host {
            Host::Ipv4(host) => is_listened_at(host.into(), address),
            Host::Ipv6(host) => is_listened_at(IpAddr::from(host).to_canonical(), address),
            Host::Domain(_) => false,
        };
        if open && !self.listeners(port).iter().any(listens) {
            Ok(())
        } else {
            Err(Refused)
        }
    }

    /// Checks that **all** addresses may be dialled: an answer that mixes open and closed addresses is an attack.
    pub async fn check(&self, addresses: &[IpAddr], port: u16) -> Result<(), Refused> {
        for address in addresses {
            self.check_address(*address, port)?;
        }
        for listener in self.listeners(port) {
            if let Host::Domain(name) = &listener.host {
                let own = self.own_addresses(name).await;
                if addresses.iter().any(|address| own.contains(&address.to_canonical())) {
                    return Err(Refused);
                }
            }
        }
        Ok(())
    }

    /// The addresses of a node that is configured by name. If the name does not resolve, the last known addresses are
    /// used, so that a failing lookup does not stop all deliveries to that port.
    async fn own_addresses(&self, name: &str) -> Vec<IpAddr> {
        let known = || self.own.lock();
        let last = known().get(name).cloned();
        if let Some((at, addresses)) = &last
            && at.elapsed() < OWN_ADDRESSES_FOR
        {
            return addresses.clone();
        }
        let looked = tokio::time::timeout(OWN_LOOKUP_TIMEOUT, self.lookup.lookup(name.to_owned())).await;
        let addresses = match looked {
            Ok(Ok(found)) => found.into_iter().map(|address| address.to_canonical()).collect(),
            _ => last.map(|(_, addresses)| addresses).unwrap_or_default(),
        };
        known().insert(name.to_owned(), (Instant::now(), addresses.clone()));
        addresses
    }
}

/// The listeners of a node, from its two addresses.
fn listeners_of(peer_addr: &str, url: &str) -> impl Iterator<Item = Listener> + use<> {
    [listener_at(&format!("tcp://{peer_addr}")), listener_at(url)]
        .into_iter()
        .flatten()
}

fn listener_at(url: &str) -> Option<Listener> {
    let url = Url::parse(url).ok()?;
    // For an unknown scheme the parser leaves addresses as text.
    let host = Host::parse(url.host_str()?).ok()?;
    let port = url.port_or_known_default()?;
    Some(Listener { host, port })
}

fn host_of(address: IpAddr) -> Host {
    match address {
        IpAddr::V4(address) => Host::Ipv4(address),
        IpAddr::V6(address) => Host::Ipv6(address),
    }
}

/// Whether a listener bound to `listener` accepts connections to `address`.
fn is_listened_at(listener: IpAddr, address: IpAddr) -> bool {
    listener == address || (listener.is_unspecified() && is_of_this_machine(address))
}

/// Whether the address belongs to this machine: only such addresses can be bound.
fn is_of_this_machine(address: IpAddr) -> bool {
    address.is_loopback() || UdpSocket::bind((address, 0)).is_ok()
}

/// The resolver of one client. The client resolves its names by nothing else.
pub struct CheckedResolver {
    pub rules: Arc<Rules>,
    pub lookup: Arc<dyn Lookup>,
    /// The port of all URLs of this client if the cluster listens on that port; else 0, on which nothing listens.
    pub port: u16,
    /// The lookups of the team that may run at a time.
    pub slots: Arc<Semaphore>,
}

impl Resolve for CheckedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (rules, slots, port) = (Arc::clone(&self.rules), Arc::clone(&self.slots), self.port);
        let lookup = Arc::clone(&self.lookup);
        let name = name.as_str().to_owned();
        Box::pin(async move {
            let slot = slots.acquire_owned().await?;
            // As for the lookup itself: a caller that stopped waiting still holds a slot of the team.
            let found = tokio::spawn(async move {
                let found = lookup.lookup(name).await;
                drop(slot);
                found
            })
            .await??;
            if found.is_empty() {
                return Err("the name has no address".into());
            }
            rules.check(&found, port).await?;
            let addresses = found
                .into_iter()
                .map(|address| SocketAddr::new(address.to_canonical(), 0));
            let addresses: Addrs = Box::new(addresses);
            Ok(addresses)
        })
    }
}
