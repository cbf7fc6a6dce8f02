//! What is said of a run: each property by itself, whether the run tested anything, and the sum.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The file in a run's directory.
pub const VERDICT: &str = "verdict.json";

/// The sum of a run. The number is the exit status of the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sum {
    /// Every property held, and the faults were there.
    Valid = 0,
    /// A property was broken.
    Invalid = 1,
    /// The harness had trouble, or too little was tested to say anything.
    Unknown = 2,
    /// This machine cannot do it; nothing was tested.
    Skipped = 3,
}

/// What a checker says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// Its name, as in the list of properties: `lost`, `inbox-order`, ….
    pub name: String,
    /// How many things it looked at; nothing looked at is nothing checked.
    pub looked_at: u64,
    /// Every violation that it found, in words; at most [`VIOLATIONS_KEPT`] of them.
    pub violations: Vec<String>,
    /// How many there were.
    pub violated: u64,
}

/// More of one kind tell nothing new.
pub const VIOLATIONS_KEPT: usize = 50;

impl Check {
    /// Of a checker that looked at so many things and found these violations.
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

/// What a run has to have met for its verdict to mean anything.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Coverage {
    /// In words: `kill installed`, `operations inside faults`.
    pub what: String,
    /// At least so many.
    pub wanted: u64,
    /// So many.
    pub got: u64,
}

/// Everything that is said of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// In one word.
    pub sum: Sum,
    /// Why it is unknown or skipped; empty otherwise.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Each property.
    pub checks: Vec<Check>,
    /// Each condition.
    pub coverage: Vec<Coverage>,
    /// What was counted and measured, by name with its unit: `acknowledged`, `outage p99 ms`. `totals.rs` sums them.
    pub figures: BTreeMap<String, f64>,
    /// What was measured one by one, by name with its unit: `outage ms`.
    #[serde(default)]
    pub samples: BTreeMap<String, Vec<f64>>,
}

impl Verdict {
    /// Sums up: a broken property outweighs everything, then too little coverage.
    pub fn of(checks: Vec<Check>, coverage: Vec<Coverage>, figures: BTreeMap<String, f64>) -> Self {
        let missing: Vec<String> = coverage
            .iter()
            .filter(|c| c.got < c.wanted)
            .map(|c| format!("{}: {} of {}", c.what, c.got, c.wanted))
            .collect();
        let sum = if checks.iter().any(|check| check.violated > 0) {
            Sum::Invalid
        } else if missing.is_empty() {
            Sum::Valid
        } else {
            Sum::Unknown
        };
        Verdict {
            sum,
            reason: missing.join(", "),
            checks,
            coverage,
            figures,
            samples: BTreeMap::new(),
        }
    }

    /// Nothing was tested, or the harness broke.
    pub fn without_result(sum: Sum, reason: impl Into<String>) -> Self {
        Verdict {
            sum,
            reason: reason.into(),
            checks: Vec::new(),
            coverage: Vec::new(),
            figures: BTreeMap::new(),
            samples: BTreeMap::new(),
        }
    }
}
