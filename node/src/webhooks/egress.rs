//! The outbound HTTP client for URLs that strangers chose. No other code calls them.
//!
//! The text of a URL is checked when it is registered, to give early errors, and again before each request, because
//! settings change. The protection is [`super::resolver`]: it checks the addresses that are dialled, for each new
//! connection. An address in the URL itself never reaches a resolver, so it is checked here.
//!
//! A client follows no redirect, uses no proxy, cookies or compression, retries nothing and speaks HTTP/1.1.
//! Connections are kept for a few seconds and never shared between teams.
#![allow(clippy::disallowed_types, reason = "this is the one place that makes HTTP clients")]

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use agentpost_proto::id::TeamId;
use agentpost_proto::limits;
use agentpost_raft_store::disk::types::Member;
use anyhow::Context as _;
use parking_lot::Mutex;
use reqwest::{Client, redirect, retry};
use rustls::client::Resumption;
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use url::{Host, Url};

use super::fair_queue::TEAM_CALLS_MAX;
use super::pace::Pace;
use super::resolver::{CheckedResolver, Lookup, Refused, Rules, SystemLookup};
use crate::base::config::Config;
use crate::base::networks::{Kind, kind};

/// Headers of a webhook's response.
const RESPONSE_HEADERS_MAX: usize = 64;
/// Idle connections of a team to one host: as many as the team has calls.
const IDLE_PER_HOST_MAX: usize = TEAM_CALLS_MAX;
/// Hosts that a node keeps connections to.
const HOSTS_MAX: usize = 1_024;
/// Teams that a node keeps connections for.
const CLIENTS_MAX: usize = 256;
/// DNS look-ups at a time for one team, so that names that hang delay only their own team.
pub const TEAM_LOOKUPS_MAX: usize = 16;
/// How long an idle connection is kept. Common servers close one after 5 s; a request that meets the closing would
/// fail, so this is shorter.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
const HOST_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;

/// Time limits.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// Limit from the name lookup to the end of the TLS handshake.
    pub connect: Duration,
    /// Limit from the name lookup to the last byte of the response.
    pub attempt: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            connect: Duration::from_secs(5),
            attempt: Duration::from_millis(limits::ATTEMPT_TIMEOUT_MS),
        }
    }
}

/// The parts that tests replace.
pub struct Options {
    /// The name lookup.
    pub lookup: Arc<dyn Lookup>,
    /// The trusted certificate authorities.
    pub roots: RootCertStore,
    /// Time limits.
    pub timeouts: Timeouts,
}

impl Options {
    /// The machine's resolver and certificate authorities, and the documented time limits.
    pub fn system() -> Self {
        let found = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            tracing::warn!(
                "no certificate authority was found on this machine, so https:// webhooks will fail; install ca-certificates"
            );
        }
        Options {
            lookup: Arc::new(SystemLookup::default()),
            roots,
            timeouts: Timeouts::default(),
        }
    }
}

/// The outbound HTTP client of webhooks. Clones are cheap.
#[derive(Clone)]
pub struct Egress {
    inner: Arc<Inner>,
}

struct Inner {
    allow_http: bool,
    rules: Arc<Rules>,
    lookup: Arc<dyn Lookup>,
    tls: ClientConfig,
    timeouts: Timeouts,
    clients: Mutex<Clients>,
    pace: Pace,
}

/// A URL that may be called.
#[derive(Debug)]
pub struct Target {
    /// The URL as it is dialled; signatures use the text that was registered.
    pub url: Url,
    port: u16,
}

impl Target {
    fn host(&self) -> &str {
        let host = self.url.host_str().unwrap_or_default();
        host.strip_suffix('.').unwrap_or(host)
    }

    /// The address in the URL, if its host is one.
    fn literal(&self) -> Option<IpAddr> {
        match self.url.host() {
            Some(Host::Ipv4(address)) => Some(IpAddr::V4(address)),
            Some(Host::Ipv6(address)) => Some(IpAddr::V6(address)),
            _ => None,
        }
    }
}

/// Why a URL may not be called, as a sentence for people.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Forbidden(String);

impl Egress {
    /// A client with the given configuration; `bound` are the addresses at which this node listens.
    pub fn new(config: &Config, bound: &[SocketAddr]) -> anyhow::Result<Self> {
        Self::with(config, bound, Options::system())
    }

