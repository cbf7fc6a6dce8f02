//! The layer below the typed calls: requests to the HTTP API of any node.
//!
//! Every node takes every request. A client asks one node for as long as that node answers, and moves on to the next
//! when it does not. [`crate::retry`] decides what may be repeated.
//!
//! ```no_run
//! # async fn example(post: agentpost::Agentpost) -> Result<(), agentpost::Error> {
//! use agentpost::http::Request;
//!
//! let health = post.http().request(&Request::get("/health")).await?;
//! println!("{}", health.body);
//! # Ok(())
//! # }
//! ```

use std::sync::Arc;
use std::time::Duration;

use agentpost_proto::secret::Secret;
use reqwest::Method;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Error;
use crate::endpoints::Endpoints;
use crate::error::cause;
use crate::retry::{Attempts, Failure, RetryPolicy};

pub use reqwest::StatusCode;

pub use crate::error::Answer;
pub use crate::retry::Repeat;

/// A node that accepts no connection in this time is passed over.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A node answers within 2 s if nobody leads, and within 8 s more if the outcome is unknown; this is a little more.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(12);

/// Sends requests to the nodes of a cluster. Cheap to clone: clones share the connections and the node that is asked.
#[derive(Clone)]
pub struct Http {
    inner: Arc<Inner>,
}

struct Inner {
    http: reqwest::Client,
    endpoints: Endpoints,
    headers: HeaderMap,
    policy: RetryPolicy,
    answer_timeout: Duration,
}

/// Settings of an [`Http`].
pub(crate) struct Settings {
    /// HTTP base URLs, the first asked first; not empty.
    pub urls: Vec<String>,
    /// `None` sends no key.
    pub key: Option<Secret>,
    pub policy: RetryPolicy,
    /// `None` is the default.
    pub answer_timeout: Option<Duration>,
    pub tls: rustls::ClientConfig,
}

fn header_value(what: &str, text: &str) -> Result<HeaderValue, Error> {
    HeaderValue::from_str(text)
        .map_err(|_| Error::Invalid(format!("the {what} has characters that no header may have")))
}

/// A request to any node. The typed calls of this library are made of these.
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

    /// A `POST`, which must not happen twice unless [`Request::idempotency_key`] or [`Request::repeat`] says otherwise.
    pub fn post(path: impl Into<String>) -> Self {
        Self::new(Method::POST, path.into(), Repeat::OnlyIfNotDone)
    }

    /// A change to a state that the request names, so doing it twice is the same as once.
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

    #[cfg(test)]
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// Adds a parameter to the query string and encodes its value.
    pub fn query(mut self, name: &str, value: impl AsRef<str>) -> Self {
        let mut query = reqwest::Url::parse("http://query").expect("a constant URL");
        query.query_pairs_mut().append_pair(name, value.as_ref());
        self.path.push(if self.path.contains('?') { '&' } else { '?' });
        self.path.push_str(query.query().unwrap_or_default());
        self
    }

    /// [`Request::query`] for a parameter that may be absent: `None` adds nothing.
    pub(crate) fn query_if(self, name: &str, value: Option<impl AsRef<str>>) -> Self {
        match value {
            Some(value) => self.query(name, value),
            None => self,
        }
    }

    /// Sets the JSON body.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the value cannot be written as JSON.
    pub fn json(mut self, body: &impl Serialize) -> Result<Self, Error> {
        self.body = Some(serde_json::to_string(body).map_err(|e| Error::Invalid(e.to_string()))?);
        Ok(self)
    }

    /// Sets the header `Idempotency-Key` (1 to 128 printable ASCII characters), which makes the request safe to repeat.
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.idempotency_key = Some(key.into());
        self.repeat = Repeat::Safely;
        self
    }

    /// Acts as this agent: sets the header `X-Agent-Id`.
    pub fn agent(mut self, id: impl Into<String>) -> Self {
        self.agent = Some(id.into());
        self
    }

    /// Acts as this agent if none is named yet.
    pub(crate) fn agent_if_none(mut self, id: &str) -> Self {
        self.agent.get_or_insert_with(|| id.to_owned());
        self
    }

    /// States whether it is safe to repeat the request, where the method alone does not tell.
    pub fn repeat(mut self, repeat: Repeat) -> Self {
        self.repeat = repeat;
        self
    }

    /// Waits this much longer for each answer than the client's timeout, as a long poll needs.
    pub fn patience(mut self, extra: Duration) -> Self {
        self.extra_patience = extra;
        self
    }
}

impl Http {
    /// Builds a client, which connects with the first request.
    pub(crate) fn new(settings: Settings) -> Result<Self, Error> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        if let Some(key) = &settings.key {
            let mut value = header_value("API key", &format!("Bearer {}", key.0))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(settings.tls)
            .user_agent(concat!("agentpost/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            // The API never redirects, and a key must not follow a redirect.
            .redirect(reqwest::redirect::Policy::none())
            // Repeating is decided here, where the idempotency key is known.
            .retry(reqwest::retry::never())
            .build()
            .map_err(|e| Error::Invalid(cause(&e)))?;
        Ok(Http {
            inner: Arc::new(Inner {
                http,
                endpoints: Endpoints::new(settings.urls),
                headers,
                policy: settings.policy,
                answer_timeout: settings.answer_timeout.unwrap_or(ANSWER_TIMEOUT),
            }),
        })
    }

    /// The base URLs, in the order given.
    pub fn urls(&self) -> &[String] {
        self.inner.endpoints.all()
    }

    /// Sends a request to the nodes in turn until one decides it, and returns a 2xx answer as it came.
    ///
    /// # Errors
    /// - [`Error::Refused`]: a node answered with a status from 300 to 499.
    /// - [`Error::Unavailable`]: no node took the request (connection refused, 503) within the [`RetryPolicy`].
    /// - [`Error::OutcomeUnknown`]: a node may have carried it out (no answer in time, 500, 502, 504).
    /// - [`Error::Invalid`]: the agent or the idempotency key cannot be sent in a header.
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

    /// [`Http::request`], with the answer's JSON as a value.
    ///
    /// # Errors
    /// The errors of [`Http::request`], and [`Error::Malformed`] if the answer is not such a value.
    pub async fn call<T: DeserializeOwned>(&self, request: Request) -> Result<T, Error> {
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
        assert_eq!(
            Request::get("/m").query("team_id", "a&b=c").path,
            "/m?team_id=a%26b%3Dc"
        );
    }

    #[test]
    fn parameters_follow_each_other() {
        let request = Request::get("/m")
            .query("a", "1")
            .query_if("b", None::<&str>)
            .query_if("c", Some("x&y"));
        assert_eq!(request.path, "/m?a=1&c=x%26y");
    }

    #[test]
    fn a_key_with_a_line_break_is_refused_before_it_is_sent() {
        let built = crate::Agentpost::builder("http://127.0.0.1:1").key("kite_\n").build();
        assert!(matches!(built, Err(Error::Invalid(_))));
    }
}
