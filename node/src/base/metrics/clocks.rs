//! The metrics of the voters' clocks: their offsets from wall time.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::add;

/// The offsets that this node measures.
#[derive(Clone)]
pub struct Clocks {
    divergence: Family<NodeLabel, Gauge<f64, AtomicU64>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NodeLabel {
    node: u64,
}

impl Clocks {
    pub(super) fn register(r: &mut Registry) -> Self {
        Clocks {
            divergence: add(
                r,
                "clock_divergence_seconds",
                "Time by which the clock of each voter, measured by this node, is ahead of wall time",
                Family::default(),
            ),
        }
    }

    /// Publishes how far a voter's clock is ahead of wall time.
    pub fn set_divergence(&self, node: u64, seconds: f64) {
        self.divergence.get_or_create(&NodeLabel { node }).set(seconds);
    }
}
