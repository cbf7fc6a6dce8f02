//! The metrics of the budget for requests under way.

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::add;

/// What is charged to the budget of this node, by its own clients and by operations that other nodes forwarded.
#[derive(Clone)]
pub struct Budget {
    /// The requests that are charged.
    pub requests: Gauge,
    /// The bytes for which they are charged.
    pub bytes: Gauge,
}

impl Budget {
    pub(super) fn register(r: &mut Registry) -> Self {
        Budget {
            requests: add(
                r,
                "budget_requests",
                "Client requests that are charged to the budget, from before their body is read to their answer, \
                 with those that other nodes forwarded; at most 3584, half of them for one team",
                Gauge::default(),
            ),
            bytes: add(
                r,
                "budget_bytes",
                "Bytes of these requests; at most 56 MiB, half of them for one team",
                Gauge::default(),
            ),
        }
    }
}
