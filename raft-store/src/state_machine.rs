//! (coming)

use std::sync::Arc;

use crate::db::StateHandle;
use crate::snapshot::Snapshots;

/// Applies entries to the state.
pub struct StateMachine {}

impl StateMachine {
    pub(crate) fn new(_state: StateHandle, _snapshots: Arc<Snapshots>) -> Self {
        StateMachine {}
    }
}
