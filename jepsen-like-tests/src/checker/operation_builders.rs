//! Builders of operations for unit tests of checkers. Times are small numbers.

use std::ops::Range;

use super::evidence::Evidence;
use super::run_builder::RunBuilder;
use crate::record::history::{Fields, Item, Op, Operation, Outcome};

/// An operation that took effect.
pub fn did(op: Op, k: &str, asked: Fields, times: Range<u64>, answered: Fields) -> Operation {
    operation(op, k, asked, times.start, Some(times.end), Outcome::Ok(answered))
}

/// An operation that certainly did not take effect.
pub fn refused(op: Op, k: &str, asked: Fields, times: Range<u64>, why: &str) -> Operation {
    operation(
        op,
        k,
        asked,
        times.start,
        Some(times.end),
        Outcome::Fail(why.to_owned()),
    )
}

/// An operation with an unknown outcome.
pub fn unknown(op: Op, k: &str, asked: Fields, times: Range<u64>) -> Operation {
    let outcome = Outcome::Info("timeout".to_owned());
    operation(op, k, asked, times.start, Some(times.end), outcome)
}

fn operation(op: Op, k: &str, asked: Fields, began: u64, ended: Option<u64>, outcome: Outcome) -> Operation {
    Operation {
        lane: 0,
        node: Some(1),
        op,
        k: k.to_owned(),
        asked,
        began,
        ended,
        outcome,
    }
}

pub fn name(name: &str) -> Fields {
    Fields {
        name: Some(name.to_owned()),
        ..Fields::default()
    }
}

pub fn number(n: u64) -> Fields {
    Fields {
        n: Some(n),
        ..Fields::default()
    }
}

/// Messages with these keys, all with the same `seq`.
pub fn items(keys: &[&str], seq: Option<u64>) -> Vec<Item> {
    let item = |key: &&str| Item {
        id: String::new(),
        key: (*key).to_owned(),
        seq,
    };
    keys.iter().map(item).collect()
}

/// A run of these operations on three nodes, without faults.
pub fn evidence(operations: Vec<Operation>) -> Evidence {
    RunBuilder::default().with(operations).evidence()
}
