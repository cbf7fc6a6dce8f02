//! The metrics of the webhook dispatcher.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::add;

/// The dispatcher's metrics on this node, whether or not it is the leader now.
#[derive(Clone)]
pub struct Dispatch {
    attempts: Family<ResultLabel, Counter>,
    entries: Family<EntryLabel, Counter>,
    /// Webhook calls in progress.
    pub calls_in_flight: Gauge,
    /// Seconds between the due time of a delivery and the start of its call.
    pub lateness_seconds: Histogram,
    /// Claims that apply refused.
    pub claims_stale: Counter,
    /// Outcomes that apply ignored, because they came too late or twice.
    pub outcomes_stale: Counter,
    /// Attempts that this node closed with an unknown outcome.
    pub takeovers: Counter,
    /// Deliveries that became dead letters by an outcome or a takeover that this node recorded.
    pub dead_letters: Counter,
    /// The nodes that make the calls of this leader, itself included.
    pub callers: Gauge,
    /// Calls that this leader delegated to other nodes.
    pub delegated: Counter,
    /// Calls that this leader delegated to a node that it lost before they were recorded.
    pub lost: Counter,
}

/// The result of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum AttemptClass {
    /// The receiver answered with a 2xx status.
    Delivered,
    /// The receiver answered with another status.
    Status,
    /// The connection failed: name resolution, TCP or TLS.
    Connect,
    /// There was no complete answer in time.
    Timeout,
    /// The egress rules forbid the URL or its address.
    Refused,
    /// The answer was not HTTP or was incomplete.
    Protocol,
    /// The call was not started.
    NotSent,
}

/// The kinds of log entries that the dispatcher proposes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum EntryKind {
    Claim,
    Outcome,
    Takeover,
    FanoutChunk,
    CloseEndpoint,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: AttemptClass,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EntryLabel {
    kind: EntryKind,
}

impl Dispatch {
    pub(super) fn register(r: &mut Registry) -> Self {
        let c = Counter::default;
        let seconds = Histogram::new(exponential_buckets(0.001, 2.0, 16));
        Dispatch {
            attempts: add(
                r,
                "dispatch_attempts",
                "Attempts of webhook deliveries, by result",
                Family::default(),
            ),
            entries: add(
                r,
                "dispatch_entries",
                "Log entries that the dispatcher proposed, by kind",
                Family::default(),
            ),
            calls_in_flight: add(
                r,
                "dispatch_calls_in_flight",
                "Webhook calls in progress",
                Gauge::default(),
            ),
            lateness_seconds: add(
                r,
                "dispatch_lateness_seconds",
                "Time between the due time of a delivery and the start of its call",
                seconds,
            ),
            claims_stale: add(
                r,
                "dispatch_claims_stale",
                "Claims of deliveries that were refused",
                c(),
            ),
            outcomes_stale: add(
                r,
                "dispatch_outcomes_stale",
                "Outcomes of attempts that were ignored because they came too late or twice",
                c(),
            ),
            takeovers: add(
                r,
                "dispatch_takeovers",
                "Attempts that this node closed with an unknown outcome",
                c(),
            ),
            dead_letters: add(
                r,
                "dispatch_dead_letters",
                "Deliveries that became dead letters by an attempt that this node recorded",
                c(),
            ),
            callers: add(
                r,
                "dispatch_callers",
                "Nodes that make webhook calls for this leader, itself included; 0 on other nodes",
                Gauge::default(),
            ),
            delegated: add(
                r,
                "dispatch_delegated",
                "Webhook calls that this leader delegated to other nodes",
                c(),
            ),
            lost: add(
                r,
                "dispatch_lost",
                "Webhook calls that this leader delegated to a node and lost sight of before their outcome was recorded",
                c(),
            ),
        }
    }

    /// Counts an attempt by its result.
    pub fn attempt(&self, result: AttemptClass) {
        self.attempts.get_or_create(&ResultLabel { result }).inc();
    }

    /// Counts a proposed entry.
    pub fn entry(&self, kind: EntryKind) {
        self.entries.get_or_create(&EntryLabel { kind }).inc();
    }
}
