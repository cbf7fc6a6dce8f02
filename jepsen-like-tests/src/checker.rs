//! One property per file. A checker looks at what a run wrote down and names every violation that it finds. All are
//! O(n log n) at most, and none needs a cluster: a run can be checked again at any time.

pub mod dispatch;
pub mod inbox_order;
pub mod lost;
pub mod members;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;

use crate::faults::{self, Fault};
use crate::history::{self, Operation};
use crate::run::{self, REPLICAS, RUN, Replicas, Run};
use crate::verdict::{Check, Verdict};

/// Everything that a run wrote down.
pub struct Evidence {
    /// What ran.
    pub run: Run,
    /// What clients did, in the order in which they began it.
    pub operations: Vec<Operation>,
    /// What was done to the cluster, in the order in which it began.
    pub faults: Vec<Fault>,
    /// Whether all states were the same in the end.
    pub replicas: Replicas,
}

impl Evidence {
    /// Reads a run's directory.
    pub fn load(dir: &Path) -> Result<Self> {
        Ok(Evidence {
            run: run::read(&dir.join(RUN))?,
            operations: history::load(dir)?,
            faults: faults::load(dir)?,
            replicas: run::read(&dir.join(REPLICAS))?,
        })
    }
}

/// Runs every checker over what a run wrote down.
pub fn check(evidence: &Evidence) -> Verdict {
    let checks: Vec<Check> = vec![
        lost::check(evidence),
        inbox_order::check(evidence),
        members::check(evidence),
    ];
    Verdict::of(checks, Vec::new(), BTreeMap::new())
}
