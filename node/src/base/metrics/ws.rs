//! The metrics of WebSocket sessions.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::add;

/// The WebSocket sessions of this node.
#[derive(Clone)]
pub struct Ws {
    /// Open sessions.
    pub sessions: Gauge,
    /// Events written.
    pub events: Counter,
    /// Acks read.
    pub acks: Counter,
    requests: Family<MethodLabel, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MethodLabel {
    method: &'static str,
}

impl Ws {
    pub(super) fn register(r: &mut Registry) -> Self {
        Ws {
            sessions: add(r, "ws_sessions", "Open WebSocket sessions", Gauge::default()),
            events: add(r, "ws_events", "Events written to WebSockets", Counter::default()),
            acks: add(r, "ws_acks", "Acks read from WebSockets", Counter::default()),
            requests: add(
                r,
                "ws_requests",
                "Requests read from WebSockets, by method; refused = unknown method or invalid parameters",
                Family::default(),
            ),
        }
    }

    /// Counts a request. `method` is a known method or `refused`.
    pub fn request(&self, method: &'static str) {
        self.requests.get_or_create(&MethodLabel { method }).inc();
    }
}
