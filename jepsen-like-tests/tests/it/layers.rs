//! The layers of the sources: a module imports from lower layers only, and no circle of modules exists.

use std::path::Path;

use agentpost_testkit::layers::Imports;

/// The layers from the top down. Modules of one layer do not know each other.
const LAYERS: &[&[&str]] = &[
    &["campaign", "mutants"],
    &["run", "totals"],
    &["report"],
    &["scenario", "checker"],
    &["workload"],
    &["cluster"],
    &["record"],
];

fn imports() -> Imports {
    Imports::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap()
}

#[test]
fn modules_import_from_lower_layers_only() {
    assert_eq!(imports().faults(LAYERS), Vec::<String>::new());
}

#[test]
fn there_are_no_circles() {
    assert_eq!(imports().circles(), Vec::<Vec<String>>::new());
}
