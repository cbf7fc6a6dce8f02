use super::Imports;

fn arrows(files: &[(&str, &str)]) -> Vec<String> {
    let imports = Imports::of(files.iter().copied());
    imports
        .arrows()
        .map(|i| format!("{}:{} {} -> {}", i.file, i.line, i.from, i.to))
        .collect()
}

const LOW: (&str, &str) = ("low.rs", "pub struct Thing;");

#[test]
fn every_way_to_name_a_module_is_an_import() {
    for (what, text) in [
        ("use", "use crate::low::Thing;"),
        ("the module itself", "use crate::low;"),
        (
            "a branch",
            "use crate::{other::{self, Thing as Other}, low::{Thing, nested::*}};",
        ),
        ("all", "use crate::low::*;"),
        ("another name", "use crate::low as ground;"),
        ("super", "use super::low::Thing;"),
        ("a re-export", "pub(crate) use crate::low::Thing;"),
        ("in a function", "fn f() { use crate::low::Thing; }"),
        ("in an expression", "fn f() { let x = crate::low::Thing; }"),
        ("in a type", "fn f(x: &Vec<crate::low::Thing>) {}"),
        ("in a macro", "fn f() { assert_eq!(crate::low::Thing, 1); }"),
        ("in a macro's rule", "macro_rules! m { () => { $crate::low::Thing }; }"),
        ("in a written module", "mod inner { use super::super::low::Thing; }"),
        ("after an attribute", "#[derive(Debug)] struct S(crate::low::Thing);"),
        ("a generic", "fn f() { x::<crate::low::Thing>() }"),
        ("in a public path", "pub(in crate::low) fn f() {}"),
    ] {
        let found = arrows(&[("high.rs", text), LOW, ("other.rs", "")]);
        assert!(found.contains(&"high.rs:1 high -> low".to_owned()), "{what}: {found:?}");
    }
}

#[test]
fn comments_strings_and_tests_are_not_imports() {
    for text in [
        "// use crate::low::Thing;",
        "/// See [`crate::low`].\nfn f() {}",
        "/* crate::low::Thing */",
        "const S: &str = \"crate::low::Thing\";",
        "#[cfg(test)] use crate::low::Thing;",
        "#[cfg(test)] mod tests { use crate::low::Thing; }",
        "#[cfg(all(test, unix))]\n#[allow(dead_code)] mod tests { use crate::low::Thing; }",
        "#[cfg(test)] fn f(x: Vec<u8>) { crate::low::f() }",
        "fn f() -> impl Sized + use<> { 1 }",
        "fn f() { lower::low() }",
        "use low::Thing;",
    ] {
        assert_eq!(arrows(&[("high.rs", text), LOW]), [""; 0], "{text}");
    }
    // Code after a test is scanned again.
    let text = "#[cfg(test)] mod tests { }\n#[cfg(test)] use a::{b};\nuse crate::low::Thing;";
    assert_eq!(arrows(&[("high.rs", text), LOW]), ["high.rs:3 high -> low"]);
}

#[test]
fn a_file_of_tests_is_left_out_with_its_folder() {
    let files = [
        ("high.rs", "#[cfg(test)] mod tests;"),
        ("high/tests.rs", "use crate::low::Thing; mod deep;"),
        ("high/tests/deep.rs", "use crate::low::Thing;"),
        LOW,
    ];
    assert_eq!(arrows(&files), [""; 0]);
    assert_eq!(Imports::of(files).faults(&[&["high"], &["low"]]), [""; 0]);
}

#[test]
fn a_re_exported_name_leads_to_the_module_that_defines_it() {
    let files = [
        (
            "folder.rs",
            "pub use self::top::Top; pub struct Own; mod bottom; mod top;",
        ),
        ("folder/top.rs", "pub struct Top;"),
        ("folder/bottom.rs", "use super::{Own, Top};"),
        ("user.rs", "use crate::folder;\nfn f() { folder::top::g() }"),
    ];
    assert_eq!(
        arrows(&files),
        [
            "folder/bottom.rs:1 folder::bottom -> folder::top",
            "user.rs:1 user -> folder",
            "user.rs:2 user -> folder::top",
        ],
        "imports between a module and its parent are not reported"
    );
}

#[test]
fn a_row_may_use_only_the_rows_below_it() {
    let imports = Imports::of([
        ("a.rs", "use crate::b::c::C;\nuse crate::d::D;"),
        ("b.rs", ""),
        ("b/c.rs", "use crate::d::D;\nuse crate::a::A;"),
        ("b/e.rs", "use super::c::C;"),
        ("d.rs", ""),
    ]);
    let up = "b/c.rs:2: b::c -> a leads up";
    assert_eq!(imports.faults(&[&["a"], &["b"], &["d"]]), [up]);
    assert_eq!(
        imports.faults(&[&["a", "b"], &["d"]]),
        [
            "a.rs:1: a -> b::c stays in its row",
            "b/c.rs:2: b::c -> a stays in its row"
        ]
    );
    // The longest name counts, so b::c may be in a lower row than the rest of b.
    assert_eq!(imports.faults(&[&["b"], &["a"], &["b::c"], &["d"]]), [up]);
    assert_eq!(imports.faults(&[&["a"], &["b"]])[0], "d is in no row");
    assert_eq!(
        imports.faults(&[&["a"], &["b"], &["d", "x"]]),
        ["x is in a row and is no module", up]
    );
}

#[test]
fn circles_are_reported_in_their_innermost_folder() {
    let imports = Imports::of([
        ("a.rs", "use crate::b::c::C;"),
        ("b.rs", "use self::c::C;"),
        ("b/c.rs", "use super::Own; use super::e::E; use crate::d::D;"),
        ("b/e.rs", "use super::f::F;"),
        ("b/f.rs", "use super::c::C;"),
        ("d.rs", ""),
    ]);
    assert_eq!(imports.circles(), [["b::c", "b::e", "b::f"]]);
    let imports = Imports::of([
        ("a.rs", ""),
        ("b.rs", ""),
        ("a/x.rs", "use crate::b::y::Y;"),
        ("b/z.rs", "use crate::a::w::W;"),
        ("a/w.rs", ""),
        ("b/y.rs", ""),
    ]);
    assert_eq!(
        imports.circles(),
        [["a", "b"]],
        "the files form no circle, but their folders do"
    );
}

#[test]
fn foreign_names_are_listed_for_a_module_and_the_modules_in_it() {
    let imports = Imports::of([
        ("core.rs", ""),
        (
            "core/a.rs",
            "use std::{fs, collections::BTreeMap}; fn f() { rocksdb::DB::open() }",
        ),
        ("disk.rs", "use openraft::Raft;"),
    ]);
    let names: Vec<_> = imports.foreign("core").into_iter().collect();
    assert_eq!(names, ["rocksdb", "std::collections", "std::fs"]);
}
