//! The way in: which servers, which key, which team.

use std::sync::Arc;
use std::time::Duration;

use agentpost_proto::secret::Secret;

use crate::agent::Agent;
use crate::http::{Http, Request, Settings};
use crate::kite::Kite;
use crate::operator::Operator;
use crate::retry::RetryPolicy;
use crate::{Error, environment, tls, urls};

/// A connection to a post office: its nodes and a key. Cheap to clone; clones share connections and the node that is
/// asked. Drop all of them to close it.
#[derive(Clone)]
pub struct Agentpost {
    http: Http,
    socket: Arc<Socket>,
}

/// The settings of a WebSocket session.
pub(crate) struct Socket {
    /// WebSocket URLs, the first dialled first; not empty.
    pub urls: Vec<String>,
    pub key: Secret,
    /// `None` if nobody named it.
    pub team: Option<String>,
    pub tls: Arc<rustls::ClientConfig>,
    pub policy: RetryPolicy,
    /// `None` if nobody set it.
    pub answer_timeout: Option<Duration>,
}

/// Settings of an [`Agentpost`].
#[derive(Debug, Clone)]
pub struct Builder {
    urls: String,
    socket_urls: Option<Vec<String>>,
    key: Option<Secret>,
    team: Option<String>,
    policy: RetryPolicy,
    answer_timeout: Option<Duration>,
}

/// Connects to the nodes with these HTTP base URLs, separated by commas or spaces, with an API key.
///
/// The first node is asked first; another one is asked whenever a node does not answer. WebSocket URLs follow from the
/// HTTP URLs.
///
/// ```no_run
/// # async fn example(key: String) -> Result<(), agentpost::Error> {
/// let post = agentpost::connect("http://127.0.0.1:7700,http://127.0.0.1:7701", key).await?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::Invalid`] for a URL that cannot be used, [`Error::Refused`] for a key that the server does not accept,
/// [`Error::Unavailable`] if no node answered within the default [`RetryPolicy`].
pub async fn connect(urls: impl Into<String>, key: impl Into<String>) -> Result<Agentpost, Error> {
    Agentpost::builder(urls).key(key).connect().await
}

/// Connects as the environment variables say that `kite` and `agentpost` read, too:
///
/// | variable | meaning | when it is not set |
/// |---|---|---|
/// | `AGENTPOST_URLS` | HTTP base URLs of the nodes, separated by commas or spaces | `http://127.0.0.1:7700` |
/// | `KITE_API_KEY` | the key | `AGENTPOST_ADMIN_KEY`, an operator's key |
/// | `KITE_TEAM_ID` | the key's team, `team_…`; see [`Agent::listen`] | `listen` uses long polling |
///
/// A variable that is empty counts as not set.
///
/// # Errors
/// [`Error::Invalid`] if no key is set, and those of [`connect`].
pub async fn from_env() -> Result<Agentpost, Error> {
    Agentpost::from_env().await
}

impl Agentpost {
    /// Settings for the nodes with these HTTP base URLs, separated by commas or spaces.
    pub fn builder(urls: impl Into<String>) -> Builder {
        Builder {
            urls: urls.into(),
            socket_urls: None,
            key: None,
            team: None,
            policy: RetryPolicy::default(),
            answer_timeout: None,
        }
    }

    /// Like [`from_env`].
    ///
    /// # Errors
    /// See [`from_env`].
    pub async fn from_env() -> Result<Self, Error> {
        environment::builder(|name| std::env::var(name).ok())?.connect().await
    }

    /// A handle that acts as an agent of the key's team. A key that is bound to an agent can act as that one only:
    /// calls of any other handle are refused with 403.
    pub fn agent(&self, id: impl Into<String>) -> Agent {
        Agent::new(self.clone(), id.into())
    }

    /// The calls of an operator, and of a team's administrator.
    pub fn operator(&self) -> Operator {
        Operator::new(self.clone())
    }

    /// The parts that only the Kite API has: sessions with scopes, history, the team's numbers, and its keys.
    pub fn kite(&self) -> Kite {
        Kite::new(self.clone())
    }

    /// Requests below the typed calls.
    pub fn http(&self) -> &Http {
        &self.http
    }

    /// The HTTP base URLs of the nodes, in the order given.
    pub fn urls(&self) -> &[String] {
        self.http.urls()
    }

    /// The team's id, if it was named; see [`Builder::team`].
    pub fn team(&self) -> Option<&str> {
        self.socket.team.as_deref()
    }

    pub(crate) fn socket(&self) -> &Arc<Socket> {
        &self.socket
    }
}

impl Builder {
    /// The API key.
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(Secret(key.into()));
        self
    }

    /// The id of the key's team, `team_…`. Only WebSocket sessions need it, because their first frame has to name it;
    /// without it [`Agent::listen`] uses long polling. An empty id counts as none.
    pub fn team(mut self, id: impl Into<String>) -> Self {
        self.team = Some(id.into()).filter(|id| !id.is_empty());
        self
    }

    /// How long and how often requests are tried.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// How long one node may take to answer a request before its outcome counts as unknown; by default 12 s, and 15 s
    /// for the methods of [`crate::kite::Kite`].
    pub fn answer_timeout(mut self, timeout: Duration) -> Self {
        self.answer_timeout = Some(timeout);
        self
    }

    /// WebSocket URLs, for servers where they do not follow from the HTTP base URLs as [`urls::ws_url`] derives them.
    pub fn socket_urls(mut self, urls: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.socket_urls = Some(urls.into_iter().map(Into::into).collect());
        self
    }

    /// Builds the connection without asking any server.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a URL or a key that cannot be used, or if TLS cannot be set up.
    pub fn build(self) -> Result<Agentpost, Error> {
        let bases = urls::parse_bases(&self.urls)?;
        let socket_urls = match self.socket_urls {
            Some(urls) if urls.is_empty() => return Err(Error::Invalid("no WebSocket URL given".to_owned())),
            Some(urls) => urls,
            None => bases.iter().map(|base| urls::ws_url(base)).collect::<Result<_, _>>()?,
        };
        let all: Vec<String> = bases.iter().chain(&socket_urls).cloned().collect();
        let tls = tls::config_for(&all)?;
        let http = Http::new(Settings {
            urls: bases,
            key: self.key.clone(),
            policy: self.policy.clone(),
            answer_timeout: self.answer_timeout,
            tls: tls.clone(),
        })?;
        Ok(Agentpost {
            http,
            socket: Arc::new(Socket {
                urls: socket_urls,
                key: self.key.unwrap_or_default(),
                team: self.team,
                tls: Arc::new(tls),
                policy: self.policy,
                answer_timeout: self.answer_timeout,
            }),
        })
    }

    /// Builds the connection and asks the server whether it accepts the key.
    ///
    /// # Errors
    /// See [`connect`].
    pub async fn connect(self) -> Result<Agentpost, Error> {
        let post = self.build()?;
        // The directory is what every key may read, whatever agent it is bound to.
        let page = Request::get("/api/v1/agents").query("limit", "1");
        post.http.request(&page).await?;
        Ok(post)
    }
}
