//! The receiver of the benchmark's webhooks. It runs on its own thread, so that the load does not delay the
//! moment at which an arrival is timed.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use agentpost_proto::time::parse_rfc3339;
use agentpost_testkit::receiver::{Answer, Call, Server};
use anyhow::Context;
use tokio::sync::oneshot;

/// The pause between two bytes of a dripping answer.
const DRIP: Duration = Duration::from_secs(1);

/// How a URL behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// 200 at once.
    Healthy,
    /// Accepts every call and never answers.
    Dead,
    /// Answers a byte a second.
    Dripping,
}

impl Health {
    fn path(self) -> &'static str {
        match self {
            Health::Healthy => "/healthy/",
            Health::Dead => "/dead/",
            Health::Dripping => "/dripping/",
        }
    }
}

/// The first call of a delivery to a healthy URL.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    /// The time at which its message was accepted, and so was due: milliseconds since 1970.
    pub due_ms: u64,
    /// The time from `due_ms` to the call. `due_ms` is rounded down, so this is half a millisecond too long on average.
    pub start_latency_ns: u64,
}

/// A running receiver. When it is dropped, it stops, and the calls without an answer fail.
pub struct Sink {
    base: String,
    shared: Arc<Shared>,
    /// Dropping this ends the thread.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    /// Deliveries to healthy URLs, without repeats.
    delivered: AtomicU64,
    repeated: AtomicU64,
    log: Mutex<Log>,
}

#[derive(Default)]
struct Log {
    seen: HashSet<u128>,
    arrivals: Vec<Arrival>,
}

impl Sink {
    /// Listens on a free port of loopback.
    pub async fn start() -> anyhow::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (tell, told) = oneshot::channel();
        let (stop, stopped) = oneshot::channel();
        let of_thread = shared.clone();
        let thread = std::thread::Builder::new()
            .name("sink".to_owned())
            .spawn(move || run(of_thread, tell, stopped))
            .context("cannot start a thread")?;
        let base = told.await.context("the sink ended at once")??;
        Ok(Sink {
            base,
            shared,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// The URL of endpoint `n`.
    pub fn url(&self, health: Health, n: usize) -> String {
        format!("{}{}{n}", self.base, health.path())
    }

    /// Deliveries to healthy URLs so far.
    pub fn delivered(&self) -> u64 {
        self.shared.delivered.load(Ordering::Relaxed)
    }

    /// Calls that repeated an earlier delivery.
    pub fn repeated(&self) -> u64 {
        self.shared.repeated.load(Ordering::Relaxed)
    }

    /// Returns the arrivals since the last call and forgets them.
    pub fn take(&self) -> Vec<Arrival> {
        std::mem::take(&mut self.shared.log().arrivals)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // The thread has already printed its panic.
            let _ = thread.join();
        }
    }
}

fn run(shared: Arc<Shared>, tell: oneshot::Sender<anyhow::Result<String>>, stopped: oneshot::Receiver<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return drop(tell.send(Err(error.into()))),
    };
    runtime.block_on(async {
        let wall_us_at_start = u64::try_from(jiff::Timestamp::now().as_microsecond()).unwrap_or_default();
        let server = Server::start("127.0.0.1:0", move |call| shared.take(&call, wall_us_at_start)).await;
        match server {
            Ok(server) => {
                let _ = tell.send(Ok(server.url()));
                // The sender is never used, only dropped.
                let _ = stopped.await;
            }
            Err(error) => drop(tell.send(Err(error.into()))),
        }
    });
}

impl Shared {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, call: &Call, wall_us_at_start: u64) -> Answer {
        if call.path.starts_with(Health::Dead.path()) {
            return Answer::never();
        }
        if call.path.starts_with(Health::Dripping.path()) {
            return Answer::dripping(DRIP);
        }
        let Some((id, due_ms)) = delivery_id(call).zip(created_at_ms(&call.body)) else {
            return Answer::status(400);
        };
        let start_latency_us = (wall_us_at_start + call.at_us).saturating_sub(due_ms * 1000);
        let mut log = self.log();
        if log.seen.insert(id) {
            log.arrivals.push(Arrival {
                due_ms,
                start_latency_ns: start_latency_us * 1000,
            });
            self.delivered.fetch_add(1, Ordering::Relaxed);
        } else {
            self.repeated.fetch_add(1, Ordering::Relaxed);
        }
        Answer::status(200)
    }
}

fn delivery_id(call: &Call) -> Option<u128> {
    u128::from_str_radix(call.header("webhook-id")?.strip_prefix("dlv_")?, 16).ok()
}

/// The time in the first `createdAt` of a body. A JSON parser would cost as much as everything else here.
fn created_at_ms(body: &[u8]) -> Option<u64> {
    const KEY: &[u8] = b"\"createdAt\":\"";
    let at = body.windows(KEY.len()).position(|window| window == KEY)? + KEY.len();
    let end = at + body[at..].iter().position(|&b| b == b'"')?;
    parse_rfc3339(std::str::from_utf8(&body[at..end]).ok()?).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use agentpost_testkit::receiver::{HeaderMap, Method};

    fn call(path: &str, id: &str) -> Call {
        let mut headers = HeaderMap::new();
        headers.insert("webhook-id", id.parse().unwrap());
        let body =
            br#"{"event":"message.received","createdAt":"2026-04-30T10:00:00.250Z","message":{"createdAt":"x"}}"#;
        Call {
            method: Method::POST,
            path: path.to_owned(),
            headers,
            body: body.as_slice().into(),
            at_us: 2_500,
            wall_ms: 0,
        }
    }

    #[test]
    fn a_delivery_counts_once_and_its_latency_runs_from_its_due_time() {
        let shared = Shared::default();
        let started_us = parse_rfc3339("2026-04-30T10:00:00.250Z").unwrap() * 1000;
        for id in ["dlv_01", "dlv_02", "dlv_01"] {
            assert_eq!(shared.take(&call("/healthy/7", id), started_us).code(), 200);
        }
        assert_eq!(shared.take(&call("/healthy/7", "msg_1"), started_us).code(), 400);
        shared.take(&call("/dead/7", "dlv_03"), started_us);
        let latencies: Vec<u64> = shared.log().arrivals.iter().map(|a| a.start_latency_ns).collect();
        assert_eq!(latencies, [2_500_000, 2_500_000]);
        assert_eq!(shared.delivered.load(Ordering::Relaxed), 2);
        assert_eq!(shared.repeated.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn it_listens_until_it_is_dropped() {
        let sink = Sink::start().await.unwrap();
        let url = sink.url(Health::Healthy, 3);
        assert!(
            url.starts_with("http://127.0.0.1:") && url.ends_with("/healthy/3"),
            "{url}"
        );
        let address = sink.base.strip_prefix("http://").unwrap().to_owned();
        assert!(std::net::TcpStream::connect(&address).is_ok());
        drop(sink);
        assert!(std::net::TcpStream::connect(&address).is_err());
    }
}
