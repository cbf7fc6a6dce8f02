//! Checkers, one property per file. A checker reads what a run recorded and describes every violation. Each takes at
//! most O(n log n) time, and none needs a cluster: a run can be checked again at any time.
//!
//! ```text
//!  history.jsonl ──► mail.rs: mailboxes, with interned texts ──► order.rs: final orders, what was known when
//!                ├─► summaries: every operation, without its texts        │
//!                └─► operations: those outside the mailbox workloads      ▼
//!  leaders.jsonl, faults.jsonl, run.json, replicas.json ───────────► evidence.rs ──► checkers, coverage.rs,
//!                                                                                    figures.rs ──► verdict
//! ```

pub mod coverage;
pub mod crashes;
pub mod dispatch;
pub mod evidence;
pub mod fan_out;
pub mod figures;
pub mod inbox_order;
pub mod interner;
pub mod isolation;
pub mod linearizable;
pub mod liveness;
pub mod lost;
pub mod mail;
pub mod members;
pub mod monotonic;
#[cfg(test)]
mod operation_builders;
pub mod order;
pub mod quota;
pub mod raft;
pub mod read_marks;
pub mod recovery;
pub mod registers;
pub mod replicas;
pub mod revocation;
pub mod rolling;
#[cfg(test)]
pub mod run_builder;
pub mod steady;
mod wgl;
pub mod ws_stream;

use self::evidence::Evidence;
use crate::record::verdict::{Check, Verdict};

const CHECKERS: &[fn(&Evidence) -> Check] = &[
    lost::check,
    inbox_order::check,
    linearizable::check,
    monotonic::check,
    read_marks::check,
    replicas::check,
    raft::check,
    crashes::check,
    liveness::check,
    rolling::check,
    steady::check,
    dispatch::check,
    ws_stream::check,
    fan_out::check,
    quota::check,
    revocation::check,
    registers::check,
    isolation::check,
    recovery::check,
    members::check,
];

/// Runs every checker over the records of a run.
pub fn check(evidence: &Evidence) -> Verdict {
    let checks = CHECKERS.iter().map(|check| check(evidence)).collect();
    let mut coverage = coverage::check(evidence, &evidence.run.required);
    coverage.extend(dispatch::coverage(evidence));
    let mut samples = figures::samples(evidence);
    samples.extend(dispatch::samples(evidence));
    let mut figures = figures::figures(evidence, &samples);
    figures.extend(dispatch::figures(evidence));
    figures.extend(ws_stream::figures(evidence));
    recovery::figures(evidence, &mut figures, &mut samples);
    Verdict {
        samples,
        ..Verdict::of(checks, coverage, figures)
    }
}
