//! Requests whose bodies do not arrive, and the charge for them.

use agentpost_proto::limits::BATCH_BYTES_MAX;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::common::web::mail;
use crate::common::{NodeHandles, eventually};

pub const MIB: usize = 1024 * 1024;
/// The largest batches of which a team may have as many under way.
pub const SHARE_MIB: usize = 28;

/// A request whose body has not arrived.
pub struct Upload(TcpStream);

impl Upload {
    /// Sends the headers to the node at `url`. `framing` is the header that says how long the body is.
    pub async fn begin(url: &str, path: &str, framing: &str, key: Option<&str>) -> Self {
        let host = url.strip_prefix("http://").unwrap();
        let key = key.map_or(String::new(), |key| format!("x-api-key: {key}\r\nx-agent-id: a\r\n"));
        let head = format!("POST {path} HTTP/1.1\r\nhost: {host}\r\n{key}{framing}\r\nconnection: close\r\n\r\n");
        let mut stream = TcpStream::connect(host).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        Upload(stream)
    }

    /// Begins a batch of 1 MiB.
    pub async fn batch(url: &str, key: &str) -> Self {
        let framing = format!("content-length: {BATCH_BYTES_MAX}");
        Self::begin(url, "/v1/messages/batch", &framing, Some(key)).await
    }

    /// Begins as many of these as a team may have under way.
    pub async fn share(url: &str, key: &str) -> Vec<Self> {
        futures::future::join_all((0..SHARE_MIB).map(|_| Self::batch(url, key))).await
    }

    /// Sends the body of such a batch, one message, and checks that it was accepted.
    pub async fn finish(mut self, to: &str, text: &str) {
        let batch = json!({ "messages": [mail(to, &json!(text))] }).to_string();
        let mut body = batch.into_bytes();
        body.resize(BATCH_BYTES_MAX, b' ');
        self.0.write_all(&body).await.unwrap();
        let mut answer = String::new();
        self.0.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains("\"success\":true"), "{answer}");
    }
}

/// The value of a metric of a node.
pub fn metric(node: &NodeHandles, name: &str) -> u64 {
    let text = node.metrics_text();
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix("agentpost_")?.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {name}")).parse().unwrap()
}

/// Waits until this is under way on a node: a number of operations, and their bytes.
pub async fn until_charged(node: &NodeHandles, places: usize, bytes: usize) {
    eventually("a budget with this charge", async || {
        let charged = (metric(node, "budget_requests"), metric(node, "budget_bytes"));
        (charged == (places as u64, bytes as u64)).then_some(())
    })
    .await;
}

/// Waits until a metric of a node is at least `value`.
pub async fn until(node: &NodeHandles, name: &str, value: u64) {
    eventually(format!("{name} {value}"), async || {
        (metric(node, name) >= value).then_some(())
    })
    .await;
}
