//! The metrics of the disk.

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::add;

/// The free space, and whether the data on the disk may be used.
#[derive(Clone)]
pub struct Storage {
    /// Bytes free on the file system of the data directory.
    pub free_bytes: Gauge,
    /// 1 while this node refuses writes because its disk is nearly full.
    pub refusing: Gauge,
    /// 1 while this node is quarantined.
    pub quarantined: Gauge,
}

impl Storage {
    pub(super) fn register(r: &mut Registry) -> Self {
        let g = Gauge::default;
        Storage {
            free_bytes: add(
                r,
                "storage_free_bytes",
                "Bytes free on the file system of the data directory",
                g(),
            ),
            refusing: add(
                r,
                "storage_refusing",
                "1 while this node refuses writes because its disk is nearly full",
                g(),
            ),
            quarantined: add(r, "quarantined", "1 while this node is quarantined", g()),
        }
    }
}
