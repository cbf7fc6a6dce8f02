//! One client over the URLs of several nodes.
//!
//! Every node takes every request, so a client asks one node as long as that node answers and moves to the next when
//! it does not. What may be repeated is decided in [`crate::retry`]; the typed calls stand in `mail.rs`, `kite.rs` and
//! `admin.rs`, a file per face.

use std::sync::Arc;
use std::time::Duration;

use reqwest::Method;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Error;
use crate::endpoints::Endpoints;
use crate::error::{Answer, cause};
use crate::retry::{Attempts, Failure, Repeat, RetryPolicy};
use crate::{tls, urls};

/// A node that takes no connection in this time is passed over.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The servers answer within 2 s (no leader) + 8 s (outcome unknown); this is a little more.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(12);

/// A client of a cluster. Cheap to clone; clones share connections and the node they ask.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    http: reqwest::Client,
    endpoints: Endpoints,
    headers: HeaderMap,
    policy: RetryPolicy,
    answer_timeout: Duration,
}

/// Settings of a [`Client`].
#[derive(Clone)]
pub struct Builder {
    urls: String,
    api_key: Option<String>,
    agent: Option<String>,
    policy: RetryPolicy,
    answer_timeout: Duration,
}

impl Builder {
    /// The key, sent as `Authorization: Bearer`.
    pub fn api_key(mut self, key: impl Into<String>) -> Self {
        self.api_key = Some(key.into());
        self
    }

    /// Acts as this agent on the Abba Baba face, for a key that is not bound to one.
    pub fn agent(mut self, id: impl Into<String>) -> Self {
        self.agent = Some(id.into());
        self
    }

    /// How long and how often to try.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// How long one node may take to answer before the outcome counts as unknown.
    pub fn answer_timeout(mut self, timeout: Duration) -> Self {
        self.answer_timeout = timeout;
        self
    }

    /// Builds the client; it connects with the first request.
    pub fn build(self) -> Result<Client, Error> {
        let endpoints = Endpoints::new(urls::parse_bases(&self.urls)?);
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        if let Some(key) = &self.api_key {
            let mut value = header_value("API key", &format!("Bearer {key}"))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        if let Some(agent) = &self.agent {
            headers.insert("x-agent-id", header_value("agent id", agent)?);
        }
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls::config_for(endpoints.all())?)
            .user_agent(concat!("agentpost/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            // The API never redirects, and a key must not follow one.
            .redirect(reqwest::redirect::Policy::none())
            // Repeating is decided here, where the idempotency key is known.
            .retry(reqwest::retry::never())
            .build()
            .map_err(|e| Error::Invalid(cause(&e)))?;
        let (policy, answer_timeout) = (self.policy, self.answer_timeout);
        Ok(Client {
            inner: Arc::new(Inner {
                http,
                endpoints,
                headers,
                policy,
                answer_timeout,
            }),
        })
    }
}

fn header_value(what: &str, text: &str) -> Result<HeaderValue, Error> {
    HeaderValue::from_str(text)
        .map_err(|_| Error::Invalid(format!("the {what} has characters that no header may have")))
}

/// A request to any node. The typed calls of [`Client`] are made of these.
#[derive(Debug, Clone)]
pub struct Request {
    method: Method,
    path: String,
    body: Option<String>,
    idempotency_key: Option<String>,
    agent: Option<String>,
    repeat: Repeat,
    extra_patience: Duration,
}

impl Request {
    /// A read of a path with its query, such as `/health`.
    pub fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path.into(), Repeat::Safely)
    }

    /// A `POST` that must not happen twice.
    pub fn post(path: impl Into<String>) -> Self {
        Self::new(Method::POST, path.into(), Repeat::OnlyIfNotDone)
    }

    /// A change to a state that the request names, so that doing it twice is the same.
    pub fn patch(path: impl Into<String>) -> Self {
        Self::new(Method::PATCH, path.into(), Repeat::Safely)
    }

    /// A removal.
    pub fn delete(path: impl Into<String>) -> Self {
        Self::new(Method::DELETE, path.into(), Repeat::Safely)
    }

    fn new(method: Method, path: String, repeat: Repeat) -> Self {
        let extra_patience = Duration::ZERO;
        Request {
            method,
            path,
            body: None,
            idempotency_key: None,
            agent: None,
            repeat,
            extra_patience,
        }
    }

    /// Sets the JSON body.
    pub fn json(mut self, body: &impl Serialize) -> Result<Self, Error> {
        self.body = Some(serde_json::to_string(body).map_err(|e| Error::Invalid(e.to_string()))?);
        Ok(self)
    }

