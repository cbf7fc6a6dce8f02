//! The metrics of what is kept of the log.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::add;

/// Why the log is kept beyond its bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum HeldFor {
    /// A snapshot is on its way to a node, which will need what follows it.
    Snapshot,
    /// A node has installed a snapshot and does not have the rest yet.
    CatchUp,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HeldLabels {
    reason: HeldFor,
}

/// How much is kept of the log, and how much of it beyond its bounds.
#[derive(Clone)]
pub struct Retention {
    /// Bytes of the log that are not purged.
    pub kept_bytes: Gauge,
    held_bytes: Family<HeldLabels, Gauge>,
    held_seconds: Family<HeldLabels, Gauge>,
    /// How often the log was no longer kept for a node because the disk would have filled.
    pub given_up: Counter,
}

impl Retention {
    pub(super) fn register(r: &mut Registry) -> Self {
        let made = Retention {
            kept_bytes: add(
                r,
                "log_kept_bytes",
                "Bytes of the log that are not purged",
                Gauge::default(),
            ),
            held_bytes: add(
                r,
                "log_held_bytes",
                "Bytes of the log that are kept beyond its bounds, by reason: a snapshot is on its way to a node, or a node \
                 catches up after one",
                Family::default(),
            ),
            held_seconds: add(
                r,
                "log_held_seconds",
                "Time for which the log has been kept beyond its bounds, by reason",
                Family::default(),
            ),
            given_up: add(
                r,
                "log_holds_given_up",
                "How often the log was no longer kept for a node because the disk would have filled",
                Counter::default(),
            ),
        };
        made.set_held(None);
        made
    }

    /// Publishes by how many bytes, and for how many seconds, the log is kept beyond its bounds, and why.
    pub fn set_held(&self, held: Option<(HeldFor, u64, u64)>) {
        for reason in [HeldFor::Snapshot, HeldFor::CatchUp] {
            let of_reason = held.filter(|(held_for, ..)| *held_for == reason);
            let (bytes, seconds) = of_reason.map_or((0, 0), |(_, bytes, seconds)| (bytes, seconds));
            let labels = HeldLabels { reason };
            self.held_bytes.get_or_create(&labels).set(super::gauge(bytes));
            self.held_seconds.get_or_create(&labels).set(super::gauge(seconds));
        }
    }
}