    /// Like [`Self::new`], with replaced parts.
    pub fn with(config: &Config, bound: &[SocketAddr], options: Options) -> anyhow::Result<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context("TLS of webhooks")?
            .with_root_certificates(options.roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let inner = Inner {
            allow_http: config.webhooks.allow_http,
            rules: Arc::new(Rules::new(config, bound, Arc::clone(&options.lookup))),
            lookup: options.lookup,
            tls,
            timeouts: options.timeouts,
            clients: Mutex::default(),
            pace: Pace::default(),
        };
        Ok(Egress { inner: Arc::new(inner) })
    }

    /// Updates the members, so that the ports of nodes that joined later are closed like the configured ones.
    pub fn set_members<'a>(&self, members: impl Iterator<Item = &'a Member>) {
        self.inner.rules.set_members(members);
    }

    /// Checks whether the URL may be registered. The addresses of its host are checked when it is called.
    pub fn check_url(&self, url: &str) -> Result<(), String> {
        self.admit(url).map(|_| ()).map_err(|forbidden| forbidden.0)
    }

    /// Parses a URL and checks everything that its text shows.
    pub fn admit(&self, text: &str) -> Result<Target, Forbidden> {
        let rules = &self.inner.rules;
        let url = parse(text, self.inner.allow_http)?;
        let port = url.port_or_known_default().unwrap_or(0);
        if port != 443 && port <= 1023 && !(port == 80 && self.inner.allow_http) {
            return forbidden("the port of a webhook URL must be 443 or above 1023");
        }
        let closed = match url.host() {
            Some(Host::Ipv4(address)) => rules.check_address(address.into(), port).is_err(),
            Some(Host::Ipv6(address)) => rules.check_address(address.into(), port).is_err(),
            Some(Host::Domain(name)) => self.is_inner_name(name)?,
            None => true,
        };
        if closed {
            return forbidden(
                "the webhook URL leads to a private, local or reserved address; webhooks.allow_networks can open private ones",
            );
        }
        Ok(Target { url, port })
    }

    /// Whether a name is internal (not of the public internet) and no private network is open.
    fn is_inner_name(&self, name: &str) -> Result<bool, Forbidden> {
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let is_label = |label: &str| (1..=LABEL_BYTES_MAX).contains(&label.len());
        if name.len() > HOST_BYTES_MAX || !name.split('.').all(is_label) {
            return forbidden("the webhook URL has no valid host name");
        }
        let rules = &self.inner.rules;
        let within = |domain: &str| {
            name.strip_suffix(domain)
                .is_some_and(|head| head.is_empty() || head.ends_with('.'))
        };
        if within("localhost") {
            return Ok(!rules.open_loopback());
        }
        let inner = !name.contains('.') || within("local") || within("internal");
        Ok(inner && !rules.open_inner())
    }

    /// The client for this team and URL. Fails if the address in the URL is closed.
    pub async fn client(&self, team: TeamId, target: &Target) -> Result<Client, CannotCall> {
        let rules = &self.inner.rules;
        if let Some(address) = target.literal() {
            rules.check(&[address], target.port).await?;
        }
        // A resolver does not learn the port. For a port on which the cluster listens, a client of its own is used.
        let port = if rules.is_listener_port(target.port) {
            target.port
        } else {
            0
        };
        let host = format!("{}:{}", target.url.host_str().unwrap_or_default(), target.port);
        let mut clients = self.inner.clients.lock();
        Ok(clients.get((team, port), host, |slots| self.inner.build(port, slots))?)
    }

    /// Counts a call to the URL's host and returns how long the call must wait for its turn. `None` if that is too long;
    /// then the call does not count. A URL that may not be called need not wait, because its attempt makes no request.
    pub fn turn_at(&self, url: &str) -> Option<Duration> {
        let Ok(target) = self.admit(url) else {
            return Some(Duration::ZERO);
        };
        let address = target.literal();
        if address.is_some_and(|address| self.inner.rules.is_allowed(address)) {
            return Some(Duration::ZERO);
        }
        self.inner.pace.wait(target.host(), Instant::now())
    }

    /// Records whether the URL's host is exempt from turns.
    pub fn note_host(&self, url: &str, exempt: bool) {
        if let Ok(target) = self.admit(url) {
            self.inner.pace.note(target.host(), exempt);
        }
    }

    /// Whether a host with this address is exempt from turns.
    pub fn is_exempt(&self, address: IpAddr) -> bool {
        self.inner.rules.is_allowed(address)
    }

    /// Whether the team may see the response from this address. Responses from private networks are hidden, because they
    /// could come from a service that is not the team's.
    pub fn may_show(&self, address: IpAddr) -> bool {
        kind(address.to_canonical()) == Kind::Public
    }

    /// Time limits.
    pub fn timeouts(&self) -> Timeouts {
        self.inner.timeouts
    }
}

