//! What this node stores on.

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::add;

/// Room, and whether what is stored may be used.
#[derive(Clone)]
pub struct Storage {
    /// Bytes free on the file system of the data directory.
    pub free_bytes: Gauge,
    /// 1 while this node takes no writes for want of room.
    pub refusing: Gauge,
    /// 1 while this node must not take part.
    pub quarantined: Gauge,
}

impl Storage {
    pub(super) fn register(r: &mut Registry) -> Self {
        let g = Gauge::default;
        Storage {
            free_bytes: add(r, "storage_free_bytes", "Bytes free where the data directory is", g()),
            refusing: add(
                r,
                "storage_refusing",
                "1 while writes are refused for want of room",
                g(),
            ),
            quarantined: add(r, "quarantined", "1 while this node must not take part", g()),
        }
    }
}