    /// Sets `Idempotency-Key`, which makes it safe to repeat.
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.idempotency_key = Some(key.into());
        self.repeat = Repeat::Safely;
        self
    }

    /// Acts as this agent instead of the client's.
    pub fn agent(mut self, id: impl Into<String>) -> Self {
        self.agent = Some(id.into());
        self
    }

    /// Says that repeating it is safe, or not, where the method alone does not tell.
    pub fn repeat(mut self, repeat: Repeat) -> Self {
        self.repeat = repeat;
        self
    }

    /// Waits longer for the answer, for a long poll.
    pub fn patience(mut self, extra: Duration) -> Self {
        self.extra_patience = extra;
        self
    }
}

impl Client {
    /// A client of the nodes with these base URLs, separated by blanks, as in `AGENTPOST_URLS`. The first is asked
    /// first.
    pub fn builder(urls: impl Into<String>) -> Builder {
        Builder {
            urls: urls.into(),
            api_key: None,
            agent: None,
            policy: RetryPolicy::default(),
            answer_timeout: ANSWER_TIMEOUT,
        }
    }

    /// The base URLs, in the order given.
    pub fn urls(&self) -> &[String] {
        self.inner.endpoints.all()
    }

    /// Sends a request to the nodes in turn until one decides it: a 2xx as it came, everything else as an error.
    pub async fn request(&self, request: &Request) -> Result<Answer, Error> {
        let mut attempts = Attempts::new(&self.inner.policy, self.inner.endpoints.len());
        loop {
            let (index, base) = self.inner.endpoints.current();
            let failure = match self.attempt(base, request).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            if failure.is_of_the_node() {
                self.inner.endpoints.move_on(index);
            }
            let pause = attempts.after(failure, request.repeat, rand::random())?;
            tokio::time::sleep(pause).await;
        }
    }

    /// [`Client::request`], with the answer as a value.
    pub(crate) async fn call<T: DeserializeOwned>(&self, request: Request) -> Result<T, Error> {
        let answer = self.request(&request).await?;
        serde_json::from_str(&answer.body)
            .map_err(|e| Error::Malformed(format!("{} {}: {e}", request.method, request.path)))
    }

    async fn attempt(&self, base: &str, request: &Request) -> Result<Answer, Failure> {
        let mut headers = self.inner.headers.clone();
        if let Some(agent) = &request.agent {
            let value = header_value("agent id", agent).map_err(|e| Failure::Invalid(e.to_string()))?;
            headers.insert("x-agent-id", value);
        }
        if let Some(key) = &request.idempotency_key {
            let value = header_value("idempotency key", key).map_err(|e| Failure::Invalid(e.to_string()))?;
            headers.insert("idempotency-key", value);
        }
        let mut draft = self
            .inner
            .http
            .request(request.method.clone(), format!("{base}{}", request.path))
            .headers(headers)
            .timeout(self.inner.answer_timeout + request.extra_patience);
        if let Some(body) = &request.body {
            draft = draft.header(CONTENT_TYPE, "application/json").body(body.clone());
        }
        let response = draft.send().await.map_err(|e| Failure::of_transport(base, e))?;
        let status = response.status();
        let retry_after = response.headers().get(RETRY_AFTER).and_then(seconds);
        let body = match response.text().await {
            Ok(body) => body,
            // The status has decided already; only a success without its content is lost.
            Err(_) if !status.is_success() => String::new(),
            Err(e) => return Err(Failure::of_transport(base, e)),
        };
        let answer = Answer {
            status,
            body,
            retry_after,
        };
        if answer.status.is_success() {
            Ok(answer)
        } else {
            Err(Failure::of_answer(answer))
        }
    }
}

fn seconds(value: &HeaderValue) -> Option<Duration> {
    value.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// A path and query with every value encoded.
pub(crate) fn with_query(path: &str, pairs: &[(&str, String)]) -> String {
    if pairs.is_empty() {
        return path.to_owned();
    }
    let mut query = reqwest::Url::parse("http://query").expect("a constant URL");
    query.query_pairs_mut().extend_pairs(pairs);
    format!("{path}?{}", query.query().unwrap_or_default())
}

/// An id as one segment of a path.
pub(crate) fn segment(id: &str) -> String {
    let mut path = reqwest::Url::parse("http://path").expect("a constant URL");
    if let Ok(mut segments) = path.path_segments_mut() {
        segments.clear().push(id);
    }
    path.path().trim_start_matches('/').to_owned()
}

/// A fresh idempotency key.
pub(crate) fn fresh_key() -> String {
    uuid::Uuid::now_v7().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_values_cannot_leave_their_place_in_a_url() {
        assert_eq!(segment("team_00ff"), "team_00ff");
        assert_eq!(segment("a/b?c#d"), "a%2Fb%3Fc%23d");
        assert_eq!(with_query("/m", &[]), "/m");
        assert_eq!(
            with_query("/m", &[("team_id", "a&b=c".to_owned())]),
            "/m?team_id=a%26b%3Dc"
        );
    }

    #[test]
    fn a_key_with_a_line_break_is_refused_before_it_is_sent() {
        let built = Client::builder("http://127.0.0.1:1").api_key("kite_\n").build();
        assert!(matches!(built, Err(Error::Invalid(_))));
    }
}
