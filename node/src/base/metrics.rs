//! All metrics with their help texts. Every name starts with `agentpost_`, except those of the process. Labels contain
//! no ids of teams or keys.

use std::sync::Arc;
use std::time::Duration;

use agentpost_raft_store::disk::log_store::LogMetrics;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

pub mod budget;
pub mod clocks;
pub mod dispatch;
mod log;
mod process;
pub mod raft;
pub mod reads;
pub mod retention;
pub mod storage;
pub mod ws;

/// The counters and gauges of one node. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    http_requests: Family<HttpLabels, Counter>,
    http_seconds: Family<FaceLabel, Histogram, fn() -> Histogram>,
    proposals: Family<ProposalLabel, Counter>,
    state_hash: Family<StateHashLabels, Gauge>,
    /// The metrics of the voters' clocks.
    pub clocks: clocks::Clocks,
    /// The metrics of the webhook dispatcher.
    pub dispatch: dispatch::Dispatch,
    /// The metrics of the data directory's disk.
    pub storage: storage::Storage,
    /// Client operations of this node that wait for their answer.
    pub proposals_in_flight: Gauge,
    /// Client operations that were answered from the state, without a log entry, because they would change nothing.
    pub proposals_unlogged: Counter,
    /// Reads of the state on the pool of reads.
    pub reads: reads::Reads,
    /// Client operations that were proposed without a preview, because no place for it was free.
    pub previews_skipped: Counter,
    /// What is charged to the budget of this node.
    pub budget: budget::Budget,
    /// Requests that wait on this node's stream to the leader.
    pub forwards_in_flight: Gauge,
    /// Peer connections that failed the handshake.
    pub handshakes_refused: Counter,
    /// WebSocket sessions.
    pub ws: ws::Ws,
    /// How far Raft is on this node.
    pub raft: raft::Raft,
    /// What is kept of the log.
    pub retention: retention::Retention,
    /// Snapshots sent to other nodes.
    pub snapshots_sent: Counter,
    /// Snapshots received from other nodes.
    pub snapshots_received: Counter,
    /// Rows that the sweeps of this node removed while it led.
    pub swept_rows: Counter,
}

/// The outcome of a proposal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Outcome {
    /// The operation was applied.
    Done,
    /// Apply refused the operation.
    Rejected,
    /// The operation was not proposed: there was no leader or no quorum.
    NotReady,
    /// The operation was not proposed: the budget of this node or of the leader was used up.
    Overloaded,
    /// The operation was not proposed: its team's share of that budget was used up.
    ShareUsedUp,
    /// The operation was not proposed: a disk was nearly full.
    NoRoom,
    /// The operation was proposed, and its outcome is unknown.
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HttpLabels {
    face: &'static str,
    route: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FaceLabel {
    face: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProposalLabel {
    outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateHashLabels {
    hash: String,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Registers a metric and returns it.
fn add<M: Clone + prometheus_client::registry::Metric>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    metric: M,
) -> M {
    registry.register(name, help, metric.clone());
    metric
}

fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.000_25, 2.0, 16))
}

fn register_swept_rows(registry: &mut Registry) -> Counter {
    let help = "Aged rows removed by the sweeps that this node proposed as the leader";
    add(registry, "swept_rows", help, Counter::default())
}

impl Metrics {
    /// Creates the metrics, all zero.
    pub fn new() -> Self {
        Self::of(None)
    }

    /// Creates the metrics, together with those of this log.
    pub fn of_log(log: Arc<LogMetrics>) -> Self {
        Self::of(Some(log))
    }

