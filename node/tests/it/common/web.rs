//! A small HTTP client for tests: one connection per call, and every answer must be JSON.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use axum::http::{HeaderMap, Method, Request};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

/// Longer than any deadline of a node, so that a test that hangs names its line.
const PATIENCE: Duration = Duration::from_secs(90);

/// A response with a JSON body.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Value,
}

impl Answer {
    /// The body; the status must be 200.
    #[track_caller]
    pub fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        self.body
    }

    /// The text of the error; the status must be this one.
    #[track_caller]
    pub fn error(self, status: u16) -> String {
        assert_eq!(self.status, status, "{}", self.body);
        self.body["error"]
            .as_str()
            .unwrap_or_else(|| panic!("no error text in {}", self.body))
            .to_owned()
    }
}

/// A request that can be sent to any node.
#[derive(Clone)]
pub struct Call {
    method: Method,
    path: String,
    headers: Vec<(String, String)>,
    body: Bytes,
    from: IpAddr,
}

impl Call {
    pub fn new(method: Method, path: impl Into<String>) -> Self {
        Call {
            method,
            path: path.into(),
            headers: Vec::new(),
            body: Bytes::new(),
            from: Ipv4Addr::LOCALHOST.into(),
        }
    }

    pub fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path)
    }

    pub fn delete(path: impl Into<String>) -> Self {
        Self::new(Method::DELETE, path)
    }

    pub fn post(path: impl Into<String>, body: &Value) -> Self {
        Self::new(Method::POST, path).json(body)
    }

    pub fn patch(path: impl Into<String>, body: &Value) -> Self {
        Self::new(Method::PATCH, path).json(body)
    }

    pub fn json(self, body: &Value) -> Self {
        self.raw(body.to_string())
    }

    pub fn raw(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self.header("content-type", "application/json")
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets the key as the Abba Baba API expects it.
    pub fn key(self, key: &str) -> Self {
        self.header("x-api-key", key)
    }

    /// Sets the key as Kite and the operator API expect it.
    pub fn bearer(self, key: &str) -> Self {
        self.header("authorization", &format!("Bearer {key}"))
    }

    pub fn agent(self, agent: &str) -> Self {
        self.header("x-agent-id", agent)
    }

    pub fn once(self, key: &str) -> Self {
        self.header("idempotency-key", key)
    }

    /// Sends the request from another loopback address.
    pub fn coming_from(mut self, address: [u8; 4]) -> Self {
        self.from = address.into();
        self
    }

    pub fn names_agent(&self) -> bool {
        self.headers.iter().any(|(name, _)| name == "x-agent-id")
    }

    /// Sends it to the node at `url`.
    pub async fn to(&self, url: &str) -> Answer {
        self.try_to(url).await.expect("an answer")
    }

    /// Sends it to a node that may be down.
    pub async fn try_to(&self, url: &str) -> Result<Answer, String> {
        tokio::time::timeout(PATIENCE, self.exchange(url))
            .await
            .expect("an answer in time")
    }

    async fn exchange(&self, url: &str) -> Result<Answer, String> {
        let broken = |error: hyper::Error| error.to_string();
        let host: SocketAddr = url
            .strip_prefix("http://")
            .expect("a plain URL")
            .parse()
            .expect("an address");
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((self.from, 0).into()).unwrap();
        let stream = socket.connect(host).await.map_err(|e| e.to_string())?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.map_err(broken)?;
        let connection = tokio::spawn(connection);
        let mut request = Request::builder()
            .method(self.method.clone())
            .uri(&self.path)
            .header("host", host.to_string());
        for (name, value) in &self.headers {
            request = request.header(name, value.as_bytes());
        }
        let request = request.body(Full::new(self.body.clone())).unwrap();
        let (parts, body) = sender.send_request(request).await.map_err(broken)?.into_parts();
        let bytes = body.collect().await.map_err(broken)?.to_bytes();
        drop(sender);
        let _ = connection.await;
        let shown = String::from_utf8_lossy(&bytes);
        assert_eq!(
            parts.headers["content-type"], "application/json",
            "{} {}: {shown}",
            self.method, self.path
        );
        assert_eq!(parts.headers["x-content-type-options"], "nosniff");
        let body = serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{e} in {shown}"));
        Ok(Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body,
        })
    }
}

/// The text of `/metrics`. `Call` cannot read it, because it is not JSON.
pub async fn metrics(url: &str) -> String {
    let address = url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET /metrics HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = String::from_utf8_lossy(&self.body);
        let shown: String = body.chars().take(120).collect();
        write!(f, "{} {} {:?} {shown}", self.method, self.path, self.headers)
    }
}

/// A team; each test uses its own, so that tests can share a cluster.
#[derive(Debug, Clone)]
pub struct Team {
    pub id: String,
    /// A write key that is bound to no agent.
    pub key: String,
}

impl Team {
    /// Creates a team without limits, with a write key.
    pub async fn create(url: &str, admin_key: &str, name: &str) -> Team {
        let unlimited = json!({ "daily_sends": 0, "daily_reads": 0, "monthly_events": 0 });
        Self::with_limits(url, admin_key, name, &unlimited).await
    }

    pub async fn with_limits(url: &str, admin_key: &str, name: &str, limits: &Value) -> Team {
        let made = Call::post("/admin/v1/teams", &json!({ "name": name, "limits": limits }));
        let id = made.bearer(admin_key).to(url).await.ok()["id"]
            .as_str()
            .unwrap()
            .to_owned();
        let (_, key) = new_key(
            url,
            admin_key,
            &id,
            &json!({ "name": "tests", "permissions": ["write"] }),
        )
        .await;
        Team { id, key }
    }

    /// Creates a write key that is bound to `agent`.
    pub async fn bound(&self, url: &str, admin_key: &str, agent: &str) -> String {
        let wanted = json!({ "name": agent, "permissions": ["write"], "agent_id": agent });
        new_key(url, admin_key, &self.id, &wanted).await.1
    }
}

/// Creates a key; returns its id and its secret.
pub async fn new_key(url: &str, admin_key: &str, team: &str, wanted: &Value) -> (String, String) {
    let made = Call::post(format!("/admin/v1/teams/{team}/keys"), wanted)
        .bearer(admin_key)
        .to(url)
        .await
        .ok();
    let text = |name: &str| made[name].as_str().unwrap().to_owned();
    (text("id"), text("api_key"))
}

/// The request body of a direct message.
pub fn mail(to: &str, body: &Value) -> Value {
    json!({ "toAgentId": to, "type": "test.note", "body": body })
}

/// The bodies of the messages in a list.
pub fn bodies(list: &Value) -> Vec<Value> {
    list["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|message| message["body"].clone())
        .collect()
}

/// Lists the inbox of an agent through the Abba Baba API.
pub async fn list(url: &str, team: &Team, agent: &str, query: &str) -> Value {
    Call::get(format!("/v1/messages?{query}"))
        .key(&team.key)
        .agent(agent)
        .to(url)
        .await
        .ok()
}