/// Why no request could be made.
#[derive(Debug, thiserror::Error)]
pub enum CannotCall {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    Client(#[from] reqwest::Error),
}

impl Inner {
    fn build(&self, port: u16, slots: Arc<Semaphore>) -> reqwest::Result<Client> {
        let mut tls = self.tls.clone();
        // TLS sessions are not shared between teams either.
        tls.resumption = Resumption::in_memory_sessions(64);
        Client::builder()
            .tls_backend_preconfigured(tls)
            .dns_resolver(CheckedResolver {
                rules: Arc::clone(&self.rules),
                lookup: Arc::clone(&self.lookup),
                port,
                slots,
            })
            .https_only(!self.allow_http)
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .referer(false)
            .no_proxy()
            .http1_only()
            .http1_max_headers(RESPONSE_HEADERS_MAX)
            .connect_timeout(self.timeouts.connect)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_PER_HOST_MAX)
            .build()
    }
}

/// Clients in use, by team and, for a port on which the cluster listens, by port. The least recently used client is
/// dropped with its idle connections when there are too many; its requests in flight continue.
#[derive(Default)]
struct Clients {
    by_key: HashMap<(TeamId, u16), Pool>,
    hosts: usize,
    uses: u64,
}

struct Pool {
    client: Client,
    hosts: HashSet<String>,
    slots: Arc<Semaphore>,
    used: u64,
}

impl Clients {
    fn get(
        &mut self,
        key: (TeamId, u16),
        host: String,
        build: impl FnOnce(Arc<Semaphore>) -> reqwest::Result<Client>,
    ) -> reqwest::Result<Client> {
        self.uses += 1;
        if !self.by_key.contains_key(&key) {
            let same_team = self.by_key.iter().find(|((team, _), _)| *team == key.0);
            let slots = same_team.map_or_else(
                || Arc::new(Semaphore::new(TEAM_LOOKUPS_MAX)),
                |(_, pool)| Arc::clone(&pool.slots),
            );
            let pool = Pool {
                client: build(Arc::clone(&slots))?,
                hosts: HashSet::new(),
                slots,
                used: self.uses,
            };
            self.by_key.insert(key, pool);
        }
        let pool = self.by_key.get_mut(&key).expect("it was just made");
        pool.used = self.uses;
        self.hosts += usize::from(pool.hosts.insert(host));
        let client = pool.client.clone();
        while self.hosts > HOSTS_MAX || self.by_key.len() > CLIENTS_MAX {
            let Some(oldest) = self
                .by_key
                .iter()
                .min_by_key(|(_, pool)| pool.used)
                .map(|(key, _)| *key)
            else {
                break;
            };
            self.hosts -= self.by_key.remove(&oldest).map_or(0, |pool| pool.hosts.len());
        }
        Ok(client)
    }
}

fn forbidden<T>(why: &str) -> Result<T, Forbidden> {
    Err(Forbidden(why.to_owned()))
}

/// Refuses unusual texts before parsing, because URL parsers disagree about them.
fn parse(text: &str, allow_http: bool) -> Result<Url, Forbidden> {
    if text.len() > limits::URL_BYTES_MAX {
        return Err(Forbidden(format!(
            "the webhook URL is longer than {} bytes",
            limits::URL_BYTES_MAX
        )));
    }
    let odd = |c: char| c.is_control() || c.is_whitespace() || c == '\\';
    let scheme = text
        .split_once("://")
        .map(|(scheme, rest)| (scheme.to_ascii_lowercase(), rest));
    let authority = match &scheme {
        Some((scheme, rest)) if scheme == "https" || scheme == "http" => rest.split(['/', '?', '#']).next(),
        _ => None,
    };
    let Some(authority) = authority.filter(|authority| !authority.is_empty() && !text.contains(odd)) else {
        return forbidden("the webhook URL must be an absolute URL such as https://example.com/hook");
    };
    if authority.contains('@') {
        return forbidden("the webhook URL must not hold a user name or password");
    }
    let url = match Url::parse(text) {
        Ok(url) => url,
        Err(error) => return Err(Forbidden(format!("the webhook URL cannot be read: {error}"))),
    };
    if url.scheme() != "https" && !allow_http {
        return forbidden("the webhook URL must begin with https://");
    }
    if url.fragment().is_some() {
        return forbidden("the webhook URL must not have a fragment (#)");
    }
    if url.as_str().parse::<axum::http::Uri>().is_err() {
        return forbidden("the webhook URL holds characters that must be percent-encoded");
    }
    Ok(url)
}
