//! What the dispatcher counts.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::add;

/// Of this node, whether or not it leads now.
#[derive(Clone)]
pub struct Dispatch {
    attempts: Family<ResultLabel, Counter>,
    entries: Family<EntryLabel, Counter>,
    /// Calls to webhooks under way.
    pub calls_in_flight: Gauge,
    /// Seconds from due to the start of the call.
    pub lateness_seconds: Histogram,
    /// Claims that apply did not grant.
    pub claims_stale: Counter,
    /// Outcomes that apply no longer wanted.
    pub outcomes_stale: Counter,
    /// Attempts closed as unknown.
    pub takeovers: Counter,
    /// Deliveries that an outcome or a takeover of this node ended as dead.
    pub dead_letters: Counter,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum AttemptClass {
    /// A 2xx.
    Delivered,
    /// Another status.
    Status,
    /// No connection: name, address, TCP or TLS.
    Connect,
    /// No complete answer in time.
    Timeout,
    /// Forbidden by the rules of egress.
    Refused,
    /// An answer that is not HTTP, or broke off.
    Protocol,
    /// Never begun.
    NotSent,
}

/// What the dispatcher writes into the log.
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
                "Attempts of webhook deliveries, by how they ended",
                Family::default(),
            ),
            entries: add(
                r,
                "dispatch_entries",
                "Log entries that the dispatcher proposed",
                Family::default(),
            ),
            calls_in_flight: add(
                r,
                "dispatch_calls_in_flight",
                "Webhook calls under way",
                Gauge::default(),
            ),
            lateness_seconds: add(
                r,
                "dispatch_lateness_seconds",
                "Time from when a delivery is due to the start of its call",
                seconds,
            ),
            claims_stale: add(r, "dispatch_claims_stale", "Claims that were not granted", c()),
            outcomes_stale: add(
                r,
                "dispatch_outcomes_stale",
                "Outcomes that came too late or twice",
                c(),
            ),
            takeovers: add(
                r,
                "dispatch_takeovers",
                "Attempts closed with an unknown outcome by this node",
                c(),
            ),
            dead_letters: add(
                r,
                "dispatch_dead_letters",
                "Deliveries whose last attempt, recorded by this node, made them dead letters",
                c(),
            ),
        }
    }

    /// Counts the end of an attempt.
    pub fn attempt(&self, result: AttemptClass) {
        self.attempts.get_or_create(&ResultLabel { result }).inc();
    }

    /// Counts a proposed entry.
    pub fn entry(&self, kind: EntryKind) {
        self.entries.get_or_create(&EntryLabel { kind }).inc();
    }
}
