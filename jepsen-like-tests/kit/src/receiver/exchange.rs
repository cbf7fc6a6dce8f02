//! A request as the receiver saw it, and the answer that it gives.

use std::time::Duration;

use bytes::Bytes;
use hyper::header::{HeaderName, HeaderValue};
use hyper::{HeaderMap, Method, StatusCode};
use serde_json::Value;

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct Call {
    /// `POST` for a webhook.
    pub method: Method,
    /// Path and query.
    pub path: String,
    /// All headers, unchanged.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
    /// Time at which the head was read: microseconds of the monotonic clock since the server started.
    pub at_us: u64,
    /// The same time as milliseconds since 1970.
    pub wall_ms: u64,
}

impl Call {
    /// The value of a header; `None` if it is absent or not ASCII.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The body as JSON; `null` if it is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The path without the query.
    pub fn route(&self) -> &str {
        self.path.split('?').next().unwrap_or(&self.path)
    }
}

/// The answer to a call.
#[derive(Debug, Clone)]
pub struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) delay: Duration,
    pub(super) body: Body,
}

#[derive(Debug, Clone)]
pub(super) enum Body {
    Whole(Bytes),
    /// One byte after each pause of this length, without end.
    Dripping(Duration),
    /// Neither a head nor a body.
    Never,
    /// The connection is closed instead.
    Cut,
}

impl Answer {
    /// An empty answer without delay.
    ///
    /// # Panics
    /// If `status` is not an HTTP status.
    pub fn status(status: u16) -> Self {
        Answer {
            status: StatusCode::from_u16(status).expect("an HTTP status"),
            headers: Vec::new(),
            delay: Duration::ZERO,
            body: Body::Whole(Bytes::new()),
        }
    }

    /// Status 200 without delay, then a byte every `gap` until the caller hangs up.
    pub fn dripping(gap: Duration) -> Self {
        Answer {
            body: Body::Dripping(gap),
            ..Answer::status(200)
        }
    }

    /// No answer: the call is read and the connection stays open.
    pub fn never() -> Self {
        Answer {
            body: Body::Never,
            ..Answer::status(200)
        }
    }

    /// No answer: the connection is closed.
    pub fn hang_up() -> Self {
        Answer {
            body: Body::Cut,
            ..Answer::status(200)
        }
    }

    /// Adds a header.
    ///
    /// # Panics
    /// If the name or the value is not valid in a header.
    pub fn header(mut self, name: &str, value: impl ToString) -> Self {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("a header name");
        let value = HeaderValue::from_str(&value.to_string()).expect("a header value");
        self.headers.push((name, value));
        self
    }

    /// Sets the body.
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = Body::Whole(body.into());
        self
    }

    /// Delays the answer.
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// The status.
    pub fn code(&self) -> u16 {
        self.status.as_u16()
    }
}
