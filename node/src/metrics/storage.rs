//! The disk of the data directory.

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::add;

/// Room on the disk.
#[derive(Clone)]
pub struct Storage {
    /// Bytes free where the data directory is.
    pub free_bytes: Gauge,
    /// 1 while this node takes no writes for want of room.
    pub refusing: Gauge,
}

impl Storage {
    pub(super) fn register(r: &mut Registry) -> Self {
        let free = "Bytes free where the data directory is";
        let refusing = "1 while writes are refused for want of room";
        Storage {
            free_bytes: add(r, "storage_free_bytes", free, Gauge::default()),
            refusing: add(r, "storage_refusing", refusing, Gauge::default()),
        }
    }
}
