//! Fixtures for outbound calls: a resolver with scripted answers, and receivers that answer with raw bytes.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentpost_node::base::clock::Clock;
use agentpost_node::base::config::Config;
use agentpost_node::shard::wall_time::WallTime;
use agentpost_node::webhooks::attempt::{self, Call};
use agentpost_node::webhooks::egress::{Egress, Options, Timeouts};
use agentpost_node::webhooks::resolver::{Looked, Lookup};
use agentpost_proto::command::{AttemptResult, BodyKind};
use agentpost_proto::id::TeamId;
use agentpost_proto::record;
use bytes::Bytes;
use rustls::RootCertStore;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// A configuration of these `[webhooks]` settings.
pub fn config(webhooks: &str) -> Config {
    Config::from_parts("test", &format!("[webhooks]\n{webhooks}"), []).unwrap()
}

/// The webhook settings of `agentpostd dev` and of the local cluster.
pub const LOOPBACK: &str = "allow_http = true\nallow_networks = [\"127.0.0.0/8\"]";

/// A name whose look-up never ends, as with a dead name server.
pub const HANGING: &str = "hanging.example.com";

/// A resolver that gives the answers of a name in turn; the last one repeats.
#[derive(Default)]
pub struct Names {
    answers: Mutex<HashMap<String, VecDeque<Vec<IpAddr>>>>,
    pub asked: AtomicUsize,
}

impl Names {
    pub fn set(&self, name: &str, answers: &[&[&str]]) {
        let read = |answer: &&[&str]| answer.iter().map(|a| a.parse().unwrap()).collect();
        let answers = answers.iter().map(read).collect();
        self.answers.lock().unwrap().insert(name.to_owned(), answers);
    }

    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Lookup for Names {
    fn lookup(&self, name: String) -> Looked {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if name == HANGING {
            return Box::pin(std::future::pending());
        }
        let mut answers = self.answers.lock().unwrap();
        let found = answers.get_mut(&name).and_then(|queue| {
            let next = queue.front().cloned();
            if queue.len() > 1 {
                queue.pop_front();
            }
            next
        });
        let found = found.ok_or_else(|| std::io::Error::other(format!("{name} is unknown")));
        Box::pin(std::future::ready(found))
    }
}

pub struct Stage {
    pub egress: Egress,
    pub names: Arc<Names>,
}

impl Stage {
    pub fn new(webhooks: &str) -> Self {
        Self::with(&config(webhooks), &[], RootCertStore::empty(), Timeouts::default())
    }

    /// A stage whose attempts end after 3 s: soon, but not before a slow machine has made its call.
    pub fn hasty(webhooks: &str) -> Self {
        let timeouts = Timeouts {
            attempt: Duration::from_secs(3),
            ..Timeouts::default()
        };
        Self::with(&config(webhooks), &[], RootCertStore::empty(), timeouts)
    }

    pub fn with(config: &Config, bound: &[SocketAddr], roots: RootCertStore, timeouts: Timeouts) -> Self {
        let names = Arc::new(Names::default());
        let options = Options {
            lookup: Arc::clone(&names) as Arc<dyn Lookup>,
            roots,
            timeouts,
        };
        Stage {
            egress: Egress::with(config, bound, options).unwrap(),
            names,
        }
    }

    /// Makes one attempt at the URL.
    pub async fn call(&self, url: &str) -> AttemptResult {
        attempt::make(&self.egress, &WallTime::new(Clock::system()), call(url))
            .await
            .result
    }
}

pub fn call(url: &str) -> Call {
    let message = record::Message {
        id: Bytes::from_static(&[7; 16]),
        from: "alpha".into(),
        to: "beta".into(),
        r#type: "price.quote".into(),
        body_kind: BodyKind::Object as i32,
        body: Bytes::from_static(b"{\"price\":5.0}"),
        created_at_ms: 1_770_906_600_000,
        ..record::Message::default()
    };
    let delivery = record::Delivery {
        id: Bytes::from_static(&[9; 16]),
        number: 1,
        message_id: message.id.clone(),
        from: "alpha".into(),
        agent: "beta".into(),
        url: url.to_owned(),
        step: 2,
        attempt_no: 5,
        ..record::Delivery::default()
    };
    Call {
        team: TeamId([1; 16]),
        delivery,
        message,
        secret: "whsec_BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=".into(),
        signing_key: "sig_x".into(),
        attempt_no: 5,
        epoch: 77,
        redelivery_possible: false,
        wait: Duration::ZERO,
    }
}

/// Head and body of a request.
pub type Request = (String, Vec<u8>);

/// A receiver that reads requests and answers each with bytes that the test chooses.
pub struct Receiver {
    pub addr: SocketAddr,
    /// The number of accepted connections.
    pub connections: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<Request>>>,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Receiver {
    /// Answers every request with these bytes.
    pub async fn answering(bytes: impl Into<Vec<u8>>) -> Self {
        Self::at("127.0.0.1:0", bytes).await
    }

    pub async fn at(addr: &str, bytes: impl Into<Vec<u8>>) -> Self {
        let bytes: Vec<u8> = bytes.into();
        Self::serving(addr, move |mut stream: TcpStream| {
            let bytes = bytes.clone();
            async move {
                let _ = stream.write_all(&bytes).await;
                Some(stream)
            }
        })
        .await
    }

    /// Calls `answer` after each request. It returns the connection if further requests are to be read.
    pub async fn serving<F>(addr: &str, answer: impl Fn(TcpStream) -> F + Clone + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Option<TcpStream>> + Send,
    {
        let listener = TcpListener::bind(addr).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (counted, noted) = (Arc::clone(&connections), Arc::clone(&requests));
        let serving = tokio::spawn(async move {
            let mut tasks = tokio::task::JoinSet::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                counted.fetch_add(1, Ordering::SeqCst);
                let (noted, answer) = (Arc::clone(&noted), answer.clone());
                tasks.spawn(async move {
                    while let Some(request) = read_request(&mut stream).await {
                        noted.lock().unwrap().push(request);
                        match answer(stream).await {
                            Some(open) => stream = open,
                            None => break,
                        }
                    }
                });
            }
        });
        Receiver {
            addr,
            connections,
            requests,
            serving,
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}/hook", self.addr)
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

/// Reads a request: its head and its body. `None` if the connection ends first.
async fn read_request(stream: &mut TcpStream) -> Option<Request> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
            let length = header(&head, "content-length").map_or(0, |text| text.parse().unwrap());
            if bytes.len() >= end + 4 + length {
                return Some((head, bytes[end + 4..end + 4 + length].to_vec()));
            }
        }
        let mut chunk = [0; 8192];
        match stream.read(&mut chunk).await {
            Ok(n) if n > 0 => bytes.extend_from_slice(&chunk[..n]),
            _ => return None,
        }
    }
}

/// A header of a request's head.
pub fn header(head: &str, name: &str) -> Option<String> {
    head.lines()
        .filter_map(|line| line.split_once(": "))
        .find(|(found, _)| found.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.to_owned())
}

pub const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
/// 200 with `connection: close`: the next request needs a new connection.
pub const OK_CLOSE: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";
