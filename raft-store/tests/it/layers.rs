//! The layers that `lib.rs`, `core.rs` and `disk.rs` describe, checked against the imports.

use std::path::Path;

use agentpost_testkit::layers::Imports;

/// From the top down. A module may import only from rows below its own.
const ROWS: &[&[&str]] = &[
    &["disk::open"],
    &["disk::repair", "disk::scrub", "disk::state_machine"],
    &["disk::snapshot"],
    &["disk::state", "disk::log_store"],
    &["disk::options", "disk::read_all"],
    &["disk::floor", "disk::memory_budget", "disk::segments"],
    &["disk::error"],
    &["disk::damage"],
    &[
        "disk::files",
        "disk::in_use",
        "disk::layout",
        "disk::progress",
        "disk::types",
    ],
    &["core::apply"],
    &["core::query"],
    &["core::view"],
    &["core::effect", "core::keys", "core::kv", "core::mutant"],
];

/// An attempt that ends may end its delivery, and a delivery that ends closes its attempt.
const CIRCLE: [&str; 2] = ["core::apply::delivery::attempts", "core::apply::delivery::ending"];

/// Everything outside the process, and the libraries that lead there.
const IMPURE: [&str; 12] = [
    "futures",
    "openraft",
    "rand",
    "rocksdb",
    "std::env",
    "std::fs",
    "std::io",
    "std::net",
    "std::process",
    "std::thread",
    "std::time",
    "tokio",
];

fn imports() -> Imports {
    Imports::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap()
}

#[test]
fn imports_lead_down() {
    assert_eq!(imports().faults(ROWS), Vec::<String>::new());
}

#[test]
fn no_modules_but_two_import_each_other() {
    assert_eq!(imports().circles(), [CIRCLE]);
}

/// `mutant.rs` alone reads the environment, in builds that break rules on purpose.
#[test]
fn the_core_reaches_no_clock_disk_network_or_thread() {
    let imports = imports();
    for module in ["apply", "effect", "keys", "kv", "query", "view"] {
        let foreign = imports.foreign(&format!("core::{module}"));
        let impure: Vec<_> = IMPURE.iter().filter(|name| foreign.contains(**name)).collect();
        assert!(impure.is_empty(), "core::{module} uses {impure:?}");
        assert!(!foreign.is_empty(), "core::{module} was read");
    }
}
