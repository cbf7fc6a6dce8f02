//! The metrics of the pool on which the state is read.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::add;

/// Reads of ranges and of messages, which run on the pool of reads.
#[derive(Clone, Default)]
pub struct Reads {
    /// The reads that wait for a place.
    pub waiting: Gauge,
    /// The reads that were refused because too many waited.
    pub refused: Counter,
}

impl Reads {
    pub(super) fn register(r: &mut Registry) -> Self {
        Reads {
            waiting: add(
                r,
                "reads_waiting",
                "Reads of the state that wait for a place on the pool of reads",
                Gauge::default(),
            ),
            refused: add(
                r,
                "reads_refused",
                "Reads of the state that were refused because too many waited",
                Counter::default(),
            ),
        }
    }
}
