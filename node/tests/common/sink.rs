//! A webhook receiver: scripted answers per path, and a log of the calls that it got.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc, dead_code, missing_docs)]

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::response::Response;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::common::eventually;

/// One answer of a script.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    status: u16,
    delay: Duration,
    headers: Vec<(&'static str, String)>,
}

impl Answer {
    pub fn status(status: u16) -> Self {
        Answer {
            status,
            ..Answer::default()
        }
    }

    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    pub fn header(mut self, name: &'static str, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }
}

/// A call, logged when it arrives, before it is answered.
#[derive(Debug, Clone)]
pub struct SinkCall {
    pub path: String,
    pub headers: HeaderMap,
    pub body: Value,
    pub at: Instant,
}

impl SinkCall {
    pub fn header(&self, name: &str) -> String {
        let value = self.headers.get(name);
        value
            .map(|value| value.to_str().unwrap().to_owned())
            .unwrap_or_default()
    }
}

#[derive(Default)]
struct Shared {
    scripts: HashMap<String, VecDeque<Answer>>,
    calls: Vec<SinkCall>,
}

/// Answers 200 to what no script speaks of. Ends when it is dropped.
pub struct Sink {
    url: String,
    shared: Arc<Mutex<Shared>>,
    serving: JoinHandle<()>,
}

impl Sink {
    pub async fn start() -> Self {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", tcp.local_addr().unwrap());
        let shared: Arc<Mutex<Shared>> = Arc::default();
        let router = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        let serving = tokio::spawn(async move { axum_serve(tcp, router).await });
        Sink { url, shared, serving }
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    /// What calls to `path` are answered, in their order; the last answer stays.
    pub fn script(&self, path: &str, answers: impl IntoIterator<Item = Answer>) {
        self.shared()
            .scripts
            .insert(path.to_owned(), answers.into_iter().collect());
    }

    pub fn calls(&self, path: &str) -> Vec<SinkCall> {
        self.shared()
            .calls
            .iter()
            .filter(|call| call.path == path)
            .cloned()
            .collect()
    }

    pub fn count(&self) -> usize {
        self.shared().calls.len()
    }

    /// Waits until `path` was called `n` times.
    pub async fn called(&self, path: &str, n: usize) -> Vec<SinkCall> {
        eventually(&format!("call number {n} of {path}"), async || {
            let calls = self.calls(path);
            (calls.len() >= n).then_some(calls)
        })
        .await
    }

    fn shared(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn answer(State(shared): State<Arc<Mutex<Shared>>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, 1 << 20).await.unwrap_or_default();
    let path = parts.uri.path().to_owned();
    let call = SinkCall {
        path: path.clone(),
        headers: parts.headers,
        body: serde_json::from_slice(&body).unwrap_or_default(),
        at: Instant::now(),
    };
    let answer = {
        let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.calls.push(call);
        match shared.scripts.get_mut(&path) {
            Some(script) if script.len() > 1 => script.pop_front().unwrap(),
            Some(script) => script.front().cloned().unwrap_or(Answer::status(200)),
            None => Answer::status(200),
        }
    };
    tokio::time::sleep(answer.delay).await;
    let mut response = Response::builder().status(answer.status);
    for (name, value) in answer.headers {
        response = response.header(name, value);
    }
    response.body(Body::from("sink")).unwrap()
}

/// One task per connection, ended with the sink.
async fn axum_serve(tcp: TcpListener, router: Router) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = tcp.accept().await {
        let service = hyper_util::service::TowerToHyperService::new(router.clone());
        let io = hyper_util::rt::TokioIo::new(stream);
        connections.spawn(async move {
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(io, service)
                .await;
        });
    }
}
