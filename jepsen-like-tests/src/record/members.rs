//! Observations of the cluster's members by a scenario.

use serde::{Deserialize, Serialize};

/// The kind of the fault that carries an observation.
pub const KIND: &str = "members";

/// The members at a moment when nobody changes them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedMembers {
    /// The ids of the observed members.
    pub observed: Vec<u64>,
    /// The ids of the expected members, from the responses to operators.
    pub expected: Vec<u64>,
    /// The ids that were assigned since the last observation.
    pub assigned: Vec<u64>,
}
