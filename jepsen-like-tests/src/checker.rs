//! One property per file. A checker names every violation that it finds; none means valid.

pub mod dispatch;
pub mod inbox_order;
pub mod lost;

use crate::history::History;

/// Runs every checker.
pub fn check(history: &History) -> Vec<String> {
    [lost::check(history), inbox_order::check(history)].concat()
}
