//! One keep-alive HTTP/1.1 connection with at most one request under way.
//!
//! It uses hyper without a pool, a resolver or a header map per request, because the generator must use little CPU
//! beside the cluster that it loads.

use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Path and headers that all requests of a measurement share.
pub struct Template {
    path: &'static str,
    headers: HeaderMap,
}

impl Template {
    /// Makes the template for requests to `path` with this key, as this agent.
    pub fn new(path: &'static str, key: &str, agent: &str) -> anyhow::Result<Self> {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_static("agentpost"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {key}"))?);
        headers.insert("x-agent-id", HeaderValue::from_str(agent)?);
        Ok(Template { path, headers })
    }
}

/// A connection to one node.
pub struct Lane {
    sender: SendRequest<Full<Bytes>>,
    uri: Uri,
    template: Arc<Template>,
}

impl Lane {
    /// Connects to `address`, which is `host:port`.
    pub async fn dial(address: &str, template: &Arc<Template>) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address)
            .await
            .with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // The task ends with the sender or the connection; the next send reports a failure.
        tokio::spawn(connection);
        Ok(Lane {
            sender,
            uri: Uri::from_static(template.path),
            template: template.clone(),
        })
    }

    /// Takes path and headers of the following requests from this template.
    pub fn use_template(&mut self, template: &Arc<Template>) {
        if !Arc::ptr_eq(&self.template, template) {
            self.uri = Uri::from_static(template.path);
            self.template = template.clone();
        }
    }

    /// Posts a body and returns the body of the 200; every other status is an error.
    pub async fn post(&mut self, body: Bytes) -> anyhow::Result<Bytes> {
        self.post_keyed(body, None).await
    }

    /// Does the same with an `Idempotency-Key`.
    pub async fn post_keyed(&mut self, body: Bytes, key: Option<HeaderValue>) -> anyhow::Result<Bytes> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.template.headers.clone();
        if let Some(key) = key {
            request.headers_mut().insert("idempotency-key", key);
        }
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        let status = response.status();
        let mut body = response.into_body();
        let mut whole = match body.frame().await {
            Some(frame) => frame?.into_data().map_err(|_| anyhow!("unexpected trailers"))?,
            None => Bytes::new(),
        };
        // Nearly every answer is one frame.
        if !hyper::body::Body::is_end_stream(&body) {
            whole = [whole, body.collect().await?.to_bytes()].concat().into();
        }
        if status != StatusCode::OK {
            bail!(
                "{status}: {}",
                String::from_utf8_lossy(&whole).chars().take(200).collect::<String>()
            );
        }
        Ok(whole)
    }
}
