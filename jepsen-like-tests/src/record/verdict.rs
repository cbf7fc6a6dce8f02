//! The verdict of a run: the result of each property, whether the run tested enough, and the overall validity.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub const VERDICT: &str = "verdict.json";

/// The overall result of a run. The number is the exit status of the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Validity {
    /// Every property held, and enough faults happened.
    Valid = 0,
    /// A property was violated.
    Invalid = 1,
    /// The harness had a problem, or the run tested too little.
    Unknown = 2,
    /// This machine lacks something that the scenario needs; nothing was tested.
    Skipped = 3,
}

/// The result of one checker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// The name of the property: `lost`, `inbox-order`, ….
    pub name: String,
    /// How many items were checked; with 0 the property was not tested.
    pub looked_at: u64,
    /// Descriptions of the violations; at most [`VIOLATIONS_KEPT`].
    pub violations: Vec<String>,
    /// The number of violations.
    pub violated: u64,
}

/// More violations of one property are not kept.
pub const VIOLATIONS_KEPT: usize = 50;

impl Check {
    /// The result of a checker that checked `looked_at` items and found these violations.
    pub fn new(name: &str, looked_at: usize, mut violations: Vec<String>) -> Self {
        let violated = violations.len() as u64;
        violations.truncate(VIOLATIONS_KEPT);
        Check {
            name: name.to_owned(),
            looked_at: looked_at as u64,
            violations,
            violated,
        }
    }
}

/// A condition that a run must meet for its verdict to mean anything.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Coverage {
    /// A description: `kill installed`, `operations during faults`.
    pub what: String,
    /// The required number.
    pub wanted: u64,
    /// The number that was reached.
    pub got: u64,
}

/// The whole verdict of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    pub validity: Validity,
    /// Why the run is unknown or skipped; empty otherwise.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    pub checks: Vec<Check>,
    pub coverage: Vec<Coverage>,
    /// Counts and measurements, by a name that ends with the unit: `acknowledged`, `outage p99 ms`. `totals.rs` adds
    /// them up.
    pub figures: BTreeMap<String, f64>,
    /// Individual measurements, by a name that ends with the unit: `outage ms`.
    #[serde(default)]
    pub samples: BTreeMap<String, Vec<f64>>,
}

impl Verdict {
    /// Combines the results: a violated property outweighs insufficient coverage.
    pub fn of(checks: Vec<Check>, coverage: Vec<Coverage>, figures: BTreeMap<String, f64>) -> Self {
        let missing: Vec<String> = coverage
            .iter()
            .filter(|c| c.got < c.wanted)
            .map(|c| format!("{}: {} of {}", c.what, c.got, c.wanted))
            .collect();
        let validity = if checks.iter().any(|check| check.violated > 0) {
            Validity::Invalid
        } else if missing.is_empty() {
            Validity::Valid
        } else {
            Validity::Unknown
        };
        Verdict {
            validity,
            reason: missing.join(", "),
            checks,
            coverage,
            figures,
            samples: BTreeMap::new(),
        }
    }

    /// The verdict of a run that tested nothing or broke off.
    pub fn without_result(validity: Validity, reason: impl Into<String>) -> Self {
        Verdict {
            validity,
            reason: reason.into(),
            checks: Vec::new(),
            coverage: Vec::new(),
            figures: BTreeMap::new(),
            samples: BTreeMap::new(),
        }
    }
}