    fn of(log: Option<Arc<LogMetrics>>) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(process::Process));
        let r = registry.sub_registry_with_prefix("agentpost");
        if let Some(log) = log {
            r.register_collector(Box::new(log::Log(log)));
        }
        let (g, c) = (Gauge::default, Counter::default);
        let made = Metrics {
            registry: Arc::default(),
            http_requests: add(
                r,
                "http_requests",
                "HTTP requests, by API (face), route and status",
                Family::default(),
            ),
            http_seconds: add(
                r,
                "http_seconds",
                "Time to answer HTTP requests",
                Family::new_with_constructor(seconds as fn() -> Histogram),
            ),
            proposals: add(
                r,
                "proposals",
                "Operations proposed by clients of this node, by outcome",
                Family::default(),
            ),
            state_hash: add(
                r,
                "state_hash_index",
                "Index of the last applied entry when the state had this hash",
                Family::default(),
            ),
            proposals_in_flight: add(
                r,
                "proposals_in_flight",
                "Operations of clients of this node that wait for their answer",
                g(),
            ),
            proposals_unlogged: add(
                r,
                "proposals_unlogged",
                "Operations of clients of this node that were answered from the state, without a log entry, because they \
                 would change nothing",
                c(),
            ),
            previews_skipped: add(
                r,
                "previews_skipped",
                "Operations of this node's clients that were proposed without a preview: no thread for reads was free",
                c(),
            ),
            reads: reads::Reads::register(r),
            budget: budget::Budget::register(r),
            forwards_in_flight: add(
                r,
                "forwards_in_flight",
                "Requests that wait on the stream to the leader",
                g(),
            ),
            handshakes_refused: add(
                r,
                "handshakes_refused",
                "Peer connections that failed the handshake",
                c(),
            ),
            ws: ws::Ws::register(r),
            raft: raft::Raft::register(r),
            retention: retention::Retention::register(r),
            snapshots_sent: add(r, "snapshots_sent", "Snapshots sent to other nodes", c()),
            snapshots_received: add(r, "snapshots_received", "Snapshots received from other nodes", c()),
            swept_rows: register_swept_rows(r),
            storage: storage::Storage::register(r),
            clocks: clocks::Clocks::register(r),
            dispatch: dispatch::Dispatch::register(r),
        };
        Metrics {
            registry: Arc::new(registry),
            ..made
        }
    }

    /// Counts an answered request. `face` names the API; `route` is the pattern, never the path with its ids.
    pub fn http(&self, face: &'static str, route: &str, status: u16, elapsed: Duration) {
        self.http_requests
            .get_or_create(&HttpLabels {
                face,
                route: route.to_owned(),
                status,
            })
            .inc();
        self.http_seconds
            .get_or_create(&FaceLabel { face })
            .observe(elapsed.as_secs_f64());
    }

    /// Counts a proposal by its outcome.
    pub fn proposal(&self, outcome: Outcome) {
        self.proposals.get_or_create(&ProposalLabel { outcome }).inc();
    }

    /// Publishes the state hash. All nodes have the same hash at the same index.
    pub fn set_state_hash(&self, hash: u64, index: u64) {
        self.state_hash.clear();
        self.state_hash
            .get_or_create(&StateHashLabels {
                hash: format!("{hash:016x}"),
            })
            .set(gauge(index));
    }

    /// Encodes all metrics in Prometheus's text format.
    pub fn encode(&self) -> String {
        let mut out = String::new();
        // Writing to a `String` never fails.
        let _ = text::encode(&mut out, &self.registry);
        out
    }
}

/// Adds one to a gauge until it is dropped, so a cancelled request is not counted for ever.
pub struct GaugeGuard(Gauge);

impl GaugeGuard {
    /// Adds one to the gauge.
    pub fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        GaugeGuard(gauge.clone())
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Converts an index or a term, which stay far below 2^63.
pub fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exposition_contains_the_recorded_values() {
        let metrics = Metrics::new();
        metrics.http("Abbababa", "POST /v1/messages", 200, Duration::from_millis(2));
        metrics.proposal(Outcome::Done);
        metrics.set_state_hash(0xab, 7);
        metrics.set_state_hash(0xcd, 8);
        let text = metrics.encode();
        for line in [
            r#"agentpost_http_requests_total{face="Abbababa",route="POST /v1/messages",status="200"} 1"#,
            r#"agentpost_proposals_total{outcome="Done"} 1"#,
            r#"agentpost_state_hash_index{hash="00000000000000cd"} 8"#,
            "agentpost_is_leader 0",
            "# TYPE process_cpu_seconds counter",
            "process_resident_memory_bytes ",
        ] {
            assert!(text.contains(line), "{line} not in\n{text}");
        }
        assert!(!text.contains("00000000000000ab"));
    }
}
