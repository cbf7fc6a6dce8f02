//! (coming)

use crate::db::{Layout, OpenError};
use crate::log_store::PurgePoint;

pub(crate) struct Snapshots {}

impl Snapshots {
    pub(crate) fn open(_layout: &Layout, _purge_point: PurgePoint) -> Result<Self, OpenError> {
        Ok(Snapshots {})
    }

    pub(crate) fn newest_index(&self) -> Option<u64> {
        None
    }
}
